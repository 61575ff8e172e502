import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { consume, createQueue, ok, publish, refused, refusedField, unique, warning } from "./calls.ts";
import { expectAbsent, expectShape } from "./shape.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

const post = (path: string, body: object = {}) => carillon.rest("POST", path, body);
const get = async (path: string) => ok(await carillon.rest("GET", path));
const ack = async (body: object) => ok(await post("/queue/ack", body));
const nack = async (body: object) => ok(await post("/queue/nack", body));

/** A queue with dead letters of these payloads, oldest first, and their ids. */
async function deadLetters(count: number, fields: object = {}): Promise<{ queue: string; ids: string[] }> {
  const queue = await createQueue(carillon, fields);
  const ids: string[] = [];
  for (let n = 0; n < count; n++) {
    const message_id = await publish(carillon, queue, { payload: n });
    await consume(carillon, queue);
    await nack({ queue, message_id, requeue: false });
    ids.push(message_id);
  }
  return { queue, ids };
}

describe("S31: publish_batch", () => {
  test("S31: messages are publish bodies without queue; ids come in their order", async () => {
    const queue = await createQueue(carillon, { type: "fifo" });
    const messages = [
      { payload: 1, group_id: "a" },
      { payload: "two", group_id: "b", priority: 3, headers: { "x-n": "2" } },
      { payload: [3], group_id: "c", delay_seconds: 60 },
    ];
    const { message_ids } = ok(await post("/queue/publish_batch", { queue, messages }));
    const got = await consume(carillon, queue);
    expect(got.map(({ message_id, payload }) => [message_id, payload])).toEqual([
      [message_ids[0], 1],
      [message_ids[1], "two"],
    ]);
    expect(got[1]).toMatchObject({ priority: 3, headers: { "x-n": "2" } });
    await carillon.database.advanceClock(61);
    expect(await consume(carillon, queue, { max_messages: 3 })).toContainEqual(
      expect.objectContaining({ message_id: message_ids[2], payload: [3] }),
    );
  });

  test("S31: an empty array is legal, 1000 are, 1001 are not", async () => {
    const queue = await createQueue(carillon);
    expect(ok(await post("/queue/publish_batch", { queue, messages: [] }))).toMatchObject({ message_ids: [] });
    const many = (count: number) => ({ queue, messages: Array.from({ length: count }, () => ({ payload: 1 })) });
    expect(ok(await post("/queue/publish_batch", many(1_000))).message_ids).toHaveLength(1_000);
    refusedField(await post("/queue/publish_batch", many(1_001)), "messages");
  });

  test("S31: all or nothing", async () => {
    const queue = await createQueue(carillon);
    const messages = [{ payload: 1 }, { payload: 2, priority: 10 }, { delay_seconds: 1 }];
    refusedField(await post("/queue/publish_batch", { queue, messages }), "messages[1].priority");
    expect(await get(`/queue/stats/${queue}`)).toMatchObject({ available: 0 });
  });
});

test("S32: a message that is handed out has all fields, a dead letter says where it came from and why", async () => {
  const queue = await createQueue(carillon, { type: "fifo" });
  const message_id = await publish(carillon, queue, { payload: { a: 1 }, group_id: "g", headers: { "X-A": "b" } });
  const [message] = await consume(carillon, queue);
  expectShape(message, {
    message_id: "string",
    payload: "object",
    attempts: "number",
    enqueued_at: "time",
    available_at: "time",
    priority: "number",
    group_id: "string",
    headers: "object",
    receipt: "string",
    lease_expires_at: "time",
  });
  expect(message).toMatchObject({ attempts: 1, group_id: "g", headers: { "x-a": "b" } });
  expectAbsent(message, "reason", "error", "dead_lettered_at", "source_queue");
  await nack({ queue, message_id, requeue: false, reason: "broken" });
  const [dead] = (await get(`/queue/dlq/list/${queue}`)).items;
  expect(dead).toMatchObject({
    message_id,
    payload: { a: 1 },
    reason: "rejected",
    error: "broken",
    source_queue: queue,
  });
  expectShape(dead, { dead_lettered_at: "time" });
  expectAbsent(dead, "receipt", "lease_expires_at");
});

describe("S33: consume", () => {
  test("S33: max_messages is 1 by default and at most 100", async () => {
    const queue = await createQueue(carillon);
    for (let n = 0; n < 3; n++) await publish(carillon, queue);
    expect(ok(await post("/queue/consume", { queue })).messages).toHaveLength(1);
    expect(ok(await post("/queue/consume", { queue, max_messages: 100 })).messages).toHaveLength(2);
    for (const max_messages of [0, 101]) {
      refusedField(await post("/queue/consume", { queue, max_messages }), "max_messages");
    }
  });

  test("S33: the lease is the queue's, or that of the call", async () => {
    const queue = await createQueue(carillon, { visibility_timeout_default: 100 });
    const leaseSeconds = async (fields: object) => {
      await publish(carillon, queue);
      const now = (await carillon.database.now()).getTime();
      const [message] = await consume(carillon, queue, fields);
      return Math.round((Date.parse(message?.lease_expires_at) - now) / 1_000);
    };
    expect(await leaseSeconds({})).toBe(100);
    expect(await leaseSeconds({ visibility_timeout: 500 })).toBe(500);
  });

  test("S33: wait_seconds waits for a message, 0 to 20 seconds", async () => {
    const queue = await createQueue(carillon);
    const waiting = post("/queue/consume", { queue, wait_seconds: 20 });
    const message_id = await publish(carillon, queue);
    expect(ok(await waiting).messages).toMatchObject([{ message_id }]);
    for (const wait_seconds of [-1, 21]) {
      refusedField(await post("/queue/consume", { queue, wait_seconds }), "wait_seconds");
    }
  });

  test("S33: the same request_id, or idempotency_key, gets the same leases again while they live", async () => {
    for (const name of ["request_id", "idempotency_key"]) {
      const queue = await createQueue(carillon, { visibility_timeout_default: 30 });
      for (let n = 0; n < 3; n++) await publish(carillon, queue);
      const request = { queue, max_messages: 2, [name]: unique("request") };
      const first = ok(await post("/queue/consume", request)).messages;
      expect(first).toHaveLength(2);
      expect(ok(await post("/queue/consume", request)).messages).toEqual(first);
      expect(await consume(carillon, queue)).toHaveLength(1);
    }
  });
});

describe("S34: ack and nack", () => {
  test("S34: a receipt fences: one of an earlier hand-out is refused with lease_lost", async () => {
    const queue = await createQueue(carillon, { visibility_timeout_default: 10 });
    const message_id = await publish(carillon, queue);
    const [old] = await consume(carillon, queue);
    await carillon.database.advanceClock(11);
    const [current] = await consume(carillon, queue);
    const stale = { queue, message_id, receipt: old?.receipt };
    expect(await ack(stale)).toMatchObject({ acked: false, reason: "lease_lost" });
    expect(await nack(stale)).toMatchObject({ nacked: false, requeued: false, reason: "lease_lost" });
    expect(await ack({ queue, message_id, receipt: current?.receipt })).toMatchObject({ acked: true, late: false });
  });

  test("S34: a bare id acks the live lease; a late ack counts while nobody else has the message", async () => {
    const queue = await createQueue(carillon, { visibility_timeout_default: 10 });
    const live = await publish(carillon, queue);
    await consume(carillon, queue);
    expect(await ack({ queue, message_id: live })).toEqual({
      message_id: live,
      acked: true,
      late: false,
      already: false,
    });
    const late = await publish(carillon, queue);
    await consume(carillon, queue);
    await carillon.database.advanceClock(11);
    expect(await nack({ queue, message_id: late })).toMatchObject({ nacked: false, reason: "lease_expired" });
    expect(await ack({ queue, message_id: late })).toMatchObject({ acked: true, late: true });
  });

  test("S34: an ack is known for 24 hours", async () => {
    const queue = await createQueue(carillon);
    const message_id = await publish(carillon, queue);
    await consume(carillon, queue);
    await ack({ queue, message_id });
    expect(await ack({ queue, message_id })).toMatchObject({ acked: true, already: true });
    expect(await nack({ queue, message_id })).toMatchObject({ nacked: false, reason: "already_acked" });
  });

  test("S34: what is not leased is not acked, and the answer says why", async () => {
    const queue = await createQueue(carillon);
    const available = await publish(carillon, queue);
    const delayed = await publish(carillon, queue, { delay_seconds: 60 });
    for (const message_id of [available, delayed]) {
      expect(await ack({ queue, message_id })).toMatchObject({ acked: false, reason: "not_leased" });
      expect(await nack({ queue, message_id })).toMatchObject({ nacked: false, reason: "not_leased" });
    }
    for (const message_id of ["...", "msg_01HX0000000000000000000000"]) {
      expect(await ack({ queue, message_id })).toMatchObject({ message_id, acked: false, reason: "not_found" });
      expect(await nack({ queue, message_id })).toMatchObject({ message_id, nacked: false, reason: "not_found" });
    }
    const dead = await deadLetters(1);
    expect(await ack({ queue: dead.queue, message_id: dead.ids[0] })).toMatchObject({
      acked: false,
      reason: "dead_lettered",
    });
  });

  test("S34: nack requeues by default, after delay_seconds if given; requeue false makes a dead letter", async () => {
    const queue = await createQueue(carillon);
    const message_id = await publish(carillon, queue);
    await consume(carillon, queue);
    expect(await nack({ queue, message_id })).toEqual({ message_id, nacked: true, requeued: true });
    await consume(carillon, queue);
    await nack({ queue, message_id, delay_seconds: 60 });
    expect(await consume(carillon, queue)).toEqual([]);
    await carillon.database.advanceClock(61);
    expect(await consume(carillon, queue)).toHaveLength(1);
    const rejected = await nack({ queue, message_id, requeue: false });
    expect(rejected).toEqual({ message_id, nacked: true, requeued: false, reason: "rejected" });
  });

  test("S34: in a fifo queue a bare ack after a lost lease keeps the group closed until the lease ends", async () => {
    const queue = await createQueue(carillon, { type: "fifo", visibility_timeout_default: 10 });
    const first = await publish(carillon, queue);
    const second = await publish(carillon, queue);
    await consume(carillon, queue);
    await carillon.database.advanceClock(11);
    expect(await consume(carillon, queue)).toMatchObject([{ message_id: first, attempts: 2 }]);
    expect(await ack({ queue, message_id: first })).toMatchObject({ acked: true });
    expect(await consume(carillon, queue)).toEqual([]);
    await carillon.database.advanceClock(11);
    expect(await consume(carillon, queue)).toMatchObject([{ message_id: second }]);
  });
});

test("S35: dlq.list means the source queue, or what a named dead letter queue holds; scope forces either", async () => {
  const named = await createQueue(carillon);
  const { queue, ids } = await deadLetters(1, { dead_letter_queue: named });
  const list = async (name: string, scope = "") => (await get(`/queue/dlq/list/${name}${scope}`)).items;
  expect(await list(queue)).toMatchObject([{ message_id: ids[0], source_queue: queue }]);
  expect(await list(named)).toMatchObject([{ message_id: ids[0], source_queue: queue }]);
  expect(await list(named, "?scope=source")).toEqual([]);
  expect(await list(named, "?scope=self")).toMatchObject([{ message_id: ids[0] }]);
  expect(await list(queue, "?scope=self")).toEqual([]);
  refusedField(await carillon.rest("GET", `/queue/dlq/list/${queue}?scope=all`), "scope");
});

describe("S36: dlq.redrive", () => {
  test("S36: the example's max_messages and differing queue work; oldest first, what is left is told", async () => {
    const { queue, ids } = await deadLetters(3);
    const answer = await post(`/queue/dlq/redrive/${queue}`, { queue: "orders", max_messages: 2 });
    expect(ok(answer)).toEqual({ queue, redriven: 2, remaining: 1 });
    expect(warning(answer)).toBe("body.queue ignored, path names the queue");
    const back = (await consume(carillon, queue)).map(({ message_id }) => message_id);
    expect(back.sort()).toEqual([ids[0], ids[1]].sort());
    expect(ok(await post(`/queue/dlq/redrive/${queue}`))).toEqual({ queue, redriven: 1 });
    for (const max_messages of [0, 10_001]) {
      refusedField(await post(`/queue/dlq/redrive/${queue}`, { max_messages }), "max_messages");
    }
  });

  test("S36: since is inclusive on the time of death", async () => {
    const { queue } = await deadLetters(2);
    await carillon.database.advanceClock(60);
    const message_id = await publish(carillon, queue);
    await consume(carillon, queue);
    await nack({ queue, message_id, requeue: false });
    const since = (await get(`/queue/dlq/list/${queue}`)).items[0].dead_lettered_at;
    expect(ok(await post(`/queue/dlq/redrive/${queue}`, { since }))).toEqual({ queue, redriven: 1 });
    expect(await consume(carillon, queue)).toMatchObject([{ message_id }]);
  });

  test("S36: message_id alone puts back that one; with since it is a 400; unknown it is a 404", async () => {
    const { queue, ids } = await deadLetters(2);
    expect(ok(await post(`/queue/dlq/redrive/${queue}`, { message_id: ids[1] }))).toMatchObject({ redriven: 1 });
    expect(await consume(carillon, queue)).toMatchObject([{ message_id: ids[1] }]);
    const both = { message_id: ids[0], since: "2020-01-01" };
    refusedField(await post(`/queue/dlq/redrive/${queue}`, both), "since");
    for (const message_id of [ids[1], "..."]) {
      const unknown = await post(`/queue/dlq/redrive/${queue}`, { message_id });
      refused(unknown, 404, "NOT_FOUND", "DEAD_LETTER_NOT_FOUND");
    }
  });
});

test("S37: purge removes available, delayed and leased messages, no dead letters, and answers a number", async () => {
  const { queue } = await deadLetters(1);
  await publish(carillon, queue);
  await consume(carillon, queue);
  await publish(carillon, queue);
  await publish(carillon, queue, { delay_seconds: 60 });
  const answer = await post(`/queue/purge/${queue}`, { queue: "..." });
  expect(ok(answer)).toEqual({ queue, purged: 3 });
  expect(warning(answer)).toContain("body.queue ignored");
  expect(await get(`/queue/stats/${queue}`)).toMatchObject({ available: 0, delayed: 0, in_flight: 0, dlq: 1 });
});

test("S38: stats count available, delayed, leased and this source's dead letters, and tell rates and the oldest age", async () => {
  const shared = await createQueue(carillon);
  await deadLetters(1, { dead_letter_queue: shared });
  const { queue } = await deadLetters(2, { dead_letter_queue: shared });
  expect(await get(`/queue/stats/${queue}`)).toMatchObject({ available: 0, dlq: 2, paused: false });
  expectAbsent(await get(`/queue/stats/${queue}`), "oldest_age_seconds");
  await publish(carillon, queue);
  await publish(carillon, queue);
  await publish(carillon, queue, { delay_seconds: 600 });
  await carillon.database.advanceClock(50);
  await consume(carillon, queue, { max_messages: 1 });
  const stats = await get(`/queue/stats/${queue}`);
  expect(stats).toMatchObject({ available: 1, delayed: 1, in_flight: 1, dlq: 2 });
  expect(stats.oldest_age_seconds).toBeGreaterThanOrEqual(50);
  expectShape(stats.rates, { published_per_second: "number", acked_per_second: "number" });
  expect(stats.rates.published_per_second).toBeGreaterThan(0);
});
