import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

const TEN_YEARS = 315_360_000;
const WEEK = 604_800;

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  const create = async (settings: object = {}): Promise<string> => {
    const queue = unique("q");
    await face.call("createQueue", { queue, ...settings });
    return queue;
  };
  const publish = (queue: string, payload: unknown, message: object = {}) =>
    face.call("publish", { queue, payload: payload as string, ...message });
  const take = async (queue: string): Promise<unknown[]> =>
    (await face.call("consume", { queue, max_messages: 100 })).messages.map(
      ({ payload }: { payload: unknown }) => payload,
    );

  describe("a pull with wait_seconds", () => {
    test("is answered when a message comes", async () => {
      const queue = await create();
      const waiting = face.call("consume", { queue, wait_seconds: 20 });
      await publish(queue, "late");
      expect((await waiting).messages).toMatchObject([{ payload: "late" }]);
    });

    test("is answered with none when none comes, and not before", async () => {
      const queue = await create();
      const startedAt = performance.now();
      expect((await face.call("consume", { queue, wait_seconds: 1 })).messages).toEqual([]);
      expect(performance.now() - startedAt).toBeGreaterThan(950);
    });

    test.each([-1, 21])("of %i seconds is refused", async (wait_seconds) => {
      const call = face.call("consume", { queue: await create(), wait_seconds });
      await expect(call).rejects.toMatchObject({ reason: "FIELD_INVALID" });
    });
  });

  test.each([{}, { enable_priority: true }])(
    "a request_id gets the same leases again while they live, and not after (%j)",
    async (settings) => {
      const queue = await create(settings);
      for (let n = 0; n < 4; n++) await publish(queue, n);
      const request = { queue, max_messages: 2, request_id: unique("r"), visibility_timeout: 10 };
      const first = (await face.call("consume", request)).messages;
      expect(first).toHaveLength(2);
      expect((await face.call("consume", request)).messages).toEqual(first);
      const other = (await face.call("consume", { ...request, request_id: unique("r") })).messages;
      expect(other.map(({ payload }: { payload: number }) => payload)).toEqual([2, 3]);
      const [{ message_id, receipt }] = first;
      await face.call("ack", { queue, message_id, receipt });
      expect((await face.call("consume", request)).messages).toEqual(first.slice(1));
      await carillon.database.advanceClock(11);
      const anew = (await face.call("consume", request)).messages;
      expect(anew).toHaveLength(2);
      const receipts = new Set([...first, ...other].map((message) => message.receipt));
      expect(anew.filter((message: { receipt: string }) => receipts.has(message.receipt))).toEqual([]);
    },
  );

  describe("a step of priority", () => {
    test("is worth a minute of waiting, where the queue counts it", async () => {
      for (const [seconds, order] of [
        [50, ["high", "low"]],
        [70, ["low", "high"]],
      ] as const) {
        const queue = await create({ enable_priority: true });
        await publish(queue, "low", { priority: 2 });
        await carillon.database.advanceClock(seconds);
        await publish(queue, "high", { priority: 3 });
        expect(await take(queue), `after ${seconds} s`).toEqual(order);
      }
      const queue = await create();
      await publish(queue, "first");
      await publish(queue, "second", { priority: 9 });
      expect(await take(queue)).toEqual(["first", "second"]);
    });

    test("is one of 0 to 9", async () => {
      const queue = await create({ enable_priority: true });
      for (const priority of [5, 0, 9]) await publish(queue, priority, { priority });
      expect(await take(queue)).toEqual([9, 5, 0]);
      for (const priority of [-1, 10]) {
        await expect(publish(queue, 1, { priority })).rejects.toMatchObject({ reason: "FIELD_INVALID" });
      }
    });
  });

  describe("a delay", () => {
    test("keeps a message back until it is over", async () => {
      const queue = await create({ visibility_timeout_default: 600 });
      await publish(queue, "later", { delay_seconds: 60 });
      await face.call("publishBatch", {
        queue,
        messages: [{ payload: "now" }, { payload: "last", delay_seconds: 90 }],
      });
      expect(await take(queue)).toEqual(["now"]);
      await carillon.database.advanceClock(61);
      expect(await take(queue)).toEqual(["later"]);
      await carillon.database.advanceClock(30);
      expect(await take(queue)).toEqual(["last"]);
    });

    test.each([-1, TEN_YEARS + 1])("of %i seconds is refused", async (delay_seconds) => {
      const call = publish(await create(), 1, { delay_seconds });
      await expect(call).rejects.toMatchObject({ reason: "FIELD_INVALID" });
    });
  });

  test("a message is dropped when the queue's retention is over, whatever holds it back", async () => {
    const queue = await create({ message_retention_days: 1 });
    const ordered = await create({
      message_retention_days: 1,
      type: face.name === "REST" ? "fifo" : "QUEUE_TYPE_FIFO",
    });
    for (const name of [queue, ordered]) {
      await publish(name, "old");
      await publish(name, "delayed", { delay_seconds: 86_000 });
    }
    await carillon.database.advanceClock(86_401);
    expect(await take(queue)).toEqual(["delayed"]);
    expect(await take(ordered)).toEqual(["delayed"]);
  });

  test("a dead letter is kept for the queue's retention from its death on", async () => {
    const queue = await create({ message_retention_days: 1 });
    const { message_id } = await publish(queue, 1);
    await carillon.database.advanceClock(80_000);
    await take(queue);
    await face.call("nack", { queue, message_id, requeue: false });
    await carillon.database.advanceClock(80_000);
    expect((await face.call("listDeadLetters", { queue })).items).toMatchObject([{ message_id }]);
  });

  test("a deduplication key stands for its message for as long as 7 days", async () => {
    const queue = await create({ deduplication_window_seconds: WEEK });
    const key = { deduplication_key: "order-1" };
    const { message_id } = await publish(queue, 1, key);
    await carillon.database.advanceClock(WEEK - 100);
    expect(await publish(queue, 2, key)).toEqual({ message_id, deduplicated: true });
    await carillon.database.advanceClock(200);
    expect(await publish(queue, 3, key)).toMatchObject({ deduplicated: false });
  });
});

// Last, and of both at once, because it moves the clock so far.
test("a message waits for ten years, longer than any retention", async () => {
  const faces = queueFaces(() => carillon);
  const queues = faces.map(() => unique("q"));
  for (const [i, face] of faces.entries()) {
    const queue = queues[i] ?? "";
    await face.call("createQueue", { queue, message_retention_days: 1 });
    await face.call("publish", { queue, payload: "at last", delay_seconds: TEN_YEARS });
    expect(await face.call("getQueueStats", { queue })).toMatchObject({ available: 0, delayed: 1 });
  }
  await carillon.database.advanceClock(TEN_YEARS - 60);
  for (const [i, face] of faces.entries()) {
    expect((await face.call("consume", { queue: queues[i] ?? "" })).messages).toEqual([]);
  }
  await carillon.database.advanceClock(61);
  for (const [i, face] of faces.entries()) {
    expect((await face.call("consume", { queue: queues[i] ?? "" })).messages).toMatchObject([{ payload: "at last" }]);
  }
});
