import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import { pruneRateSlices } from "../../src/store/groups.ts";
import { expireLeases, leaseMessages, leasesOf, releaseLeases } from "../../src/store/leases.ts";
import type { MessageRow } from "../../src/store/messages.ts";
import { findQueue, type QueueChanges, updateQueue } from "../../src/store/queues.ts";
import { ackMessage, nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(() => {
  project = randomUUID();
});

function consume(queue: QueueRow, limit = 1, visibilitySeconds = 30): Promise<MessageRow[]> {
  return inTransaction(async (trx) => {
    await expireLeases(trx, queue);
    return leaseMessages(trx, queue, { limit, visibilitySeconds, requestId: "" });
  });
}

function inTransaction<T>(work: (trx: Db) => Promise<T>): Promise<T> {
  return t.db.transaction().execute(work);
}

async function change(queue: QueueRow, changes: QueueChanges): Promise<QueueRow> {
  await inTransaction((trx) => updateQueue(trx, queue, changes));
  const changed = await findQueue(t.db, queue.project_id, queue.name);
  if (changed === undefined) throw new Error("no queue");
  return changed;
}

const key = (row: MessageRow) => ({ messageId: row.message_id, receipt: row.lease_token ?? undefined });
const ack = (queue: QueueRow, row: MessageRow) => inTransaction((trx) => ackMessage(trx, queue, key(row)));
const nack = (queue: QueueRow, row: MessageRow) =>
  inTransaction((trx) => nackMessage(trx, queue, { ...key(row), requeue: true, delaySeconds: 0, error: "" }));
const many = (n: number) => Array.from({ length: n }, (_, i) => `${i}`);

describe("max_in_flight", () => {
  test.each([
    { of: "the queue", settings: { max_in_flight: 4 }, groups: ["a"], most: 4 },
    { of: "a fair queue", settings: { max_in_flight: 4, fair: true }, groups: ["a", "b", "c"], most: 4 },
    { of: "each group", settings: { group_max_in_flight: 2 }, groups: ["a", "b"], most: 4 },
  ])("of $of is never exceeded by many consumers, and is used to the full", async ({ settings, groups, most }) => {
    const queue = await makeQueue(t.db, project, settings);
    for (const groupId of groups) await publish(t.db, queue, many(60 / groups.length), { groupId });
    const all = await consume(queue, 100);
    expect(all).toHaveLength(most);
    await releaseLeases(t.db, queue, leasesOf(all));
    let left = 60;
    const consumer = async (seed: number) => {
      while (left > 0) {
        const rows = await consume(queue, 1 + (seed % 3));
        // The database's own count, of leases that are there at one moment.
        const { rows: leased } = await sql<{ group_id: string; n: number }>`
          select group_id, count(*)::int as n from messages
          where queue_id = ${queue.queue_id} and lease_expires_at is not null group by group_id`.execute(t.db);
        const total = leased.reduce((sum, { n }) => sum + n, 0);
        expect(total).toBeLessThanOrEqual(most);
        if ("group_max_in_flight" in settings) for (const { n } of leased) expect(n).toBeLessThanOrEqual(2);
        for (const [i, row] of rows.entries()) {
          if ((seed + i) % 5 === 0) await nack({ ...queue, max_retries: 1_000 }, row);
          else if ((seed + i) % 7 === 0) await releaseLeases(t.db, queue, leasesOf([row]));
          else {
            await ack(queue, row);
            left -= 1;
          }
        }
      }
    };
    await Promise.all([1, 2, 3, 4, 6, 8].map(consumer));
  });

  test("gives a place back when a lease runs out", async () => {
    const queue = await makeQueue(t.db, project, { max_in_flight: 1 });
    await publish(t.db, queue, ["a", "b"]);
    expect(await consume(queue, 5)).toHaveLength(1);
    expect(await consume(queue, 5)).toHaveLength(0);
    await t.advanceClock(31);
    expect(await consume(queue, 5)).toHaveLength(1);
  });

  test.each([
    { of: "the queue", lower: { max_in_flight: 1 }, higher: { max_in_flight: 3 } },
    { of: "each group", lower: { group_max_in_flight: 1 }, higher: { group_max_in_flight: 3 } },
  ])("of $of can be changed, and holds from the next hand-out on", async ({ lower, higher }) => {
    const queue = await makeQueue(t.db, project, higher);
    await publish(t.db, queue, many(6), { groupId: "g" });
    expect(await consume(queue, 2)).toHaveLength(2);
    const low = await change(queue, lower);
    // Also for one who has read the queue before.
    expect(await consume(queue, 5)).toHaveLength(0);
    await change(low, higher);
    expect(await consume(low, 5)).toHaveLength(1);
  });

  test("holds for one who read the queue before it had limits", async () => {
    const before = await makeQueue(t.db, project);
    await publish(t.db, before, many(6));
    const limited = await change(before, { max_in_flight: 2 });
    expect(await consume(limited, 5)).toHaveLength(2);
    expect(await consume(before, 5)).toHaveLength(0);
  });
});

describe("rate_limit", () => {
  test.each([
    { of: "the queue", settings: { rate_limit: 10, rate_period_seconds: 60 }, most: 10 },
    { of: "each group", settings: { group_rate_limit: 5, group_rate_period_seconds: 60 }, most: 10 },
  ])(
    "of $of is never exceeded in any period, by many consumers, and is used nearly to the full",
    async ({ settings, most }) => {
      const queue = await makeQueue(t.db, project, settings);
      await publish(t.db, queue, many(100), { groupId: "a" });
      await publish(t.db, queue, many(100), { groupId: "b" });
      const handOuts: { after: number; before: number; n: number }[] = [];
      const now = async () => (await t.now()).getTime() / 1_000;
      // A stride that shares no factor with the period, so that windows of every kind are tried.
      for (let i = 0; i < 85; i++) {
        const after = await now();
        const got = await Promise.all([1, 2, 3, 4].map((limit) => consume(queue, limit, 40_000)));
        handOuts.push({ after, before: await now(), n: got.flat().length });
        await t.advanceClock(7);
      }
      for (const last of handOuts) {
        const inWindow = handOuts.filter((one) => one.after > last.before - 60 && one.before <= last.before);
        const sum = inWindow.reduce((total, one) => total + one.n, 0);
        expect(sum, `in the 60 s before ${last.before}`).toBeLessThanOrEqual(most);
      }
      const total = handOuts.reduce((sum, one) => sum + one.n, 0);
      expect(total).toBeGreaterThanOrEqual((most * 85 * 7) / 70);
    },
  );

  test("holds in a period of any beginning, whatever of it is remembered together", async () => {
    const queue = await makeQueue(t.db, project, { rate_limit: 3, rate_period_seconds: 6_000 });
    await publish(t.db, queue, many(20));
    // Hand-outs are counted by sixtieths of the period. This one is near the end of its sixtieth.
    await t.advanceClock(190 - (((await t.now()).getTime() / 1_000) % 100));
    expect(await consume(queue, 5)).toHaveLength(3);
    await t.advanceClock(5_920);
    expect(await consume(queue, 5)).toHaveLength(0);
    await t.advanceClock(90);
    expect(await consume(queue, 5)).toHaveLength(3);
  });

  test("counts a redelivery as a hand-out", async () => {
    const queue = await makeQueue(t.db, project, { rate_limit: 2, rate_period_seconds: 60 });
    await publish(t.db, queue, ["x"]);
    for (let i = 0; i < 2; i++) for (const row of await consume(queue, 5)) await nack(queue, row);
    expect(await consume(queue, 5)).toHaveLength(0);
    await t.advanceClock(62);
    expect(await consume(queue, 5)).toHaveLength(1);
  });

  test("can be changed, and holds from the next hand-out on", async () => {
    const queue = await makeQueue(t.db, project, { rate_limit: 1, rate_period_seconds: 604_800 });
    await publish(t.db, queue, many(9));
    expect(await consume(queue, 5)).toHaveLength(1);
    await change(queue, { rate_limit: 3 });
    expect(await consume(queue, 5)).toHaveLength(2);
    await t.advanceClock(5);
    await change(queue, { rate_period_seconds: 1 });
    expect(await consume(queue, 5)).toHaveLength(3);
  });

  test("of a group is remembered while the group has no messages, and forgotten when its period is over", async () => {
    const queue = await makeQueue(t.db, project, { group_rate_limit: 1, group_rate_period_seconds: 60 });
    await publish(t.db, queue, ["1"], { groupId: "g" });
    for (const row of await consume(queue)) await ack(queue, row);
    await consume(queue);
    await publish(t.db, queue, ["2"], { groupId: "g" });
    expect(await consume(queue)).toEqual([]);
    const slices = () => t.db.selectFrom("rate_slices").selectAll().where("queue_id", "=", queue.queue_id).execute();
    await pruneRateSlices(t.db, 100);
    expect(await slices()).toHaveLength(1);
    await t.advanceClock(62);
    await pruneRateSlices(t.db, 100);
    expect(await slices()).toHaveLength(0);
    expect(await consume(queue)).toHaveLength(1);
  });

  test("of a group leaves other groups alone", async () => {
    const queue = await makeQueue(t.db, project, { group_rate_limit: 2, group_rate_period_seconds: 60 });
    await publish(t.db, queue, many(5), { groupId: "noisy" });
    expect(await consume(queue, 10)).toHaveLength(2);
    await publish(t.db, queue, ["x"], { groupId: "quiet" });
    expect((await consume(queue, 10)).map((row) => row.group_id)).toEqual(["quiet"]);
  });
});
