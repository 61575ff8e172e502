import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { OverlapPolicy, RunState } from "../../gen/scheduling/v1/run_pb.js";
import { TaskState } from "../../gen/scheduling/v1/task_service_pb.js";
import { type DeliveryRow, findDelivery, listDeliveries } from "../../src/store/deliveries.ts";
import { type AttemptRecord, listAttempts } from "../../src/store/run-attempts.ts";
import { settleDelivered } from "../../src/store/runs-delivered.ts";
import { dueRuns } from "../../src/store/runs-due.ts";
import { type LeasedRun, leaseRuns } from "../../src/store/runs-leasing.ts";
import { settleRun } from "../../src/store/runs-settling.ts";
import { copyTask, createJob, type RunWorld, runWorld } from "../support/runs.ts";
import { watching } from "../support/statements.ts";

const RECORD: AttemptRecord = {
  responseStatus: 202,
  error: null,
  durationMs: 7,
  timings: { connectMs: 0.5, firstByteMs: 6.5 },
  requestHeaders: { "content-type": "application/json" },
  responseHeaders: { server: 'quotes "and" \\ more, {braces}' },
  responseBody: Buffer.from([0, 255, 10, 92, 34]),
  disable: false,
};

const delivered = (run: LeasedRun) => ({ run, responseStatus: 202, record: RECORD });

async function scheduleTasks(world: RunWorld, count: number): Promise<string[]> {
  const runAt = timestampFromDate(await world.database.now());
  const ids: string[] = [];
  for (let n = 0; n < count; n++) {
    ids.push((await world.tasks.scheduleTask({ url: world.receiver.url, runAt })).task?.taskId ?? expect.fail());
  }
  return ids;
}

async function leaseDue(world: RunWorld): Promise<LeasedRun[]> {
  return leaseRuns(world.db, world.projectId, (await dueRuns(world.db, { limit: 1_000, parkedLimit: 0 })).runs);
}

test("what is delivered together is settled together, each with its own record, but for what was leased anew", async () => {
  await using world = await runWorld();
  const taskIds = await scheduleTasks(world, 3);
  const [first, lost, third] = (await leaseDue(world)) as [LeasedRun, LeasedRun, LeasedRun];
  const stale = { ...lost, leaseToken: first.leaseToken };
  const record = { ...RECORD, responseHeaders: null, responseBody: null, timings: {} };
  const ends = [delivered(first), delivered(stale), { ...delivered(third), record }];
  expect(await settleDelivered(world.db, world.projectId, ends)).toEqual(["settled", "stale", "settled"]);
  // An outcome that is recorded once more, because nobody knew whether it had been, changes nothing.
  expect(await settleDelivered(world.db, world.projectId, ends)).toEqual(["stale", "stale", "stale"]);

  const states = await Promise.all(taskIds.map(async (taskId) => (await world.tasks.getTask({ taskId })).task));
  const expected = [TaskState.SUCCEEDED, TaskState.RUNNING, TaskState.SUCCEEDED];
  expect(states.map((task) => task?.state).sort()).toEqual(expected.sort());
  const runs = new Map((await world.runs()).map((run) => [run.run_id, run]));
  expect(runs.get(first.runId)).toMatchObject({ state: "succeeded", response_status: 202, lease_token: null });
  expect(runs.get(first.runId)?.expires_at).toBeInstanceOf(Date);
  expect(runs.get(lost.runId)).toMatchObject({ state: "running", lease_token: lost.leaseToken, finished_at: null });
  const attempts = await world.db.selectFrom("attempts").selectAll().execute();
  const attemptOf = ({ runId }: LeasedRun) => attempts.find(({ run_id: id }) => id === runId);
  expect(attemptOf(first)).toMatchObject({
    response_status: 202,
    error: null,
    duration_ms: 7,
    dns_ms: null,
    connect_ms: 0.5,
    first_byte_ms: 6.5,
    request_headers: RECORD.requestHeaders,
    response_headers: RECORD.responseHeaders,
    response_body: RECORD.responseBody,
    finished_at: expect.any(Date),
  });
  expect(attemptOf(lost)).toMatchObject({ finished_at: null, response_status: null });
  expect(attemptOf(third)).toMatchObject({ response_headers: null, response_body: null, first_byte_ms: null });
});

test("an attempt is found while it is under way, and keeps its id, its start and its URL when it has ended", async () => {
  await using world = await runWorld();
  await scheduleTasks(world, 2);
  const [first, second] = (await leaseDue(world)) as [LeasedRun, LeasedRun];
  const list = async () => (await listDeliveries(world.db, world.projectId, {}, undefined, 10)).rows;
  const underWay = await list();
  expect(underWay.map(({ run_id }) => run_id).toSorted()).toEqual([first.runId, second.runId].toSorted());
  for (const row of underWay) {
    const { delivery_id, run_id, url } = row;
    expect(row).toMatchObject({ state: "running", attempt: 1, url: first.url, finished_at: null, error: null });
    expect(await findDelivery(world.db, world.projectId, delivery_id)).toMatchObject({ delivery_id, run_id, url });
    expect(await listAttempts(world.db, world.projectId, run_id)).toMatchObject([{ delivery_id, url }]);
  }

  await settleDelivered(world.db, world.projectId, [delivered(first)]);
  const failed = { to: "failed", error: "rejected", responseStatus: 500 } as const;
  await settleRun(world.db, second, failed, { ...RECORD, responseStatus: 500, error: "rejected" });
  const ids = ({ delivery_id, run_id, url, started_at }: DeliveryRow) => ({ delivery_id, run_id, url, started_at });
  expect((await list()).map(ids)).toEqual(underWay.map(ids));
  expect((await list()).map(({ state }) => state).toSorted()).toEqual(["failed", "succeeded"]);
});

test("the attempt of a run that is replaced while it is under way is recorded, without an end", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world, { overlapPolicy: OverlapPolicy.CANCEL_PREVIOUS });
  await world.cron.triggerCronJob({ cronId });
  const [replaced] = (await leaseDue(world)) as [LeasedRun];
  await world.cron.triggerCronJob({ cronId });
  expect(await settleDelivered(world.db, world.projectId, [delivered(replaced)])).toEqual(["stale"]);
  const attempts = await world.db.selectFrom("run_attempts").selectAll().execute();
  expect(attempts).toMatchObject([{ run_id: replaced.runId, url: replaced.url, finished_at: null, error: null }]);
});

test("what a lease and a settlement read grows with the runs, and not faster", async ({ skip }) => {
  await using world = await runWorld();
  const { rows: version } = await sql<{ server_version_num: string }>`show server_version_num`.execute(world.db);
  skip(Number(version[0]?.server_version_num) < 170_000, "older ones read all of a project that they take for small");
  await world.tasks.scheduleTask({ url: world.receiver.url, runAt: timestampFromDate(await world.database.now()) });
  // As after a while: with next to no rows PostgreSQL reads them all, whatever the statement says.
  await copyTask(world, 3_000);
  const { runs } = await dueRuns(world.db, { limit: 60, parkedLimit: 0 });
  await world.db.transaction().execute(async (trx) => {
    const rowsRead = async (): Promise<number> => {
      const { rows } = await sql<{ read: number }>`
        select sum(seq_tup_read + idx_tup_fetch)::int as read from pg_stat_xact_user_tables
        where relname in ('runs', 'tasks')`.execute(trx);
      return rows[0]?.read ?? expect.fail();
    };
    const before = await rowsRead();
    const leased = await leaseRuns(trx, world.projectId, runs);
    const between = await rowsRead();
    const settled = await settleDelivered(trx, world.projectId, leased.map(delivered));
    expect(settled).toEqual(runs.map(() => "settled"));
    // Each run and each task once to lock it and once to change it, and each task once for what it says.
    expect(between - before).toBeLessThanOrEqual(5 * runs.length);
    expect((await rowsRead()) - between).toBeLessThanOrEqual(5 * runs.length);
  });
});

test("the number of statements does not grow with that of deliveries", async () => {
  await using world = await runWorld();
  const counts: number[] = [];
  for (const count of [2, 20]) {
    await scheduleTasks(world, count);
    const leased = await leaseDue(world);
    expect(leased).toHaveLength(count);
    let statements = 0;
    const counting = watching(world.db, () => statements++);
    await settleDelivered(counting, world.projectId, leased.map(delivered));
    counts.push(statements);
  }
  expect(counts[1]).toBe(counts[0]);
});

test("the runs that wait for delivered ones have their turn, one of each cron job", async () => {
  await using world = await runWorld();
  const jobs = [await createJob(world, { overlapPolicy: OverlapPolicy.QUEUE }), await createJob(world)];
  for (const { cronId } of jobs) await world.cron.triggerCronJob({ cronId });
  const leased = await leaseDue(world);
  const [waits] = jobs;
  for (let n = 0; n < 2; n++) await world.cron.triggerCronJob({ cronId: waits?.cronId ?? "" });
  const outcomes = await settleDelivered(world.db, world.projectId, leased.map(delivered));
  expect(outcomes.toSorted()).toEqual(["due", "settled"]);
  const runs = await world.runs();
  expect(runs.filter(({ state, waiting }) => state === "pending" && !waiting)).toHaveLength(1);
  expect(runs.filter(({ state, waiting }) => state === "pending" && waiting)).toHaveLength(1);
  await world.dispatch();
  const after = await world.cron.listCronRuns({ cronId: waits?.cronId ?? "" });
  expect(after.items.map(({ state }) => state)).toEqual([RunState.SUCCEEDED, RunState.SUCCEEDED, RunState.SUCCEEDED]);
});
