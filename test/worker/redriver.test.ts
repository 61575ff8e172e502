import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { connect } from "../../src/db/connect.ts";
import type { Db, RedriveRow } from "../../src/db/schema.ts";
import { expireLeases, leaseMessages } from "../../src/store/leases.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { deleteQueue, type NamedQueueRow } from "../../src/store/queues.ts";
import {
  cancelRedrive,
  findRedrive,
  type NewRedrive,
  pruneRedrives,
  startRedrive,
  stepRedrive,
} from "../../src/store/redrives.ts";
import { createRedriver } from "../../src/worker/redriver.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { deadLetters, makeQueue, publish } from "../support/queues.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(async () => {
  project = randomUUID();
  await t.db.deleteFrom("redrives").execute();
});

const NEVER = new AbortController().signal;

/** One node's tick. */
const tick = (db: Db = t.db) => createRedriver({ db })(NEVER);

async function tickUntilIdle(db: Db = t.db): Promise<void> {
  while ((await tick(db)).done > 0);
}

/** Publishes messages and lets their leases run out, so that they die together. */
async function kill(queue: NamedQueueRow, payloads: readonly string[], message = {}): Promise<string[]> {
  const ids = await publish(t.db, queue, payloads, message);
  const rows = await t.db
    .transaction()
    .execute((trx) => leaseMessages(trx, queue, { limit: payloads.length, visibilitySeconds: 1, requestId: "" }));
  expect(rows).toHaveLength(payloads.length);
  await t.advanceClock(2);
  const mortal = { ...queue, max_retries: 0 };
  while ((await t.db.transaction().execute((trx) => expireLeases(trx, mortal))) > 0);
  return ids;
}

const numbers = (count: number) => Array.from({ length: count }, (_, i) => `${i}`);

async function start(queue: NamedQueueRow, rest: Partial<NewRedrive> = {}): Promise<RedriveRow> {
  const redrive = { queue, to: queue, filter: {}, messagesPerSecond: null, ...rest };
  return (await t.db.transaction().execute((trx) => startRedrive(trx, redrive))).redrive;
}

/** The messages of a lane in the order in which they came there. */
async function idsInOrder({ project_id }: NamedQueueRow, lane: string): Promise<string[]> {
  const rows = await t.db
    .selectFrom("messages")
    .select("message_id")
    .where("project_id", "=", project_id)
    .where("queue_id", "=", lane)
    .orderBy("seq")
    .execute();
  return rows.map((row) => row.message_id);
}

async function now({ project_id, redrive_id }: RedriveRow): Promise<RedriveRow> {
  const row = await findRedrive(t.db, project_id, redrive_id);
  if (row === undefined) throw new Error("no redrive");
  return row;
}

describe("a redrive", () => {
  test("moves every dead letter that there was at its start, in the order of their deaths, and none that died later", async () => {
    const queue = await makeQueue(t.db, project);
    await kill(queue, numbers(2_500));
    const deaths = await idsInOrder(queue, queue.graveyard_id);
    const redrive = await start(queue);
    expect(redrive).toMatchObject({ state: "running", matched: 2_500, moved: 0 });
    const [late] = await kill(queue, ["late"]);
    expect(await tick()).toMatchObject({ done: 1 });
    expect(await now(redrive)).toMatchObject({ state: "running", moved: 1_000 });
    await tickUntilIdle();
    expect(await now(redrive)).toMatchObject({ state: "succeeded", matched: 2_500, moved: 2_500, error: null });
    expect((await deadLetters(t.db, queue)).map((row) => row.message_id)).toEqual([late]);
    expect(await idsInOrder(queue, queue.queue_id)).toEqual(deaths);
  });

  test("moves what its filter finds to the queue that it names", async () => {
    const queue = await makeQueue(t.db, project);
    const to = await makeQueue(t.db, project, { name: "elsewhere" });
    const [wanted] = await kill(queue, ["a"], { headers: { "x-tenant": "acme" } });
    const [other] = await kill(queue, ["b"]);
    const redrive = await start(queue, { to, filter: { headerContains: "acme", until: await t.now() } });
    await tickUntilIdle();
    expect(await now(redrive)).toMatchObject({ state: "succeeded", matched: 1, moved: 1 });
    expect((await deadLetters(t.db, queue)).map((row) => row.message_id)).toEqual([other]);
    const lease = { limit: 10, visibilitySeconds: 30, requestId: "" };
    expect(await t.db.transaction().execute((trx) => leaseMessages(trx, to, lease))).toMatchObject([
      { message_id: wanted, failure_count: 0, dead_reason: null },
    ]);
  });

  test("whose node dies in the middle of a step is taken over, and nothing is moved twice, lost or miscounted", async () => {
    const queue = await makeQueue(t.db, project);
    const ids = await kill(queue, numbers(2_200));
    const redrive = await start(queue);
    const doomed = connect({ url: t.url, poolSize: 1 });
    await tick(doomed);

    const died = doomed.transaction().execute(async (trx) => {
      expect(await stepRedrive(trx, redrive)).toMatchObject({ moved: 1_000 });
      // The other node has nothing to do while this one is at it.
      expect(await tick()).toMatchObject({ done: 0 });
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx);
      await sql`select pg_terminate_backend(${rows[0]?.pid}, 10000)`.execute(t.db);
      await sql`select`.execute(trx);
    });
    await expect(died).rejects.toThrow();
    await doomed.destroy().catch(() => {});
    expect(await now(redrive)).toMatchObject({ state: "running", moved: 1_000 });

    await tickUntilIdle();
    expect(await now(redrive)).toMatchObject({ state: "succeeded", moved: 2_200 });
    expect((await idsInOrder(queue, queue.queue_id)).sort()).toEqual(ids.sort());
  });

  test("by several nodes at once moves each dead letter once", async () => {
    const queue = await makeQueue(t.db, project);
    await kill(queue, numbers(3_000));
    const redrive = await start(queue);
    for (let i = 0; i < 50 && (await now(redrive)).state === "running"; i++)
      await Promise.all([tick(), tick(), tick()]);
    expect(await now(redrive)).toMatchObject({ state: "succeeded", moved: 3_000 });
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 3_000, dead: 0 });
  });

  test("keeps to its speed", async () => {
    const queue = await makeQueue(t.db, project);
    await kill(queue, numbers(20));
    const redrive = await start(queue, { messagesPerSecond: 1 });
    const startedAt = (await t.now()).getTime();
    // On a slow machine the next step may be due already.
    let idle = await tick();
    while (idle.done > 0) idle = await tick();
    expect(idle.nextDueInMs).toBeLessThanOrEqual(1_000);
    for (;;) {
      const { moved, state } = await now(redrive);
      const seconds = ((await t.now()).getTime() - startedAt) / 1_000;
      // A step more than the time allows: the first one waits for nothing.
      expect(moved).toBeLessThanOrEqual(seconds + 1);
      if (state !== "running") break;
      await t.advanceClock(1);
      await tick();
    }
    expect(await now(redrive)).toMatchObject({ state: "succeeded", moved: 20 });
  });

  test("that is canceled moves nothing more, and what was moved stays moved", async () => {
    const queue = await makeQueue(t.db, project);
    await kill(queue, numbers(1_100));
    const redrive = await start(queue);
    await tick();
    const canceled = await t.db
      .transaction()
      .execute((trx) => cancelRedrive(trx, redrive.project_id, redrive.redrive_id));
    expect(canceled).toMatchObject({ state: "canceled", moved: 1_000 });
    await tickUntilIdle();
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 1_000, dead: 100 });
    expect(await start(queue), "a canceled one makes room").toMatchObject({ state: "running", matched: 100 });
  });

  test("leaves what a consumer holds, and comes back for what somebody was at", async () => {
    const failed = await makeQueue(t.db, project, { name: "failed" });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: failed.queue_id });
    await kill(queue, ["held", "locked", "free"]);
    const rows = await t.db
      .transaction()
      .execute((trx) => leaseMessages(trx, failed, { limit: 1, visibilitySeconds: 3_600, requestId: "" }));
    const [, locked] = (await deadLetters(t.db, queue)).filter((row) => row.message_id !== rows[0]?.message_id);
    const redrive = await start(queue);
    expect(redrive).toMatchObject({ matched: 2 });
    await t.db.transaction().execute(async (trx) => {
      await sql`select from messages where message_id = ${locked?.message_id} for update`.execute(trx);
      await tick();
      expect(await now(redrive)).toMatchObject({ state: "running", moved: 1 });
    });
    await t.advanceClock(1);
    await tickUntilIdle();
    expect(await now(redrive)).toMatchObject({ state: "succeeded", moved: 2 });
    expect((await deadLetters(t.db, queue)).map((row) => row.message_id)).toEqual([rows[0]?.message_id]);
  });

  test.each(["orders", "elsewhere"])("fails when queue %s is deleted, and says so", async (deleted) => {
    const queue = await makeQueue(t.db, project);
    const to = await makeQueue(t.db, project, { name: "elsewhere" });
    await kill(queue, ["1"]);
    const redrive = await start(queue, { to });
    await t.db.transaction().execute((trx) => deleteQueue(trx, deleted === "orders" ? queue : to));
    await tickUntilIdle();
    expect(await now(redrive)).toMatchObject({ state: "failed", moved: 0, error: `queue ${deleted} was deleted` });
  });

  test("is the only one of its queue while it runs", async () => {
    const queue = await makeQueue(t.db, project);
    await kill(queue, ["1"]);
    const tries = await Promise.all(Array.from({ length: 5 }, () => start(queue)));
    expect(new Set(tries.map((redrive) => redrive.redrive_id)).size).toBe(1);
  });

  test("is forgotten 7 days after its end", async () => {
    const queue = await makeQueue(t.db, project);
    const redrive = await start(queue);
    await tickUntilIdle();
    await t.advanceClock(7 * 86_400 - 60);
    await pruneRedrives(t.db, 10);
    expect(await now(redrive)).toMatchObject({ state: "succeeded" });
    await t.advanceClock(61);
    await pruneRedrives(t.db, 10);
    expect(await findRedrive(t.db, redrive.project_id, redrive.redrive_id)).toBeUndefined();
  });
});
