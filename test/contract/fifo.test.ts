import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

interface Message {
  readonly message_id: string;
  readonly receipt: string;
  readonly payload: string;
}

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(queueFaces(() => carillon))("over $name, a group of a FIFO queue", (face) => {
  /** A queue with messages that say which of its group they are: `a1`, `a2` and so on. */
  const fill = async (settings: object, ...messages: string[]): Promise<string> => {
    const queue = unique("q");
    await face.call("createQueue", { queue, type: face.name === "REST" ? "fifo" : "QUEUE_TYPE_FIFO", ...settings });
    await face.call("publishBatch", { queue, messages: messages.map((m) => ({ payload: m, group_id: m.charAt(0) })) });
    return queue;
  };
  const take = async (queue: string): Promise<Message[]> =>
    (await face.call("consume", { queue, max_messages: 100 })).messages;
  const taken = async (queue: string) => (await take(queue)).map(({ payload }) => payload).toSorted();
  const of = (messages: readonly Message[], payload: string) => {
    const found = messages.find((message) => message.payload === payload);
    if (found === undefined) throw new Error(`${payload} was not handed out`);
    return { message_id: found.message_id, receipt: found.receipt };
  };
  const ack = async (queue: string, messages: readonly Message[], payload: string) =>
    expect(await face.call("ack", { queue, ...of(messages, payload) })).toMatchObject({ acked: true });

  test("has one message in flight, and the next comes when that is acked; groups do not wait for each other", async () => {
    const queue = await fill({}, "a1", "a2", "a3", "b1", "b2");
    const first = await take(queue);
    expect(first.map(({ payload }) => payload).toSorted()).toEqual(["a1", "b1"]);
    expect(await take(queue)).toEqual([]);
    await ack(queue, first, "a1");
    expect(await taken(queue)).toEqual(["a2"]);
    await ack(queue, first, "b1");
    expect(await taken(queue)).toEqual(["b2"]);
  });

  test("keeps its order over nacks, at once, delayed and without penalty", async () => {
    const queue = await fill({}, "a1", "a2", "b1");
    await face.call("nack", { queue, ...of(await take(queue), "a1") });
    const again = await take(queue);
    expect(again.map(({ payload }) => payload)).toEqual(["a1"]);
    await face.call("nack", { queue, ...of(again, "a1"), penalty: false });
    await face.call("nack", { queue, ...of(await take(queue), "a1"), delay_seconds: 20 });
    expect(await take(queue)).toEqual([]);
    await carillon.database.advanceClock(21);
    const last = await take(queue);
    expect(last.map(({ payload }) => payload)).toEqual(["a1"]);
    await ack(queue, last, "a1");
    expect(await taken(queue)).toEqual(["a2"]);
  });

  test("keeps its order over leases that run out or are given up", async () => {
    const queue = await fill({ visibility_timeout_default: 10 }, "a1", "a2");
    await take(queue);
    await carillon.database.advanceClock(11);
    const again = await take(queue);
    expect(again).toMatchObject([{ payload: "a1", failures: 1, expiries: 1 }]);
    await face.call("extendLease", { queue, ...of(again, "a1"), visibility_timeout: 0 });
    expect(await taken(queue)).toEqual(["a1"]);
    expect(await taken(queue)).toEqual([]);
  });

  test("goes on after a message that dies, which comes back behind the others when it is redriven", async () => {
    const queue = await fill({ max_retries: 0 }, "a1", "a2", "a3");
    const nack = await face.call("nack", { queue, ...of(await take(queue), "a1") });
    expect(nack).toMatchObject({ nacked: true, requeued: false, reason: "max_retries" });
    const second = await take(queue);
    expect(second.map(({ payload }) => payload)).toEqual(["a2"]);
    expect(await face.call("redriveDeadLetters", { queue })).toMatchObject({ redriven: 1 });
    expect(await take(queue)).toEqual([]);
    await ack(queue, second, "a2");
    const rest: string[] = [];
    for (let next = await take(queue); next.length > 0; next = await take(queue)) {
      expect(next).toHaveLength(1);
      rest.push(...next.map(({ payload }) => payload));
      await ack(queue, next, next[0]?.payload ?? "");
    }
    expect(rest).toEqual(["a3", "a1"]);
  });

  test("wakes the consumer that waits for its next message when the one in flight is acked", async () => {
    const queue = await fill({}, "a1", "a2", "a3");
    const first = await take(queue);
    const waiting = face.call("consume", { queue, wait_seconds: 20 });
    await ack(queue, first, "a1");
    expect((await waiting).messages).toMatchObject([{ payload: "a2" }]);
  });
});
