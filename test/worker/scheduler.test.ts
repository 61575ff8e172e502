import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { sql } from "kysely";
import { describe, expect, test } from "vitest";
import { CronJobState, MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy, RunState, RunTrigger } from "../../gen/scheduling/v1/run_pb.js";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

describe("the scheduler", () => {
  test("makes exactly one run a second however many nodes meet at each one", async () => {
    await using world = await runWorld();
    await createJob(world, { cronExpr: "* * * * * *", overlapPolicy: OverlapPolicy.ALLOW });
    const nodes = [world.scheduler(), world.scheduler(), world.scheduler()];

    for (let second = 0; second < 60; second++) {
      await world.database.advanceClock(1);
      await Promise.all(nodes.map((tick) => tick(NEVER)));
    }
    await world.fire();

    const runs = await world.runs();
    expect(world.errors).toEqual([]);
    const seconds = runs.map((run) => run.fire_at.getTime() / 1_000);
    expect(new Set(seconds).size).toBe(runs.length);
    expect(runs.every(({ state, trigger }) => state === "pending" && trigger === "schedule")).toBe(true);
    const first = seconds[0] ?? 0;
    // The clock went 60 seconds ahead, and on by itself meanwhile.
    expect(seconds.slice(0, 60)).toEqual(Array.from({ length: 60 }, (_, index) => first + index));
  });

  test("records a spread fire at its fire time and starts it later, before the next one", async () => {
    await using world = await runWorld();
    await createJob(world, { spreadSeconds: 3_600, jitterSeconds: 3_600, overlapPolicy: OverlapPolicy.ALLOW });
    await world.database.advanceClock(31);
    await world.fire();
    await world.dispatch();
    const [run] = await world.runs();
    expect(run).toMatchObject({ state: "pending", attempt: 0 });
    const delayMs = (run?.effective_at?.getTime() ?? 0) - (run?.fire_at.getTime() ?? 0);
    expect(delayMs).toBeGreaterThan(2_000);
    expect(delayMs).toBeLessThan(60_000);
    await world.database.advanceClock(delayMs / 1_000);
    await world.dispatch();
    expect((await world.runs())[0]).toMatchObject({ state: "succeeded" });
  });

  test("completes a job at the end of its time", async () => {
    await using world = await runWorld();
    const now = await world.database.now();
    const endAt = timestampFromDate(new Date(now.getTime() + 4 * 60_000));
    const { cronId } = await createJob(world, { endAt, overlapPolicy: OverlapPolicy.ALLOW });
    for (let minute = 0; minute < 6; minute++) {
      await world.database.advanceClock(60);
      await world.fire();
    }
    const runs = await world.runs();
    expect(runs.length).toBeGreaterThan(0);
    expect(runs.every(({ fire_at }) => fire_at <= timestampDate(endAt))).toBe(true);
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.COMPLETED });
  });

  test("completes a job at max_runs when two nodes meet at the last one", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { maxRuns: 3, overlapPolicy: OverlapPolicy.ALLOW });
    const nodes = [world.scheduler(), world.scheduler()];
    for (let minute = 0; minute < 5; minute++) {
      await world.database.advanceClock(60);
      await Promise.all(nodes.map((tick) => tick(NEVER)));
    }
    expect((await world.runs()).length).toBe(3);
    const completed = await getJob(world, job.cronId);
    expect(completed).toMatchObject({ state: CronJobState.COMPLETED, enabled: false, runCount: 3 });
    expect(completed.nextRunAt).toBeUndefined();

    const { cronJob: raised } = await world.cron.updateCronJob({ cronId: job.cronId, maxRuns: 4 });
    expect(raised).toMatchObject({ state: CronJobState.ACTIVE, enabled: true });
    await world.database.advanceClock(60);
    await world.fire();
    expect(await getJob(world, job.cronId)).toMatchObject({ state: CronJobState.COMPLETED, runCount: 4 });
  });

  test("tells in how many milliseconds the next job fires", async () => {
    await using world = await runWorld();
    expect(await world.scheduler()(NEVER)).toEqual({ done: 0, nextDueInMs: undefined });
    const job = await createJob(world);
    const { nextDueInMs } = await world.scheduler()(NEVER);
    const inMs = timestampDate(job.nextRunAt ?? expect.fail()).getTime() - (await world.database.now()).getTime();
    expect(Math.abs((nextDueInMs ?? 0) - inMs)).toBeLessThan(1_000);
  });

  test("completes a job whose schedule cannot be read any more, and records why", async () => {
    await using world = await runWorld();
    const job = await createJob(world);
    await world.db.updateTable("cron_jobs").set({ timezone: "Mars/Olympus" }).execute();
    await world.database.advanceClock(60);
    await world.fire();
    expect(world.errors.length).toBe(1);
    const after = await getJob(world, job.cronId);
    expect(after.state).toBe(CronJobState.COMPLETED);
    expect(after.lastRun).toMatchObject({ state: RunState.MISSED });
    expect(after.lastRun?.error).toContain("cannot be read");
  });
});

describe("after an outage of ten minutes", () => {
  test.each([
    { policy: MisfirePolicy.SKIP, ran: 0, missed: 10 },
    { policy: MisfirePolicy.ONCE, ran: 1, missed: 9 },
    { policy: MisfirePolicy.ALL, ran: 10, missed: 0 },
  ])("misfire policy $policy runs $ran and misses $missed", async ({ policy, ran, missed }) => {
    await using world = await runWorld();
    const job = await createJob(world, { misfirePolicy: policy, overlapPolicy: OverlapPolicy.ALLOW });
    await world.database.advanceClock(600);
    await world.fire();

    const runs = await world.runs();
    expect(runs.filter(({ state }) => state === "pending").map(({ trigger }) => trigger)).toEqual(
      Array(ran).fill("catch_up"),
    );
    const missedRows = runs.filter(({ state }) => state === "missed");
    expect(missedRows.map(({ fire_count }) => fire_count)).toEqual(missed === 0 ? [] : [missed]);
    expect(missedRows.every((run) => run.finished_at !== null && run.error?.includes("no node could act"))).toBe(true);
    expect(await getJob(world, job.cronId)).toMatchObject({ runCount: ran });
  });
});

describe("at a fire time while an earlier run is live", () => {
  async function fireTwice(world: RunWorld, overlapPolicy: OverlapPolicy) {
    const job = await createJob(world, { overlapPolicy });
    await world.database.advanceClock(60);
    await world.fire();
    await world.database.advanceClock(60);
    await world.fire();
    return job;
  }

  test("allow starts another", async () => {
    await using world = await runWorld();
    await fireTwice(world, OverlapPolicy.ALLOW);
    expect((await world.runs()).map(({ state }) => state)).toEqual(["pending", "pending"]);
  });

  test("skip records it as skipped, which max_runs does not count", async () => {
    await using world = await runWorld();
    const job = await fireTwice(world, OverlapPolicy.SKIP);
    const [, second] = await world.runs();
    expect(second).toMatchObject({ state: "skipped", error: "an earlier run was still live" });
    expect(second?.finished_at).not.toBeNull();
    expect(await getJob(world, job.cronId)).toMatchObject({ runCount: 1 });
  });

  test("queue makes it wait until the live one is settled", async () => {
    await using world = await runWorld();
    const job = await fireTwice(world, OverlapPolicy.QUEUE);
    expect((await world.runs()).map(({ waiting }) => waiting)).toEqual([false, true]);
    const waiting = await getJob(world, job.cronId);
    expect(waiting.lastRun).toMatchObject({ state: RunState.PENDING });
    expect(waiting.lastRun?.nextAttemptAt).toBeUndefined();

    await world.dispatcher.tick(NEVER);
    await world.dispatcher.settled();
    expect((await world.runs()).map(({ state, waiting }) => ({ state, waiting }))).toEqual([
      { state: "succeeded", waiting: false },
      { state: "pending", waiting: false },
    ]);
    await world.dispatch();
    expect((await world.runs()).map(({ state }) => state)).toEqual(["succeeded", "succeeded"]);
  });

  test("queue leaves nobody waiting when the live one is settled while the next one is being recorded", async () => {
    await using world = await runWorld();
    const answer = Promise.withResolvers<object>();
    world.receiver.respond(() => answer.promise);
    await createJob(world, { overlapPolicy: OverlapPolicy.QUEUE });
    await world.database.advanceClock(60);
    await world.fire();
    await world.dispatcher.tick(NEVER);
    await world.receiver.next();

    // The scheduler has seen the live run and stops in the middle of its transaction.
    await sql
      .raw(`create function pause() returns trigger language plpgsql as
        $$ begin if new.waiting then perform pg_sleep(0.5); end if; return new; end $$`)
      .execute(world.db);
    await sql`create trigger slow before insert on runs for each row execute function pause()`.execute(world.db);
    await world.database.advanceClock(60);
    const fired = world.fire();
    const paused = async () =>
      (
        await sql`select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()`.execute(
          world.db,
        )
      ).rows.length;
    await expect.poll(paused, { interval: 5 }).toBe(1);
    answer.resolve({});
    await Promise.all([fired, world.dispatcher.settled()]);
    await world.dispatch();
    expect((await world.runs()).map(({ state }) => state)).toEqual(["succeeded", "succeeded"]);
  });

  test("queue lets at most 100 wait and skips those that waited longest", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { overlapPolicy: OverlapPolicy.QUEUE });
    for (let minute = 0; minute < 104; minute++) {
      await world.database.advanceClock(60);
      await world.fire();
    }
    const runs = await world.runs();
    expect(runs.filter(({ waiting }) => waiting).length).toBe(100);
    expect(runs.slice(0, 5).map(({ state }) => state)).toEqual(["pending", "skipped", "skipped", "skipped", "pending"]);
    const dropped = { disposition: "skipped_overlap", error: "too many runs were waiting for their turn" };
    expect(runs[1]).toMatchObject(dropped);
    expect(await getJob(world, job.cronId)).toMatchObject({ runCount: 101 });

    // One that is asked for takes a place like any other.
    await world.cron.triggerCronJob({ cronId: job.cronId });
    const after = await world.runs();
    expect(after.filter(({ waiting }) => waiting).length).toBe(100);
    expect(after[4]).toMatchObject(dropped);
    expect(await getJob(world, job.cronId)).toMatchObject({ runCount: 100 });
  });

  test("cancel_previous cancels the live one and starts", async () => {
    await using world = await runWorld();
    await fireTwice(world, OverlapPolicy.CANCEL_PREVIOUS);
    const [first, second] = await world.runs();
    expect(first).toMatchObject({ state: "canceled" });
    expect(second).toMatchObject({ state: "pending", waiting: false });
  });

  test("a run between two attempts gives way under skip", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 500, headers: { "retry-after": "600" } });
    await createJob(world);
    await world.database.advanceClock(60);
    await world.fire();
    await world.dispatch();
    expect((await world.runs()).map(({ state }) => state)).toEqual(["retrying"]);

    await world.database.advanceClock(60);
    await world.fire();
    const [first, second] = await world.runs();
    expect(first).toMatchObject({ state: "failed", error: "gave way to the next fire time", response_status: 500 });
    expect(second).toMatchObject({ state: "pending" });
  });
});

describe("a triggered run", () => {
  test("starts while the job is paused and does not count against max_runs", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { maxRuns: 1 });
    await world.cron.pauseCronJob({ cronId: job.cronId });
    const { run } = await world.cron.triggerCronJob({ cronId: job.cronId });
    expect(run).toMatchObject({ state: RunState.PENDING, trigger: RunTrigger.MANUAL, attempt: 0 });
    await world.dispatch();
    expect(await getJob(world, job.cronId)).toMatchObject({
      state: CronJobState.PAUSED,
      runCount: 0,
      lastRun: { runId: run?.runId, state: RunState.SUCCEEDED },
    });
  });

  test("is answered as skipped when the overlap policy lets it pass, and runs under a policy of its own", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    await world.cron.triggerCronJob({ cronId });
    expect((await world.cron.triggerCronJob({ cronId })).run).toMatchObject({ state: RunState.SKIPPED });
    const { run } = await world.cron.triggerCronJob({ cronId, overlapPolicy: OverlapPolicy.ALLOW });
    expect(run).toMatchObject({ state: RunState.PENDING });
  });
});

test("a paused job does not fire, and resumes with its next fire time after now", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  const { cronJob: paused } = await world.cron.pauseCronJob({ cronId });
  expect(paused).toMatchObject({ state: CronJobState.PAUSED, enabled: false });
  expect(paused?.nextRunAt).toBeUndefined();
  expect((await world.cron.pauseCronJob({ cronId })).cronJob).toEqual(paused);

  await world.database.advanceClock(600);
  await world.fire();
  const { cronJob: resumed } = await world.cron.resumeCronJob({ cronId });
  expect(resumed).toMatchObject({ state: CronJobState.ACTIVE, enabled: true });
  const next = timestampDate(resumed?.nextRunAt ?? expect.fail());
  expect(next.getTime()).toBeGreaterThan((await world.database.now()).getTime());
  await world.fire();
  expect(await world.runs()).toMatchObject([{ disposition: "paused", attempt: 0, fire_count: 10 }]);
  expect((await getJob(world, cronId)).lastRun).toBeUndefined();
});

test("a deleted job fires no more and takes back what has not started", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  await world.cron.triggerCronJob({ cronId });
  expect(await world.cron.deleteCronJob({ cronId })).toMatchObject({ cronId, deleted: true });
  expect(await world.cron.deleteCronJob({ cronId })).toMatchObject({ cronId, deleted: false });
  await world.database.advanceClock(600);
  await world.fire();
  await world.dispatch();
  expect(world.receiver.count).toBe(0);
  const [run, ...others] = await world.runs();
  expect(run).toMatchObject({ state: "canceled", error: "the cron job was deleted" });
  expect(others).toEqual([]);
});
