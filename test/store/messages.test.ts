import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import { countDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { expireLeases, leaseMessages, liveLeases, releaseLeases, repeatLeases } from "../../src/store/leases.ts";
import type { MessageRow } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { deleteQueue } from "../../src/store/queues.ts";
import { pruneDroppedLanes, pruneMessages } from "../../src/store/retention.ts";
import { ackMessage, extendLease, nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
// Each test has a project of its own, which is as good as a database of its own.
beforeEach(() => {
  project = randomUUID();
});

async function consume(db: Db, queue: QueueRow, limit = 1, visibilitySeconds = 30): Promise<MessageRow[]> {
  return db.transaction().execute(async (trx) => {
    await expireLeases(trx, queue);
    return leaseMessages(trx, queue, { limit, visibilitySeconds, requestId: "" });
  });
}

async function consumeOne(db: Db, queue: QueueRow): Promise<MessageRow & { lease_token: string }> {
  const [message] = await consume(db, queue);
  if (message?.lease_token == null) throw new Error("nothing to consume");
  return { ...message, lease_token: message.lease_token };
}

const text = (rows: readonly MessageRow[]) => rows.map((row) => row.payload.toString());
const nack = { requeue: true, delaySeconds: 0, error: "" };

test("a release counts as a return, and as no failure", async () => {
  const queue = await makeQueue(t.db, project);
  await publish(t.db, queue, ["x"]);
  const message = await consumeOne(t.db, queue);
  await releaseLeases(t.db, queue, new Map([[message.lease_token, message.message_id]]));
  expect(await consumeOne(t.db, queue)).toMatchObject({ receive_count: 2, failure_count: 0, return_count: 1 });
});

describe("a hand-out", () => {
  test("gives messages in the order of publishing, with their bytes, headers and a receipt each", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ['{"n": 1}', "2"], { headers: { a: "b" }, contentType: "application/json" });
    const rows = await consume(t.db, queue, 10);
    expect(text(rows)).toEqual(['{"n": 1}', "2"]);
    expect(rows[0]).toMatchObject({ headers: { a: "b" }, content_type: "application/json", receive_count: 1 });
    expect(new Set(rows.map((row) => row.lease_token)).size).toBe(2);
    expect(await consume(t.db, queue, 10)).toEqual([]);
  });

  test("gives each message to one of many concurrent consumers", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(
      t.db,
      queue,
      Array.from({ length: 100 }, (_, i) => `${i}`),
    );
    const batches = await Promise.all(Array.from({ length: 10 }, () => consume(t.db, queue, 15)));
    const ids = batches.flat().map((row) => row.message_id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids.length + (await consume(t.db, queue, 100)).length).toBe(100);
  });

  test("waits for a delay", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["later"], { delaySeconds: 60 });
    expect(await consume(t.db, queue)).toEqual([]);
    await t.advanceClock(61);
    expect(text(await consume(t.db, queue))).toEqual(["later"]);
  });

  test("prefers a higher priority only where the queue says so, and never for ever", async () => {
    const plain = await makeQueue(t.db, project, { name: "plain" });
    const ranked = await makeQueue(t.db, project, { name: "ranked", enable_priority: true });
    for (const queue of [plain, ranked]) {
      await publish(t.db, queue, ["low"]);
      await publish(t.db, queue, ["high"], { priority: 9 });
    }
    expect(text(await consume(t.db, plain, 2))).toEqual(["low", "high"]);
    expect(text(await consume(t.db, ranked, 2))).toEqual(["high", "low"]);

    const ageing = await makeQueue(t.db, project, { name: "ageing", enable_priority: true });
    await publish(t.db, ageing, ["old"]);
    await t.advanceClock(10 * 60);
    await publish(t.db, ageing, ["new and urgent"], { priority: 9 });
    expect(text(await consume(t.db, ageing, 2))).toEqual(["old", "new and urgent"]);
  });

  test("is refused while the queue is paused", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["x"]);
    expect(await consume(t.db, { ...queue, paused: true })).toEqual([]);
  });

  test("can be asked for again by its request id while the leases live", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["a", "b", "c"]);
    const first = await leaseMessages(t.db, queue, { limit: 2, visibilitySeconds: 30, requestId: "r1" });
    const again = await repeatLeases(t.db, queue, "r1");
    expect(again.map((row) => row.lease_token)).toEqual(first.map((row) => row.lease_token));
    await t.advanceClock(31);
    expect(await repeatLeases(t.db, queue, "r1")).toEqual([]);
  });
});

describe("a FIFO queue", () => {
  test("has one message of a group out at a time and keeps the order over nack and lease expiry", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["a1", "a2"], { groupId: "a" });
    await publish(t.db, queue, ["b1"], { groupId: "b" });
    const out = await consume(t.db, queue, 10);
    expect(text(out)).toEqual(["a1", "b1"]);
    expect(await consume(t.db, queue, 10)).toEqual([]);

    const a1 = out[0];
    await nackMessage(t.db, queue, {
      ...nack,
      messageId: a1?.message_id ?? "",
      receipt: a1?.lease_token ?? "",
      delaySeconds: 5,
    });
    expect(await consume(t.db, queue, 10)).toEqual([]);
    await t.advanceClock(6);
    const again = await consumeOne(t.db, queue);
    expect(text([again])).toEqual(["a1"]);
    await t.advanceClock(31);
    expect(text(await consume(t.db, queue, 10)).sort()).toEqual(["a1", "b1"]);
  });

  test("without groups is one strict line", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["1", "2", "3"]);
    const seen: string[] = [];
    for (let i = 0; i < 3; i++) {
      const rows = await consume(t.db, queue, 10);
      seen.push(...text(rows));
      await ackMessage(t.db, queue, { messageId: rows[0]?.message_id ?? "", receipt: rows[0]?.lease_token ?? "" });
    }
    expect(seen).toEqual(["1", "2", "3"]);
  });

  test("keeps the order of concurrent publishers as the order of their commits", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    const order: string[] = [];
    await Promise.all(
      Array.from({ length: 8 }, async (_, i) => {
        for (let n = 0; n < 5; n++) order.push(...(await publish(t.db, queue, [`${i}:${n}`])));
      }),
    );
    const seen: string[] = [];
    for (let row = (await consume(t.db, queue))[0]; row; row = (await consume(t.db, queue))[0]) {
      seen.push(row.payload.toString());
      await ackMessage(t.db, queue, { messageId: row.message_id, receipt: row.lease_token ?? "" });
    }
    expect(seen).toHaveLength(40);
    for (let i = 0; i < 8; i++) {
      expect(seen.filter((item) => item.startsWith(`${i}:`))).toEqual(Array.from({ length: 5 }, (_, n) => `${i}:${n}`));
    }
  });

  test("keeps a group closed when a bare ack may be for an earlier lease", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["1", "2"]);
    const slow = await consumeOne(t.db, queue);
    await t.advanceClock(31);
    await consumeOne(t.db, queue);
    expect(await ackMessage(t.db, queue, { messageId: slow.message_id, receipt: undefined })).toMatchObject({
      acked: true,
    });
    expect(await consume(t.db, queue)).toEqual([]);
    await t.advanceClock(31);
    expect(text(await consume(t.db, queue))).toEqual(["2"]);
  });
});

describe("the fence", () => {
  test("refuses the receipt of a lease that has passed to another consumer", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["x"]);
    const first = await consumeOne(t.db, queue);
    await t.advanceClock(31);
    const second = await consumeOne(t.db, queue);
    const stale = { messageId: first.message_id, receipt: first.lease_token };
    expect(await ackMessage(t.db, queue, stale)).toEqual({ acked: false, reason: "lease_lost" });
    expect(await nackMessage(t.db, queue, { ...stale, ...nack })).toEqual({ nacked: false, reason: "lease_lost" });
    expect(await extendLease(t.db, queue, stale, 60)).toEqual({ extended: false, reason: "lease_lost" });
    expect(await ackMessage(t.db, queue, { ...stale, receipt: second.lease_token })).toMatchObject({
      acked: true,
      late: false,
    });
  });

  test.each([
    { which: "with its receipt", bare: false },
    { which: "bare", bare: true },
  ])("takes a late ack $which while nobody else has been given the message", async ({ bare }) => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["x"]);
    const { message_id: messageId, lease_token } = await consumeOne(t.db, queue);
    const receipt = bare ? undefined : lease_token;
    await t.advanceClock(31);
    expect(await nackMessage(t.db, queue, { messageId, receipt, ...nack })).toEqual({
      nacked: false,
      reason: "lease_expired",
    });
    expect(await ackMessage(t.db, queue, { messageId, receipt })).toEqual({ acked: true, late: true, already: false });
    expect(await ackMessage(t.db, queue, { messageId, receipt })).toEqual({ acked: true, late: false, already: true });
    expect(await consume(t.db, queue)).toEqual([]);
  });

  test("says what a bare id is when it is not leased", async () => {
    const queue = await makeQueue(t.db, project);
    const [messageId = ""] = await publish(t.db, queue, ["x"]);
    const bare = { messageId, receipt: undefined };
    expect(await ackMessage(t.db, queue, bare)).toEqual({ acked: false, reason: "not_leased" });
    await consumeOne(t.db, queue);
    await nackMessage(t.db, queue, { ...bare, ...nack, requeue: false });
    expect(await ackMessage(t.db, queue, bare)).toEqual({ acked: false, reason: "dead_lettered" });
    expect(await ackMessage(t.db, queue, { messageId: queue.queue_id, receipt: undefined })).toEqual({
      acked: false,
      reason: "not_found",
    });
  });

  test("an extended lease lasts, and one extended to 0 gives the message back without a failure", async () => {
    const queue = await makeQueue(t.db, project, { max_retries: 0 });
    await publish(t.db, queue, ["x"]);
    const { message_id: messageId, lease_token: receipt } = await consumeOne(t.db, queue);
    await extendLease(t.db, queue, { messageId, receipt }, 120);
    await t.advanceClock(60);
    expect(await consume(t.db, queue)).toEqual([]);
    expect(await extendLease(t.db, queue, { messageId, receipt }, 0)).toEqual({ extended: true, leaseExpiresAt: null });
    expect(await consumeOne(t.db, queue)).toMatchObject({ receive_count: 2, failure_count: 0 });
  });

  test("released leases count no failure and are live no more", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["x"]);
    const { lease_token, message_id } = await consumeOne(t.db, queue);
    const leases = new Map([[lease_token, message_id]]);
    expect(await liveLeases(t.db, queue, leases)).toEqual(leases);
    await releaseLeases(t.db, queue, leases);
    expect(await liveLeases(t.db, queue, leases)).toEqual(new Map());
    expect(await consumeOne(t.db, queue)).toMatchObject({ failure_count: 0 });
  });
});

describe("what a queue holds", () => {
  test("is counted by where it stands", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["1", "2", "3", "4"]);
    await publish(t.db, queue, ["later"], { delaySeconds: 60 });
    const [one, two] = await consume(t.db, queue, 3);
    await ackMessage(t.db, queue, { messageId: one?.message_id ?? "", receipt: undefined });
    await nackMessage(t.db, queue, { ...nack, messageId: two?.message_id ?? "", receipt: undefined, requeue: false });
    await t.advanceClock(20);
    expect(await queueStats(t.db, queue)).toMatchObject({
      available: 1,
      delayed: 1,
      in_flight: 1,
      dead: 1,
      oldest_age_seconds: 20,
      acked: 1,
    });
  });

  test("is purged, leased and delayed messages with it, but no dead letters", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["1", "2", "3"]);
    await publish(t.db, queue, ["later"], { delaySeconds: 60 });
    const { message_id: messageId } = await consumeOne(t.db, queue);
    await nackMessage(t.db, queue, { ...nack, messageId, receipt: undefined, requeue: false });
    await consumeOne(t.db, queue);
    expect(await purgeQueue(t.db, queue)).toBe(3);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, delayed: 0, in_flight: 0, dead: 1 });
  });

  test("is dropped when its retention ends, a dead letter's counted from its death", async () => {
    const queue = await makeQueue(t.db, project, { message_retention_days: 1 });
    await publish(t.db, queue, ["1", "2"]);
    await t.advanceClock(80_000);
    const { message_id: messageId } = await consumeOne(t.db, queue);
    await nackMessage(t.db, queue, { ...nack, messageId, receipt: undefined, requeue: false });
    await t.advanceClock(7_000);
    await pruneMessages(t.db, 1_000);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, dead: 1 });
    await t.advanceClock(80_000);
    await pruneMessages(t.db, 1_000);
    expect(await countDeadLetters(t.db, queue, {})).toBe(0);
  });

  test("is out of reach once the queue is deleted, and goes in the end", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["1", "2"]);
    await t.db.transaction().execute((trx) => deleteQueue(trx, queue));
    const next = await makeQueue(t.db, project);
    expect(await consume(t.db, next)).toEqual([]);
    while ((await pruneDroppedLanes(t.db, 10)) > 0);
    const left = await t.db
      .selectFrom("messages")
      .select("message_id")
      .where("project_id", "=", queue.project_id)
      .execute();
    expect(left).toEqual([]);
  });
});
