import { connect } from "node:http2";
import { setTimeout as delay } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  type ConsumeSessionRequest,
  ConsumeSessionRequestSchema,
  ConsumeStreamRequestSchema,
  ConsumeStreamResponseSchema,
  type QueueMessage,
  QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { consume, createQueue, eventually, ok, publish, unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  const take = async (queue: string, count: number) =>
    (await face.call("consume", { queue, max_messages: count })).messages as {
      message_id: string;
      receipt: string;
    }[];
  const fill = async (type: "standard" | "fifo", count: number) => {
    const queue = unique("q");
    await ok(await carillon.rest("POST", "/queue/create", { name: queue, type }));
    const messages = Array.from({ length: count }, (_, i) => ({ payload: i, group_id: `g${i}` }));
    await face.call("publishBatch", { queue, messages });
    return queue;
  };
  const held = ({ message_id, receipt }: { message_id: string; receipt: string }) => ({ message_id, receipt });

  describe.each(["standard", "fifo"] as const)("batches in a %s queue", (type) => {
    test("ack each message and say for each what became of it", async () => {
      const queue = await fill(type, 4);
      const [a, b, c] = (await take(queue, 3)).map(held);
      if (a === undefined || b === undefined || c === undefined) throw new Error("three were asked for");
      await face.call("ack", { queue, ...c });
      const items = [b, { ...a, receipt: b.receipt }, c, { message_id: "msg_none" }, { message_id: a.message_id }];
      const { results } = await face.call("ackBatch", { queue, items });
      expect(results).toMatchObject([
        { message_id: b.message_id, acked: true, already: false },
        { message_id: a.message_id, acked: false, reason: "lease_lost" },
        { message_id: c.message_id, acked: true, already: true },
        { message_id: "msg_none", acked: false, reason: "not_found" },
        { message_id: a.message_id, acked: true, already: false },
      ]);
      expect(await face.call("getQueueStats", { queue })).toMatchObject({ available: 1, in_flight: 0 });
    });

    test("nack each message with its own delay, requeue and reason", async () => {
      const queue = await fill(type, 3);
      const [a, b, c] = (await take(queue, 3)).map(held);
      const { results } = await face.call("nackBatch", {
        queue,
        items: [{ ...a }, { ...b, delay_seconds: 600 }, { ...c, requeue: false, reason: "spoiled" }],
      });
      expect(results).toMatchObject([
        { nacked: true, requeued: true },
        { nacked: true, requeued: true },
        { nacked: true, requeued: false, reason: "rejected" },
      ]);
      expect(await face.call("getQueueStats", { queue })).toMatchObject({ available: 1, delayed: 1, dlq: 1 });
    });

    test("extend each lease, and give back what is extended by 0", async () => {
      const queue = await fill(type, 2);
      const [a, b] = (await take(queue, 2)).map(held);
      const { results } = await face.call("extendLeaseBatch", {
        queue,
        items: [
          { ...a, visibility_timeout: 3_600 },
          { ...b, visibility_timeout: 0 },
        ],
      });
      expect(results[0]).toMatchObject({ extended: true });
      expect(Date.parse(results[0].lease_expires_at)).toBeGreaterThan(Date.now() + 3_000_000);
      expect(results[1]).toMatchObject({ extended: true });
      expect((await take(queue, 5)).map(({ message_id }) => message_id)).toEqual([b?.message_id]);
    });

    test("may be empty, but the queue must be there", async () => {
      const queue = await fill(type, 1);
      expect(await face.call("ackBatch", { queue, items: [] })).toEqual({ results: [] });
      await expect(face.call("ackBatch", { queue: unique("none"), items: [] })).rejects.toMatchObject({
        reason: "QUEUE_NOT_FOUND",
      });
    });

    test("of one idempotency key have one effect", async () => {
      const queue = await fill(type, 1);
      const items = (await take(queue, 1)).map(held);
      const request = { queue, items, idempotency_key: unique("k") };
      const first = await face.call("ackBatch", request);
      expect(first.results).toMatchObject([{ acked: true, already: false }]);
      expect(await face.call("ackBatch", request)).toEqual(first);
    });
  });
});

describe.each(queueFaces(() => carillon))("a pull over $name", (face) => {
  test("tells what else the queue holds", async () => {
    const queue = unique("q");
    await face.call("publishBatch", { queue, messages: Array.from({ length: 100 }, (_, n) => ({ payload: n })) });
    let taken = 0;
    // The figures may be a second old, and are left out where they would hold up a pull.
    const { backlog } = await eventually(
      async () => {
        const pulled = await face.call("consume", { queue, max_messages: 2 });
        taken += pulled.messages.length;
        return pulled;
      },
      (pulled) => pulled.backlog !== undefined,
    );
    expect(taken).toBeGreaterThanOrEqual(2);
    expect(backlog.available).toBeGreaterThanOrEqual(100 - taken);
    expect(backlog.available).toBeLessThanOrEqual(98);
    expect(backlog.oldest_age_seconds).toBeGreaterThanOrEqual(0);
  });
});

const client = () =>
  createClient(
    QueueService,
    createGrpcTransport({
      baseUrl: carillon.url,
      interceptors: [
        (next) => (request) => {
          request.header.set("authorization", `Bearer ${TEST_KEY}`);
          return next(request);
        },
      ],
    }),
  );

interface Streamed {
  readonly message_id: string;
  readonly receipt: string;
}

/** The messages of one answer of a stream; none: a heartbeat. */
type Answer = readonly Streamed[];

/** Opens a stream over REST or gRPC and gives its answers, or their messages one by one; `close` ends it. */
function open(kind: "REST" | "gRPC", queue: string, options: Record<string, unknown>) {
  const gone = new AbortController();
  const answers = kind === "REST" ? overRest(queue, options, gone.signal) : overGrpc(queue, options, gone.signal);
  return { answers, messages: flat(answers), close: () => gone.abort() };
}

async function* flat(answers: AsyncGenerator<Answer>): AsyncGenerator<Streamed> {
  for await (const messages of answers) yield* messages;
}

async function* overRest(queue: string, options: object, signal: AbortSignal): AsyncGenerator<Answer> {
  const response = await fetch(`${carillon.url}/v1/scheduling/queue/consume_stream`, {
    method: "POST",
    headers: { authorization: `Bearer ${TEST_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ queue, ...options }),
    signal,
  });
  let rest = "";
  for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) yield JSON.parse(line).messages;
  }
}

async function* overGrpc(queue: string, options: Record<string, unknown>, signal: AbortSignal): AsyncGenerator<Answer> {
  const names = Object.entries(options).map(([name, value]) => [
    name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
    value,
  ]);
  const answers = client().consumeStream({ queue, ...Object.fromEntries(names) }, { signal });
  for await (const { messages } of answers) {
    yield messages.map(({ messageId, receipt = "" }) => ({ message_id: messageId, receipt }));
  }
}

/** gRPC by hand, for a client that takes no more than is asked of it: a library reads ahead. */
async function* overHttp2(
  queue: string,
  { max_batch, max_unacked }: { max_batch: number; max_unacked: number },
  signal: AbortSignal,
): AsyncGenerator<Answer> {
  const session = connect(carillon.url);
  signal.addEventListener("abort", () => session.destroy());
  const stream = session.request({
    ":method": "POST",
    ":path": "/scheduling.v1.QueueService/ConsumeStream",
    "content-type": "application/grpc+proto",
    te: "trailers",
    authorization: `Bearer ${TEST_KEY}`,
  });
  const request = create(ConsumeStreamRequestSchema, { queue, maxBatch: max_batch, maxUnacked: max_unacked });
  const message = toBinary(ConsumeStreamRequestSchema, request);
  const header = Buffer.alloc(5);
  header.writeUInt32BE(message.length, 1);
  stream.end(Buffer.concat([header, message]));
  let rest = Buffer.alloc(0);
  for await (const chunk of stream) {
    rest = Buffer.concat([rest, chunk]);
    for (let end = frameEnd(rest); rest.length >= end; end = frameEnd(rest)) {
      const { messages } = fromBinary(ConsumeStreamResponseSchema, rest.subarray(5, end));
      rest = rest.subarray(end);
      yield messages.map(({ messageId, receipt = "" }) => ({ message_id: messageId, receipt }));
    }
  }
}

const frameEnd = (bytes: Buffer) => (bytes.length < 5 ? Number.POSITIVE_INFINITY : 5 + bytes.readUInt32BE(1));

async function next<T>(items: AsyncGenerator<T>, count: number): Promise<T[]> {
  const found: T[] = [];
  while (found.length < count) {
    const { value, done } = await items.next();
    if (done === true) throw new Error("the stream has ended");
    found.push(value);
  }
  return found;
}

/** Asks until what counts has stayed the same for longer than a lease may wait. */
async function settled<T>(ask: () => Promise<T>, count: (answer: T) => number): Promise<T> {
  for (let before = -1; ; ) {
    const answer = await ask();
    if (count(answer) === before) return answer;
    before = count(answer);
    await delay(1_500);
  }
}

const stats = async (queue: string) => ok(await carillon.rest("GET", `/queue/stats/${queue}`));

describe.each(["REST", "gRPC"] as const)("a stream over %s", (kind) => {
  test("hands out no more messages than it may have out, and goes on when some are acked elsewhere", async () => {
    const queue = await createQueue(carillon);
    for (let i = 0; i < 6; i++) await publish(carillon, queue, { payload: i });
    const stream = open(kind, queue, { max_unacked: 4 });
    const first = await next(stream.messages, 4);
    expect(await stats(queue)).toMatchObject({ in_flight: 4, available: 2 });
    await carillon.rest("POST", "/queue/ack", { queue, message_id: first[0]?.message_id });
    await next(stream.messages, 1);
    expect(await stats(queue)).toMatchObject({ in_flight: 4, available: 1 });
    stream.close();
  });

  test("hands out no more bytes than it may have out, but always one message", async () => {
    const queue = await createQueue(carillon);
    for (let i = 0; i < 4; i++) await publish(carillon, queue, { payload: "x".repeat(998) });
    const stream = open(kind, queue, { max_unacked_bytes: 1_500 });
    const first = await next(stream.messages, 2);
    await eventually(
      () => stats(queue),
      (figures) => figures.in_flight === 2 && figures.available === 2,
    );
    await carillon.rest("POST", "/queue/ack", { queue, message_id: first[0]?.message_id });
    await next(stream.messages, 1);
    stream.close();
  });

  test("sends several messages in one answer, and no more than it is asked to", async () => {
    const queue = await createQueue(carillon);
    await carillon.rest("POST", "/queue/publish_batch", { queue, messages: Array(10).fill({ payload: 1 }) });
    const stream = open(kind, queue, { max_batch: 3 });
    const sizes: number[] = [];
    for await (const messages of stream.answers) {
      if (messages.length > 0) sizes.push(messages.length);
      if (sizes.reduce((a, b) => a + b, 0) === 10) break;
    }
    stream.close();
    expect(sizes).toEqual([3, 3, 3, 1]);
  });

  test("says at once that it is open, and then that it lives as often as it is asked to", async () => {
    const queue = await createQueue(carillon);
    const stream = open(kind, queue, { heartbeat_seconds: 1 });
    expect(await next(stream.answers, 1)).toEqual([[]]);
    const openedAt = performance.now();
    expect(await next(stream.answers, 2)).toEqual([[], []]);
    const tookMs = performance.now() - openedAt;
    expect(tookMs).toBeGreaterThan(1_900);
    expect(tookMs).toBeLessThan(6_000);
    stream.close();
  });

  test("that ends gives back what it had out within a second, and nothing that was acked", async () => {
    const queue = await createQueue(carillon, { max_retries: 0 });
    for (let i = 0; i < 3; i++) await publish(carillon, queue, { payload: i });
    const stream = open(kind, queue, {});
    const [acked, ...others] = await next(stream.messages, 3);
    expect(ok(await carillon.rest("POST", "/queue/ack", { queue, ...acked }))).toMatchObject({ acked: true });
    stream.close();
    const closedAt = performance.now();
    const back = await eventually(
      () => consume(carillon, queue, { wait_seconds: 1 }),
      (messages) => messages.length > 0,
    );
    expect(performance.now() - closedAt).toBeLessThan(1_500);
    const ids = (messages: readonly { message_id: string }[]) =>
      messages.map(({ message_id }) => message_id).toSorted();
    expect(ids(back)).toEqual(ids(others));
    for (const { failures, returns } of back) {
      expect(failures).toBe(0);
      // Once more where a hand-out to the stream was under way when it ended.
      expect(returns).toBeGreaterThanOrEqual(1);
    }
  });

  test("hands a message out with its whole lease, however long a slow client let it wait", {
    timeout: 60_000,
  }, async () => {
    const queue = await createQueue(carillon, { visibility_timeout_default: 60 });
    const total = 16;
    for (let i = 0; i < total; i++) await publish(carillon, queue, { payload: "x".repeat(1_000_000) });
    const gone = new AbortController();
    const options = { max_batch: 1, max_unacked: total };
    const messages = flat((kind === "REST" ? overRest : overHttp2)(queue, options, gone.signal));
    const first = await next(messages, 1);
    // What fits into the buffers on the way has been handed out, and one waits.
    const { in_flight: out } = await settled(
      () => stats(queue),
      ({ in_flight }) => in_flight,
    );
    expect(out).toBeLessThan(total);
    await carillon.database.advanceClock(40);
    const received = [...first, ...(await next(messages, out - 1))].map(({ message_id }) => message_id);
    await carillon.database.advanceClock(30);
    const lost = new Set((await consume(carillon, queue)).map(({ message_id }) => message_id));
    expect(received.filter((id) => !lost.has(id))).toEqual(received.slice(-1));
    gone.abort();
  });

  test("keeps its leases for as long as it is open, if asked, and gives them back when it ends", async () => {
    const queue = await createQueue(carillon);
    await publish(carillon, queue, { payload: 1 });
    const stream = open(kind, queue, { extend_leases: true, visibility_timeout: 3 });
    const [message] = await next(stream.messages, 1);
    // Each second the lease is moved to three seconds from then; without it, it would be over after the second step.
    for (let i = 0; i < 4; i++) {
      await delay(1_500);
      await carillon.database.advanceClock(1.5);
    }
    expect(await consume(carillon, queue)).toEqual([]);
    stream.close();
    const [again] = await eventually(
      () => consume(carillon, queue),
      (messages) => messages.length === 1,
    );
    expect(again).toMatchObject({ message_id: message?.message_id, failures: 0 });
  });

  test("shares a queue with others: each of them gets at least half of its share", async () => {
    const queue = await createQueue(carillon);
    const counts = [0, 0, 0, 0];
    const streams = counts.map(() => open(kind, queue, { max_unacked: 100 }));
    const all = Promise.withResolvers<void>();
    const readers = streams.map(async ({ messages }, i) => {
      try {
        for await (const { message_id } of messages) {
          counts[i] = (counts[i] ?? 0) + 1;
          await carillon.rest("POST", "/queue/ack", { queue, message_id });
          if (counts.reduce((a, b) => a + b, 0) === 240) all.resolve();
        }
      } catch (error) {
        if (!(error instanceof ConnectError) && !(error instanceof DOMException)) all.reject(error);
      }
    });
    for (let i = 0; i < 240; i++) await publish(carillon, queue, { payload: i });
    await all.promise;
    for (const { close } of streams) close();
    await Promise.all(readers);
    expect(Math.min(...counts)).toBeGreaterThanOrEqual(30);
  });
});

describe("a session", () => {
  /** A session whose requests are sent one by one. */
  function session(queue: string, options: object = {}) {
    const pending: ConsumeSessionRequest[] = [];
    let wake = () => {};
    let closed = false;
    const send = (request: ConsumeSessionRequest["request"]) => {
      pending.push(create(ConsumeSessionRequestSchema, { request }));
      wake();
    };
    async function* requests() {
      for (;;) {
        for (let request = pending.shift(); request !== undefined; request = pending.shift()) yield request;
        if (closed) return;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
    const opening = create(ConsumeSessionRequestSchema, { request: { case: "open", value: { queue, ...options } } });
    pending.push(opening);
    const answers = client().consumeSession(requests())[Symbol.asyncIterator]();
    return {
      send,
      close: () => {
        closed = true;
        wake();
      },
      async next() {
        for (;;) {
          const { value, done } = await answers.next();
          if (done === true) return undefined;
          if (value.messages.length > 0 || value.acked || value.nacked || value.extended) return value;
        }
      },
    };
  }
  const held = ({ messageId, receipt = "" }: QueueMessage) => ({
    $typeName: "scheduling.v1.AckBatchItem" as const,
    messageId,
    receipt,
  });

  test("hands messages out and answers acks, nacks and extensions in the same call", async () => {
    const queue = await createQueue(carillon);
    for (let i = 0; i < 3; i++) await publish(carillon, queue, { payload: i });
    const { send, next, close } = session(queue, { maxBatch: 3 });
    const messages: QueueMessage[] = [];
    while (messages.length < 3) messages.push(...((await next())?.messages ?? []));
    const [a, b, c] = messages as [QueueMessage, QueueMessage, QueueMessage];
    send({ case: "ack", value: { $typeName: "scheduling.v1.SessionAck", items: [held(a), held(a)] } });
    expect((await next())?.acked?.results).toMatchObject([{ acked: true }, { acked: true }]);
    send({
      case: "nack",
      value: {
        $typeName: "scheduling.v1.SessionNack",
        items: [{ ...held(b), $typeName: "scheduling.v1.NackBatchItem", requeue: false, reason: "spoiled" }],
      },
    } as ConsumeSessionRequest["request"]);
    expect((await next())?.nacked?.results).toMatchObject([{ nacked: true, requeued: false, reason: "rejected" }]);
    send({
      case: "extend",
      value: {
        $typeName: "scheduling.v1.SessionExtend",
        items: [{ ...held(c), $typeName: "scheduling.v1.ExtendLeaseBatchItem", visibilityTimeout: 3_600 }],
      },
    });
    expect((await next())?.extended?.results).toMatchObject([{ extended: true }]);
    close();
    expect(await next()).toBeUndefined();
    // What was not settled is given back when the session is over.
    await eventually(
      () => stats(queue),
      (figures) => figures.available === 1 && figures.in_flight === 0 && figures.dlq === 1,
    );
  });

  test("must be opened by its first request, and by that only", async () => {
    const queue = await createQueue(carillon);
    async function* unopened() {
      yield create(ConsumeSessionRequestSchema, { request: { case: "ack", value: { items: [] } } });
    }
    const first = client().consumeSession(unopened())[Symbol.asyncIterator]().next();
    await expect(first).rejects.toMatchObject({ code: Code.InvalidArgument });
    const { send, next } = session(queue);
    send({ case: "open", value: { queue } } as ConsumeSessionRequest["request"]);
    await expect(next()).rejects.toMatchObject({ code: Code.InvalidArgument });
  });

  test("needs a queue", async () => {
    await expect(session(unique("none")).next()).rejects.toMatchObject({ code: Code.NotFound });
  });
});
