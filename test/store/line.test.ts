import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { handOut, newHandOutMemory } from "../../src/store/hand-outs.ts";
import { expireLeases, leasesOf, liveLeases, releaseLeases } from "../../src/store/leases.ts";
import { publishInLine } from "../../src/store/line.ts";
import { ackInLine, expireClaims } from "../../src/store/line-leases.ts";
import type { MessageRow, NewMessage } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { deleteQueue, type NamedQueueRow, updateQueue } from "../../src/store/queues.ts";
import { pruneDroppedLanes, pruneLines } from "../../src/store/retention.ts";
import { ackMessage, extendLease, nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { deadLetters, makeQueue, publish as publishSingly } from "../support/queues.ts";

let t: TestDatabase;
let queue: NamedQueueRow;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(async () => {
  queue = await makeQueue(t.db, randomUUID());
});

async function publish(...payloads: string[]): Promise<string[]> {
  const placed = await publishInLine(t.db, queue.project_id, queue.name, payloads.map(plain));
  if (placed === undefined) throw new Error("the queue has no line");
  return [...placed.ids];
}

function plain(payload: string): NewMessage {
  return {
    payload: Buffer.from(payload),
    contentType: "application/json",
    headers: {},
    groupId: "",
    priority: 0,
    delaySeconds: 0,
  };
}

async function consume(limit: number, visibilitySeconds?: number): Promise<MessageRow[]> {
  const rows = await handOut(t.db, queue.project_id, queue.name, [{ limit, visibilitySeconds }]);
  return rows?.[0] ?? [];
}

const text = (rows: readonly MessageRow[]) => rows.map((row) => row.payload.toString());
const key = (row: MessageRow | undefined) => ({
  messageId: row?.message_id ?? "",
  receipt: row?.lease_token ?? undefined,
});
const ack = (row: MessageRow | undefined) => t.db.transaction().execute((trx) => ackMessage(trx, queue, key(row)));
const nack = (row: MessageRow | undefined, more: object = {}) =>
  t.db
    .transaction()
    .execute((trx) => nackMessage(trx, queue, { ...key(row), requeue: true, delaySeconds: 0, error: "", ...more }));

async function inLine(): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from line_messages where lane_id = ${queue.lane_id}`.execute(t.db);
  return rows[0]?.count ?? 0;
}

describe("the line", () => {
  test("hands messages out in the order of publishing, byte for byte, with headers, group, priority and content type", async () => {
    const message = { ...plain("x"), contentType: "text/plain", headers: { a: "b" }, groupId: "g", priority: 3 };
    await publishInLine(t.db, queue.project_id, queue.name, [plain('{"n": 1}'), message, plain("")]);
    const rows = await consume(10);
    expect(text(rows)).toEqual(['{"n": 1}', "x", ""]);
    expect(rows[0]).toMatchObject({
      content_type: "application/json",
      headers: {},
      group_id: "",
      priority: 0,
      receive_count: 1,
    });
    expect(rows[1]).toMatchObject({ content_type: "text/plain", headers: { a: "b" }, group_id: "g", priority: 3 });
    expect(new Set(rows.map((row) => row.lease_token)).size).toBe(3);
    expect(await consume(10)).toEqual([]);
  });

  test("numbers messages without gaps under concurrent publishers and consumers, and gives each to one of them", async () => {
    const published: string[] = [];
    const consumed: MessageRow[] = [];
    const producers = Array.from({ length: 6 }, async (_, p) => {
      for (let i = 0; i < 30; i++) published.push(...(await publish(`${p}-${i}-a`, `${p}-${i}-b`)));
    });
    const ended = Promise.all(producers).then(() => true);
    const consumers = Array.from({ length: 4 }, async () => {
      for (let done = false; ; ) {
        const rows = await consume(7);
        consumed.push(...rows);
        for (const row of rows) expect(await ack(row)).toEqual({ acked: true, late: false, already: false });
        if (rows.length === 0 && done) return;
        done = await Promise.race([ended, Promise.resolve(false)]);
      }
    });
    await Promise.all([...producers, ...consumers]);
    expect(consumed.map((row) => row.message_id).sort()).toEqual([...published].sort());
    expect(new Set(published).size).toBe(360);
    expect(await inLine()).toBe(0);
    const { rows } = await sql<{ last: string }>`select carillon_line_cursor(${queue.lane_id}) as last`.execute(t.db);
    expect(rows[0]?.last).toBe("360");
  });

  test("gives several requests their own shares in one look", async () => {
    await publish("1", "2", "3", "4");
    const rows = await handOut(t.db, queue.project_id, queue.name, [
      { limit: 1 },
      { limit: 2, visibilitySeconds: 60 },
      { limit: 9 },
    ]);
    expect(rows?.map(text)).toEqual([["1"], ["2", "3"], ["4"]]);
  });

  test("is not there for a FIFO queue, one with priorities, or an unknown one", async () => {
    const fifo = await makeQueue(t.db, randomUUID(), { type: "fifo" });
    const priority = await makeQueue(t.db, randomUUID(), { enable_priority: true });
    for (const { project_id, name } of [fifo, priority, { project_id: queue.project_id, name: "none" }]) {
      expect(await publishInLine(t.db, project_id, name, [plain("x")])).toBeUndefined();
    }
    expect(await handOut(t.db, queue.project_id, "none", [{ limit: 1 }])).toBeUndefined();
  });

  test("hands out nothing while the queue is paused", async () => {
    await publish("1");
    await updateQueue(t.db, queue, { paused: true });
    expect(await consume(1)).toEqual([]);
    await updateQueue(t.db, queue, { paused: false });
    expect(text(await consume(1))).toEqual(["1"]);
  });

  test("and what is outside it take turns, so that neither waits for the other to end", async () => {
    await publish("1", "2", "3", "4", "5");
    await publishSingly(t.db, queue, ["a", "b", "c"]);
    const memory = newHandOutMemory();
    const order: string[] = [];
    for (let i = 0; i < 8; i++) {
      order.push(...text((await handOut(t.db, queue.project_id, queue.name, [{ limit: 1 }], memory))?.[0] ?? []));
    }
    expect(order).toEqual(["1", "a", "2", "b", "3", "c", "4", "5"]);
  });

  test("is drained into the ordinary store when its queue becomes one with priorities", async () => {
    await publish("1", "2");
    await updateQueue(t.db, queue, { enable_priority: true });
    const rows = await consume(5);
    expect(text(rows)).toEqual(["1", "2"]);
    expect(await ack(rows[0])).toEqual({ acked: true, late: false, already: false });
    expect(await inLine()).toBe(0);
  });
});

describe("a claim", () => {
  test("is settled message by message, and its messages leave the line when the last is acked", async () => {
    await publish("1", "2", "3");
    const rows = await consume(3);
    await ack(rows[1]);
    expect(await inLine()).toBe(3);
    await ack(rows[0]);
    await ack(rows[2]);
    expect(await inLine()).toBe(0);
  });

  test("knows an ack that came before from a message that never was", async () => {
    await publish("1", "2");
    const [first] = await consume(1);
    await ack(first);
    expect(await ack(first)).toEqual({ acked: true, late: false, already: true });
    const waiting = (await publish("3"))[0] ?? "";
    expect(await ack({ ...(first as MessageRow), message_id: waiting, lease_token: null })).toEqual({
      acked: false,
      reason: "not_leased",
    });
    const unknown = waiting.replace(/.{4}$/, "ffff");
    expect(await ack({ ...(first as MessageRow), message_id: unknown, lease_token: null })).toEqual({
      acked: false,
      reason: "not_found",
    });
  });

  test("loses what was acked of it, whatever the order, with gaps, repeated, or beside wrong receipts and other claims", async () => {
    const ids = await publish("1", "2", "3", "4", "5", "6");
    const [first, second] = (await handOut(t.db, queue.project_id, queue.name, [{ limit: 4 }, { limit: 2 }])) ?? [];
    const rows = [...(first ?? []), ...(second ?? [])];
    const deliveries = [rows[5], rows[3], rows[0], rows[1], rows[3]].map(key);
    const wrong = { messageId: ids[4] ?? "", receipt: (rows[4]?.lease_token ?? "").replace(/^.{8}/, "00000000") };
    const acked = await ackInLine(t.db, queue, queue.lane_id, [...deliveries, wrong, key(rows[2])]);
    expect(acked.map((one) => one?.late)).toEqual([false, false, false, false, false, undefined, false]);
    const open = await sql<{ open_seqs: string[]; settled: boolean }>`
      select open_seqs, settled from line_claims where lane_id = ${queue.lane_id} order by hi`.execute(t.db);
    expect(open.rows).toEqual([
      { open_seqs: [], settled: true },
      { open_seqs: ["5"], settled: false },
    ]);
    expect(await inLine()).toBe(2);
  });

  test("is not settled by the receipt of another hand-out", async () => {
    await publish("1");
    const [row] = await consume(1);
    expect(await ack({ ...(row as MessageRow), lease_token: randomUUID() })).toEqual({
      acked: false,
      reason: "lease_lost",
    });
    expect(await ack(row)).toEqual({ acked: true, late: false, already: false });
  });

  test("that ran out is taken back, counts as a failure, and its receipt is no longer good once another holds the message", async () => {
    await publish("1", "2");
    const [first] = await consume(2, 30);
    await t.advanceClock(31);
    const again = await consume(2);
    expect(text(again)).toEqual(["1", "2"]);
    expect(again[0]).toMatchObject({ receive_count: 2, failure_count: 1, message_id: first?.message_id });
    expect(await ack(first)).toEqual({ acked: false, reason: "lease_lost" });
    expect(await ack(again[0])).toEqual({ acked: true, late: false, already: false });
  });

  test("that ran out still counts an ack while nobody else was given the message", async () => {
    await publish("1");
    const [row] = await consume(1, 30);
    await t.advanceClock(31);
    expect(await ack(row)).toEqual({ acked: true, late: true, already: false });
    expect(await consume(1)).toEqual([]);
  });

  test("that ran out too often makes dead letters with their ids", async () => {
    await updateQueue(t.db, queue, { max_retries: 0 });
    queue = { ...queue, max_retries: 0 };
    const [id] = await publish("1");
    await consume(1, 30);
    await t.advanceClock(31);
    await t.db.transaction().execute(async (trx) => {
      await expireClaims(trx, queue);
      await expireLeases(trx, queue);
    });
    const dead = await deadLetters(t.db, queue);
    expect(dead).toMatchObject([{ message_id: id, dead_reason: "max_retries" }]);
    expect(text(dead)).toEqual(["1"]);
  });

  test("gives a nacked message back alone, and the others stay claimed", async () => {
    await publish("1", "2", "3");
    const rows = await consume(3);
    expect(await nack(rows[1])).toEqual({ nacked: true, requeued: true });
    const again = await consume(5);
    expect(again).toMatchObject([{ message_id: rows[1]?.message_id, receive_count: 2, failure_count: 1 }]);
    await ack(rows[0]);
    await ack(rows[2]);
    expect(await inLine()).toBe(0);
    expect(await ack(again[0])).toEqual({ acked: true, late: false, already: false });
  });

  test("sends a rejected message to the dead letters", async () => {
    const [id] = await publish("1");
    const [row] = await consume(1);
    expect(await nack(row, { requeue: false })).toEqual({ nacked: true, requeued: false, reason: "rejected" });
    expect(await deadLetters(t.db, queue)).toMatchObject([{ message_id: id }]);
    expect(await ack(row)).toEqual({ acked: false, reason: "dead_lettered" });
  });

  test("is extended for one message without the others", async () => {
    await publish("1", "2");
    const [first, second] = await consume(2, 30);
    const outcome = await t.db.transaction().execute((trx) => extendLease(trx, queue, key(first), 300));
    expect(outcome).toMatchObject({ extended: true });
    await t.advanceClock(60);
    expect(await consume(5)).toMatchObject([{ message_id: second?.message_id }]);
    expect(await ack(first)).toEqual({ acked: true, late: false, already: false });
  });

  test("is extended in place where it holds one message, and given back by an extension of 0", async () => {
    await publish("1");
    const [row] = await consume(1, 30);
    const extend = (seconds: number) => t.db.transaction().execute((trx) => extendLease(trx, queue, key(row), seconds));
    expect(await extend(300)).toMatchObject({ extended: true });
    await t.advanceClock(60);
    expect(await consume(1)).toEqual([]);
    expect(await extend(0)).toEqual({ extended: true, leaseExpiresAt: null });
    expect(await consume(1)).toMatchObject([{ message_id: row?.message_id, failure_count: 0 }]);
  });

  test("released early is available at once, without a failure", async () => {
    await publish("1", "2");
    const rows = await consume(2);
    expect((await liveLeases(t.db, queue, leasesOf(rows))).size).toBe(2);
    await ack(rows[0]);
    expect((await liveLeases(t.db, queue, leasesOf(rows))).size).toBe(1);
    await releaseLeases(t.db, queue, leasesOf(rows));
    expect(await consume(5)).toMatchObject([{ message_id: rows[1]?.message_id, failure_count: 0, receive_count: 2 }]);
  });
});

describe("what stands in a line", () => {
  test("is counted without being read", async () => {
    await publish("1", "2", "3", "4", "5");
    const rows = await consume(3);
    await ack(rows[0]);
    expect(await queueStats(t.db, queue)).toMatchObject({
      available: 2,
      in_flight: 2,
      delayed: 0,
      dead: 0,
      published: 5,
      acked: 1,
    });
    await t.advanceClock(31);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 4, in_flight: 0 });
  });

  test("is purged with what is claimed, and what is published later stays", async () => {
    await publish("1", "2", "3");
    const [row] = await consume(1);
    expect(await t.db.transaction().execute((trx) => purgeQueue(trx, queue))).toBe(3);
    expect(await ack(row)).toEqual({ acked: false, reason: "not_found" });
    await publish("4");
    expect(text(await consume(5))).toEqual(["4"]);
  });

  test("is dropped when its retention ends, by the pruner or before a hand-out", async () => {
    await publish("1");
    await t.advanceClock(13 * 86_400);
    await publish("2");
    await t.advanceClock(2 * 86_400);
    const rows = await consume(5);
    expect(text(rows)).toEqual(["2"]);
    await ack(rows[0]);
    await publish("3");
    await t.advanceClock(15 * 86_400);
    expect(await pruneLines(t.db, 1_000)).toBeGreaterThan(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0 });
    // The newest claim is where the line goes on.
    await publish("4");
    expect(text(await consume(5))).toEqual(["4"]);
  });

  test("goes with its queue", async () => {
    await publish("1", "2");
    await consume(1);
    await t.db.transaction().execute((trx) => deleteQueue(trx, queue));
    while ((await pruneDroppedLanes(t.db, 1_000)) > 0);
    expect(await inLine()).toBe(0);
  });
});
