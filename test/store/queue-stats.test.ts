import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { QueueRow } from "../../src/db/schema.ts";
import { redriveDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { expireLeases, leaseMessages, leasesOf, releaseLeases } from "../../src/store/leases.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { foldLaneChanges, pruneLaneCounts, queueStats } from "../../src/store/queue-stats.ts";
import type { QueueSettings } from "../../src/store/queues.ts";
import { pruneMessages } from "../../src/store/retention.ts";
import { ackMessage, extendLease, nackMessage } from "../../src/store/settlements.ts";
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

/** The counts by looking at every message. */
async function counted(queue: QueueRow) {
  const free = sql`(lease_expires_at is null or lease_expires_at <= carillon_now()) and not acked and expires_at > carillon_now()`;
  const { rows } = await sql<Record<"available" | "delayed" | "in_flight" | "dead", number>>`
    select
      count(*) filter (where queue_id = ${queue.queue_id} and ${free} and visible_at <= carillon_now())::int as available,
      count(*) filter (where queue_id = ${queue.queue_id} and ${free} and visible_at > carillon_now())::int as delayed,
      count(*) filter (where queue_id = ${queue.queue_id} and lease_expires_at > carillon_now() and not acked)::int as in_flight,
      count(*) filter (where source_queue_id = ${queue.queue_id} and not acked)::int as dead
    from messages where project_id = ${queue.project_id}`.execute(t.db);
  return rows[0];
}

async function stats(queue: QueueRow) {
  const { available, delayed, in_flight, dead } = await queueStats(t.db, queue);
  return { available, delayed, in_flight, dead };
}

/** Numbers that look random and are the same in every run. */
function dice(seed: number): (sides: number) => number {
  let state = seed;
  return (sides) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * sides);
  };
}

describe("the statistics of a queue", () => {
  test.each<[kind: string, settings: Partial<QueueSettings>]>([
    ["a queue with priority", { enable_priority: true, max_retries: 3 }],
    ["a FIFO queue", { type: "fifo", max_retries: 3 }],
    ["a fair queue", { fair: true, max_retries: 3 }],
  ])(
    "of %s are what a count of its messages gives, whatever happens to them",
    { timeout: 120_000 },
    async (_, settings) => {
      const queue = await makeQueue(t.db, project, settings);
      const roll = dice(11);
      const held: { readonly message_id: string; readonly lease_token: string | null }[] = [];
      const inTransaction = t.db.transaction();
      const acts: readonly (() => unknown)[] = [
        () => publish(t.db, queue, ["a", "b"], { groupId: `g${roll(9)}`, priority: roll(10) }),
        () => publish(t.db, queue, ["c"], { groupId: `g${roll(9)}`, delaySeconds: roll(200), priority: roll(10) }),
        () => publish(t.db, queue, ["d"], { groupId: `g${roll(9)}`, ttlSeconds: 1 + roll(100) }),
        async () => {
          const request = { limit: 1 + roll(4), visibilitySeconds: 1 + roll(60), requestId: "" };
          held.push(...(await inTransaction.execute((trx) => leaseMessages(trx, queue, request))));
        },
        () => inTransaction.execute((trx) => expireLeases(trx, queue)),
        () => t.advanceClock(roll(70)),
        () => (roll(8) === 0 ? pruneMessages(t.db, 100) : undefined),
        () => foldLaneChanges(t.db),
        () => pruneLaneCounts(t.db, 100),
        () => inTransaction.execute((trx) => redriveDeadLetters(trx, queue, queue, {}, 2)),
        () => inTransaction.execute(async (trx) => (roll(5) === 0 ? purgeQueue(trx, queue) : 0)),
        ...["ack", "bare ack", "nack", "reject", "extend", "return", "release"].map((act) => async () => {
          const message = held.pop();
          if (message === undefined) return;
          const key = { messageId: message.message_id, receipt: message.lease_token ?? undefined };
          const nack = { ...key, delaySeconds: roll(200), error: "" };
          await inTransaction.execute(async (trx) => {
            if (act === "ack") await ackMessage(trx, queue, key);
            if (act === "bare ack") await ackMessage(trx, queue, { ...key, receipt: undefined });
            if (act === "nack") await nackMessage(trx, queue, { ...nack, requeue: true });
            if (act === "reject") await nackMessage(trx, queue, { ...nack, requeue: false });
            if (act === "extend") await extendLease(trx, queue, key, 1 + roll(100));
            if (act === "return") await extendLease(trx, queue, key, 0);
            if (act === "release") await releaseLeases(trx, queue, leasesOf([message as never]));
          });
        }),
      ];
      for (let step = 0; step < 200; step++) {
        const act = roll(acts.length);
        await acts[act]?.();
        expect([step, await stats(queue)]).toEqual([step, await counted(queue)]);
      }
    },
  );

  test("leave out a message that is acked while its group waits for another's lease", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    const [messageId = ""] = await publish(t.db, queue, ["a"]);
    const lease = () =>
      t.db.transaction().execute(async (trx) => {
        await expireLeases(trx, queue);
        return leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" });
      });
    await lease();
    await t.advanceClock(31);
    await lease();
    expect(await stats(queue)).toMatchObject({ in_flight: 1 });
    await t.db.transaction().execute((trx) => ackMessage(trx, queue, { messageId, receipt: undefined }));
    expect(await stats(queue)).toEqual({ available: 0, delayed: 0, in_flight: 0, dead: 0 });
    await t.advanceClock(31);
    await lease();
    expect(await stats(queue)).toEqual({ available: 0, delayed: 0, in_flight: 0, dead: 0 });
  });

  test("stay exact while changes are folded by several nodes at once", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true });
    const work = Array.from({ length: 20 }, async (_, n) => {
      await publish(t.db, queue, ["a"], { delaySeconds: n % 2 === 0 ? 0 : 600 });
      await Promise.all([foldLaneChanges(t.db), foldLaneChanges(t.db)]);
    });
    await Promise.all(work);
    expect(await stats(queue)).toEqual({ available: 10, delayed: 10, in_flight: 0, dead: 0 });
    while ((await foldLaneChanges(t.db)) > 0);
    expect(await stats(queue)).toEqual({ available: 10, delayed: 10, in_flight: 0, dead: 0 });
  });

  test("do not count what is not committed", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true });
    await publish(t.db, queue, ["a"]);
    const rolledBack = t.db.transaction().execute(async (trx) => {
      await purgeQueue(trx, queue);
      expect((await stats(queue)).available).toBe(1);
      throw new Error("rolled back");
    });
    await expect(rolledBack).rejects.toThrow("rolled back");
    expect((await stats(queue)).available).toBe(1);
  });

  test("have the age of the oldest and the rates of the last minute", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true });
    await publish(t.db, queue, ["old"]);
    await t.advanceClock(90);
    const [id = ""] = await publish(t.db, queue, ["new"], { priority: 9 });
    expect(await queueStats(t.db, queue)).toMatchObject({ oldest_age_seconds: 90, published: 1, acked: 0 });
    await t.db.transaction().execute(async (trx) => {
      await leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" });
      await ackMessage(trx, queue, { messageId: id, receipt: undefined });
    });
    expect(await queueStats(t.db, queue)).toMatchObject({ published: 1, acked: 1, oldest_age_seconds: 90 });
  });
});
