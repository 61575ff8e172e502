import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { createQueue, ok, publish, unique, warning } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
let endpoints: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER = "00-11111111111111111111111111111111-2222222222222222-00";

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  describe("a trace context", () => {
    test("of the request is kept with each message and shown to the consumer", async () => {
      const queue = unique("q");
      await face.call("createQueue", { queue });
      const context = { traceparent: TRACEPARENT, tracestate: "vendor=1" };
      await face.call("publish", { queue, payload: 1 }, context);
      await face.call("publishBatch", { queue, messages: [{ payload: 2, headers: { "x-a": "b" } }] }, context);
      const { messages } = await face.call("consume", { queue, max_messages: 2 });
      expect(messages.map((message: { headers: object }) => message.headers)).toEqual([
        context,
        { "x-a": "b", ...context },
      ]);
    });

    test("among a message's own headers comes before the request's", async () => {
      const queue = unique("q");
      await face.call(
        "publish",
        { queue, payload: 1, headers: { TraceParent: OTHER } },
        { traceparent: TRACEPARENT, tracestate: "vendor=1" },
      );
      const { messages } = await face.call("consume", { queue });
      expect(messages[0].headers).toEqual({ traceparent: OTHER });
    });

    test("that is not valid is left out", async () => {
      const queue = unique("q");
      await face.call("publish", { queue, payload: 1 }, { traceparent: "00-1-2-3" });
      await face.call("publish", { queue, payload: 1, headers: { traceparent: "x", tracestate: "a=1" } });
      const { messages } = await face.call("consume", { queue, max_messages: 2 });
      expect(messages.map((message: { headers: object }) => message.headers)).toEqual([{}, {}]);
    });
  });

  describe("a deduplication key", () => {
    test("stands for its message within the window, also when that is acked, and not after", async () => {
      const queue = unique("q");
      await face.call("createQueue", { queue, deduplication_window_seconds: 60 });
      const publish = (payload: number, key = "order-1") =>
        face.call("publish", { queue, payload, deduplication_key: key });
      const first = await publish(1);
      expect(first.deduplicated).toBe(false);
      expect(await publish(2)).toEqual({ message_id: first.message_id, deduplicated: true });
      const { messages } = await face.call("consume", { queue, max_messages: 10 });
      expect(messages).toMatchObject([{ payload: 1 }]);
      await face.call("ack", { queue, message_id: first.message_id });
      expect(await publish(3)).toEqual({ message_id: first.message_id, deduplicated: true });
      expect((await publish(4, "order-2")).deduplicated).toBe(false);
      await carillon.database.advanceClock(61);
      expect((await publish(5)).deduplicated).toBe(false);
    });

    test("of a batch counts against the batch itself and against what came before", async () => {
      const queue = unique("q");
      const { message_id } = await face.call("publish", { queue, payload: 1, deduplication_key: "a" });
      const messages = ["b", "a", "b", ""].map((key) => ({ payload: key, deduplication_key: key }));
      const { message_ids, deduplicated } = await face.call("publishBatch", { queue, messages });
      expect(deduplicated).toEqual([false, true, true, false]);
      expect(message_ids[1]).toBe(message_id);
      expect(message_ids[2]).toBe(message_ids[0]);
      const consumed = await face.call("consume", { queue, max_messages: 10 });
      expect(consumed.messages.map(({ payload }: { payload: unknown }) => payload)).toEqual([1, "b", ""]);
    });

    test("is of its queue, and a batch without repeats says nothing of them", async () => {
      const answers = [];
      for (const queue of [unique("q"), unique("q")]) {
        answers.push(await face.call("publishBatch", { queue, messages: [{ payload: 1, deduplication_key: "a" }] }));
      }
      expect(answers).toMatchObject([{ deduplicated: [] }, { deduplicated: [] }]);
    });

    test.each([{ deduplication_key: "k".repeat(129) }, { deduplication_key: "a\nb" }])(
      "that is none is refused",
      async (field) => {
        const publish = face.call("publish", { queue: unique("q"), payload: 1, ...field });
        await expect(publish).rejects.toMatchObject({ reason: "FIELD_INVALID" });
      },
    );
  });

  test("a queue with content_deduplication compares payload, content type and group", async () => {
    const queue = unique("q");
    const made = await face.call("createQueue", { queue, content_deduplication: true });
    expect(made).toMatchObject({ content_deduplication: true, deduplication_window_seconds: 600 });
    const publish = async (fields: object) =>
      (await face.call("publish", { queue, payload: 1, ...fields })).deduplicated;
    expect(await publish({})).toBe(false);
    expect(await publish({ headers: { "x-a": "b" }, priority: 1 })).toBe(true);
    expect(await publish({ payload: 2 })).toBe(false);
    expect(await publish({ group_id: "g" })).toBe(false);
    expect(await publish({ content_type: "application/vnd.acme+json" })).toBe(false);
    expect(await publish({ deduplication_key: "k" })).toBe(false);
    expect(await publish({ payload: 9, deduplication_key: "k" })).toBe(true);
  });

  test("content counts from when a queue is told to compare it", async () => {
    const queue = unique("q");
    await face.call("publish", { queue, payload: 1 });
    await face.call("updateQueue", { queue, content_deduplication: true, deduplication_window_seconds: 20 });
    expect(await face.call("publish", { queue, payload: 1 })).toMatchObject({ deduplicated: false });
    expect(await face.call("publish", { queue, payload: 1 })).toMatchObject({ deduplicated: true });
    await carillon.database.advanceClock(21);
    expect(await face.call("publish", { queue, payload: 1 })).toMatchObject({ deduplicated: false });
  });

  test.each([19, 604_801])("a window of %i seconds is refused", async (seconds) => {
    const create = face.call("createQueue", { queue: unique("q"), deduplication_window_seconds: seconds });
    await expect(create).rejects.toMatchObject({ reason: "FIELD_INVALID" });
  });

  describe("a message with ttl_seconds", () => {
    const consume = async (queue: string) => {
      const { messages } = await face.call("consume", { queue, max_messages: 10 });
      return messages.toSorted((a: { payload: number }, b: { payload: number }) => a.payload - b.payload);
    };

    test("is dropped when they have passed since it could be handed out first", async () => {
      const queue = unique("q");
      const messages = [
        { payload: 1, ttl_seconds: 10 },
        { payload: 2, ttl_seconds: 10, delay_seconds: 20 },
        { payload: 3 },
      ];
      await face.call("publishBatch", { queue, messages });
      await carillon.database.advanceClock(25);
      expect(await consume(queue)).toMatchObject([{ payload: 2 }, { payload: 3 }]);
      await face.call("publish", { queue, payload: 4, ttl_seconds: 10 });
      await carillon.database.advanceClock(11);
      expect(await consume(queue)).toEqual([]);
    });

    test("stays while it is leased, and goes when it is given back", async () => {
      const queue = unique("q");
      const ids = [1, 2].map((payload) => face.call("publish", { queue, payload, ttl_seconds: 10 }));
      const [acked, nacked] = (await Promise.all(ids)).map(({ message_id }) => message_id);
      await consume(queue);
      await carillon.database.advanceClock(11);
      expect(await face.call("ack", { queue, message_id: acked })).toMatchObject({ acked: true });
      expect(await face.call("nack", { queue, message_id: nacked })).toMatchObject({ requeued: true });
      expect(await consume(queue)).toEqual([]);
    });

    test("does not hold back its group when it is dropped", async () => {
      const queue = unique("q");
      await face.call("createQueue", { queue, type: "QUEUE_TYPE_FIFO" });
      await face.call("publish", { queue, payload: 1, ttl_seconds: 10 });
      await face.call("publish", { queue, payload: 2 });
      await carillon.database.advanceClock(11);
      expect(await consume(queue)).toMatchObject([{ payload: 2 }]);
    });

    test("has the queue's retention as a dead letter", async () => {
      const queue = unique("q");
      const { message_id } = await face.call("publish", { queue, payload: 1, ttl_seconds: 10 });
      await consume(queue);
      await face.call("nack", { queue, message_id, requeue: false });
      await carillon.database.advanceClock(11);
      expect((await face.call("listDeadLetters", { queue })).items).toMatchObject([{ message_id }]);
    });

    test("is refused when they are not 1 to 31536000", async () => {
      for (const ttl_seconds of [0, 31_536_001]) {
        const publish = face.call("publish", { queue: unique("q"), payload: 1, ttl_seconds });
        await expect(publish).rejects.toMatchObject({ reason: "FIELD_INVALID" });
      }
    });
  });
});

test("a trace context is sent with the push of a message", async () => {
  const hook = endpoints.open();
  const queue = await createQueue(carillon);
  ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: hook.url }));
  ok(await carillon.rest("POST", "/queue/publish", { queue, payload: 1 }, { traceparent: TRACEPARENT }));
  expect((await hook.next()).headers).toMatchObject({ traceparent: TRACEPARENT });
});

test("the sender of a trace context that is not valid is told", async () => {
  const queue = await createQueue(carillon);
  const headers = { traceparent: "x" };
  const answer = await carillon.rest("POST", "/queue/publish", { queue, payload: 1, headers });
  expect(warning(answer)).toBe("headers: traceparent is not valid and left out");
});

test("a message with as many headers as are allowed is taken without the request's trace context", async () => {
  const queue = await createQueue(carillon);
  const headers = Object.fromEntries(Array.from({ length: 32 }, (_, i) => [`x-${i}`, "1"]));
  const answer = await carillon.rest("POST", "/queue/publish", { queue, payload: 1, headers }, { traceparent: OTHER });
  expect(ok(answer).message_id).toMatch(/^msg_/);
  expect(await publish(carillon, queue)).toMatch(/^msg_/);
});
