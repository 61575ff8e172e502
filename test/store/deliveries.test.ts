import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db } from "../../src/db/schema.ts";
import { type DeliveryFilter, listDeliveries, pruneDeliveries } from "../../src/store/deliveries.ts";
import {
  cancelReplay,
  countReplay,
  findReplay,
  pruneReplays,
  startReplay,
  stepReplay,
} from "../../src/store/replays.ts";
import { pruneRuns } from "../../src/store/runs-pruning.ts";
import { createReplayer } from "../../src/worker/replayer.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";

let t: TestDatabase;
let projectId: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(() => {
  projectId = randomUUID();
});

/** Failed events with one attempt each, in turn: what needs nothing else to be there. Every `each`-th answered 500. */
async function fail(count: number, each = 1): Promise<void> {
  await sql`
    with made as materialized (
      select carillon_id() as run_id, carillon_id() as callback_id, n from generate_series(1, ${count}::int) n),
    events as (
      insert into callbacks (project_id, callback_id, url, body)
      select ${projectId}, callback_id, 'https://a.example/', '{}' from made),
    ran as (
      insert into runs (project_id, run_id, kind, callback_id, state, trigger, fire_at, run_at, attempt)
      select ${projectId}, run_id, 'callback', callback_id, 'failed', 'message', carillon_now(), carillon_now(), 1 from made)
    insert into run_attempts (project_id, run_id, attempt, url, finished_at, response_status, error)
    select ${projectId}, run_id, 1, 'https://a.example/', carillon_now(),
      case when n % ${each} = 0 then 500 else 404 end, 'rejected' from made order by n`.execute(t.db);
}

/** How many each page has, until there is none to come. */
async function pages(filter: DeliveryFilter, limit = 100): Promise<number[]> {
  const counts: number[] = [];
  let before: string | undefined;
  do {
    const page = await listDeliveries(t.db, projectId, filter, before, limit);
    counts.push(page.rows.length);
    before = page.next;
  } while (before !== undefined);
  return counts;
}

/** Which runs are replays, by what they replay. */
async function replays(): Promise<string[]> {
  const rows = await t.db
    .selectFrom("runs")
    .select("replay_of")
    .where("project_id", "=", projectId)
    .where("replay_of", "is not", null)
    .execute();
  return rows.map(({ replay_of }) => replay_of ?? "");
}

const NEVER = new AbortController().signal;
const start = (filter: DeliveryFilter = { state: "failed" }, rate: number | null = null) =>
  t.db.transaction().execute((trx) => startReplay(trx, { projectId, filter, runsPerSecond: rate }));
const step = (replayId: string, db: Db = t.db) =>
  db.transaction().execute((trx) => stepReplay(trx, { project_id: projectId, replay_id: replayId }));

describe("the log", () => {
  test("looks at a bounded number for a page of a filter, and misses nothing over all pages", async () => {
    await fail(11_000, 5_500);
    expect(await pages({ responseStatus: 500 })).toEqual([1, 1, 0]);
    expect((await pages({}, 500)).reduce((sum, count) => sum + count)).toBe(11_000);
    expect(await pages({ responseStatus: 500, state: "succeeded" })).toEqual([0, 0, 0]);
  });

  test("is not searched before the time that is asked for", async () => {
    await fail(10_000);
    await t.advanceClock(3_600);
    const since = await t.now();
    await fail(1);
    expect(await pages({ since })).toEqual([1]);
  });

  test("forgets attempts when their time is over, those of dead nodes too, a bounded number at a time", async () => {
    await fail(30);
    await sql`update run_attempts set finished_at = null where project_id = ${projectId} and delivery_id = (
      select delivery_id from run_attempts where project_id = ${projectId} limit 1)`.execute(t.db);
    await t.advanceClock(10 * 86_400 - 60);
    while ((await pruneDeliveries(t.db, 1_000, 10)) > 0);
    expect(await pages({})).toEqual([30]);
    await t.advanceClock(61);
    expect(await pruneDeliveries(t.db, 20, 10)).toBe(20);
    while ((await pruneDeliveries(t.db, 20, 10)) > 0);
    expect(await pages({})).toEqual([0]);
  });
});

describe("a replay", () => {
  test("that cannot count in time what it is for does not start", async () => {
    await fail(5_001);
    const within = AbortSignal.abort();
    const wanted = { projectId, filter: {}, runsPerSecond: null, within };
    const refusal = { reason: "DELIVERIES_TOO_MANY" };
    await expect(countReplay(t.db, projectId, {}, within)).rejects.toMatchObject(refusal);
    const starting = t.db.transaction().execute((trx) => startReplay(trx, wanted));
    await expect(starting).rejects.toMatchObject(refusal);
    expect(await countReplay(t.db, projectId, {}, new AbortController().signal)).toBe(5_001);
    const { replay, started } = await start();
    expect(started).toBe(true);
    await cancelReplay(t.db, projectId, replay.replay_id);
  });

  test("makes every run that it found once more, whatever number of nodes make its steps", async () => {
    await fail(450);
    const { replay } = await start();
    expect(replay.matched).toBe(450);
    const ticks = [createReplayer({ db: t.db }), createReplayer({ db: t.db })];
    for (let done = 1; done > 0; ) {
      const results = await Promise.all(ticks.map((tick) => tick(NEVER)));
      done = Math.max(...results.map((result) => result.done));
    }
    const made = await replays();
    expect([made.length, new Set(made).size]).toEqual([450, 450]);
    const ended = await findReplay(t.db, projectId, replay.replay_id);
    expect(ended).toMatchObject({ state: "succeeded", replayed: 450, refused: 0 });
  });

  test("makes a run once whatever number of attempts it had, by how the last one ended, and none that is not over", async () => {
    await fail(3);
    await sql`insert into run_attempts (project_id, run_id, attempt, url, finished_at, response_status, error)
      select project_id, run_id, 2, url, finished_at, 503, error from run_attempts where project_id = ${projectId}`.execute(
      t.db,
    );
    await sql`update runs set attempt = 2 where project_id = ${projectId}`.execute(t.db);
    await sql`update runs set state = 'retrying' where project_id = ${projectId} and run_id = (
      select run_id from runs where project_id = ${projectId} limit 1)`.execute(t.db);
    expect(await countReplay(t.db, projectId, { responseStatus: 500 })).toBe(0);
    const { replay } = await start({ responseStatus: 503 });
    expect(replay.matched).toBe(2);
    while ((await step(replay.replay_id)) !== undefined);
    expect(new Set(await replays()).size).toBe(2);
    expect((await replays()).length).toBe(2);
  });

  test("does not make what it has made once more again, nor what failed after its start", async () => {
    await fail(3);
    const { replay } = await start();
    await fail(2);
    while ((await step(replay.replay_id)) !== undefined);
    expect((await replays()).length).toBe(3);
  });

  test("goes on where the last whole step ended when a node dies in one", async () => {
    await fail(250);
    const { replay } = await start();
    await step(replay.replay_id);
    const died = t.db.transaction().execute(async (trx) => {
      await stepReplay(trx, { project_id: projectId, replay_id: replay.replay_id });
      throw new Error("killed");
    });
    await expect(died).rejects.toThrow("killed");
    expect((await replays()).length).toBe(200);
    while ((await step(replay.replay_id)) !== undefined);
    expect(new Set(await replays()).size).toBe(250);
    expect(await findReplay(t.db, projectId, replay.replay_id)).toMatchObject({ replayed: 250 });
  });

  test("keeps its rate", async () => {
    await fail(10);
    const { replay } = await start({ state: "failed" }, 4);
    for (let second = 1; second <= 2; second++) {
      for (let quarter = 0; quarter < 4; quarter++) {
        expect(await step(replay.replay_id)).toBe(1);
        expect(await step(replay.replay_id)).toBeUndefined();
        await t.advanceClock(0.25);
      }
      expect((await replays()).length).toBe(4 * second);
    }
  });

  test("counts what cannot be made once more", async () => {
    await fail(2);
    await sql`delete from callbacks where project_id = ${projectId}`.execute(t.db);
    const { replay } = await start();
    while ((await step(replay.replay_id)) !== undefined);
    expect(await findReplay(t.db, projectId, replay.replay_id)).toMatchObject({ replayed: 0, refused: 2 });
  });

  test("of nothing ends at once, and is forgotten after a week", async () => {
    expect(await countReplay(t.db, projectId, {})).toBe(0);
    const { replay } = await start();
    await step(replay.replay_id);
    expect(await findReplay(t.db, projectId, replay.replay_id)).toMatchObject({ state: "succeeded", matched: 0 });
    await t.advanceClock(7 * 86_400 - 60);
    await pruneReplays(t.db, 1_000);
    expect(await findReplay(t.db, projectId, replay.replay_id)).toBeDefined();
    await t.advanceClock(61);
    await pruneReplays(t.db, 1_000);
    expect(await findReplay(t.db, projectId, replay.replay_id)).toBeUndefined();
  });

  test("keeps the event that it sends once more from being forgotten with the first run", async () => {
    await fail(1);
    const { replay } = await start();
    while ((await step(replay.replay_id)) !== undefined);
    const events = () => t.db.selectFrom("callbacks").select("url").where("project_id", "=", projectId).execute();
    const expire = (replays: boolean) =>
      sql`update runs set expires_at = carillon_now(), state = 'failed'
        where project_id = ${projectId} and (replay_of is not null) = ${replays}`.execute(t.db);
    await expire(false);
    expect(await pruneRuns(t.db, 1_000)).toBe(1);
    expect(await events()).toHaveLength(1);
    await expire(true);
    expect(await pruneRuns(t.db, 1_000)).toBe(1);
    expect(await events()).toEqual([]);
  });

  test("excludes another of its project until it is called off", async () => {
    await fail(1);
    const { replay, started } = await start();
    expect(started).toBe(true);
    expect(await start()).toMatchObject({ started: false, replay: { replay_id: replay.replay_id } });
    await cancelReplay(t.db, projectId, replay.replay_id);
    expect(await step(replay.replay_id)).toBeUndefined();
    expect((await start()).started).toBe(true);
  });
});
