import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { CronJobState, MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy, RunDisposition, RunState, RunTrigger } from "../../gen/scheduling/v1/run_pb.js";
import { DstGap } from "../../gen/scheduling/v1/schedule_pb.js";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const MINUTE_MS = 60_000;

const ledger = async (world: RunWorld, cronId: string, disposition?: RunDisposition) =>
  (await world.cron.listCronRuns({ cronId, limit: 500, ...(disposition && { disposition }) })).items;

async function explain(world: RunWorld, cronId: string, at: Date) {
  return world.cron.explainCronFire({ cronId, at: timestampFromDate(at) });
}

/** Puts the clock at an instant to come. */
async function travelTo(world: RunWorld, instant: string): Promise<void> {
  await world.database.advanceClock((Date.parse(instant) - (await world.database.now()).getTime()) / 1_000);
}

describe("every fire has its record", () => {
  test("a fire that ran, one that overlapped and one that nobody could make", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { misfirePolicy: MisfirePolicy.SKIP });
    await world.database.advanceClock(31);
    await world.fire();
    await world.database.advanceClock(60);
    await world.fire();
    await world.dispatch();
    await world.database.advanceClock(150);
    await world.fire();
    expect((await ledger(world, cronId)).map(({ disposition }) => disposition).toReversed()).toEqual([
      RunDisposition.RAN,
      RunDisposition.SKIPPED_OVERLAP,
      RunDisposition.MISSED,
    ]);
    expect(await ledger(world, cronId, RunDisposition.RAN)).toMatchObject([{ state: RunState.SUCCEEDED }]);
  });

  test("the fires of a pause become one record when it ends, whatever their number", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { cronExpr: "* * * * * *" });
    await world.cron.pauseCronJob({ cronId, reason: "the target moves" });
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.PAUSED, pauseReason: "the target moves" });
    const pausedAt = await world.database.now();
    await world.database.advanceClock(366 * 86_400);
    const started = performance.now();
    const { cronJob } = await world.cron.resumeCronJob({ cronId });
    expect(performance.now() - started).toBeLessThan(2_000);
    expect(cronJob?.pauseReason).toBeUndefined();
    const [record, ...rest] = await ledger(world, cronId, RunDisposition.PAUSED);
    expect(rest).toEqual([]);
    expect(record).toMatchObject({ state: RunState.SKIPPED, fireCount: 1_000 });
    const until = timestampDate(record?.fireUntil ?? expect.fail()).getTime();
    expect(until - pausedAt.getTime()).toBeGreaterThan(366 * 86_400_000 - 5_000);
  });

  test("what is due when a job is paused, changed or deleted fires first", async () => {
    await using world = await runWorld();
    for (const change of ["pauseCronJob", "updateCronJob", "deleteCronJob"] as const) {
      const { cronId } = await createJob(world);
      await world.database.advanceClock(31);
      if (change === "updateCronJob") await world.cron.updateCronJob({ cronId, cronExpr: "0 0 1 1 *" });
      else await world.cron[change]({ cronId });
      const expected = change === "deleteCronJob" ? RunDisposition.CANCELED : RunDisposition.RAN;
      expect(await ledger(world, cronId)).toMatchObject([{ disposition: expected, trigger: RunTrigger.SCHEDULE }]);
    }
  });

  test("the fires after max_runs become one record when the job fires again", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { maxRuns: 1 });
    await world.database.advanceClock(31);
    await world.fire();
    await world.database.advanceClock(300);
    await world.cron.updateCronJob({ cronId, maxRuns: 2 });
    expect(await ledger(world, cronId, RunDisposition.MAX_RUNS)).toMatchObject([{ fireCount: 5 }]);
  });

  test("the fires over max_runs that are due at once have a record too", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, {
      maxRuns: 2,
      misfirePolicy: MisfirePolicy.ALL,
      overlapPolicy: OverlapPolicy.ALLOW,
    });
    await world.database.advanceClock(331);
    await world.fire();
    expect(await ledger(world, cronId, RunDisposition.CAUGHT_UP)).toHaveLength(2);
    expect(await ledger(world, cronId, RunDisposition.MAX_RUNS)).toMatchObject([{ fireCount: 4 }]);
  });

  test("local times that a clock change skips have a record where they do not fire", async () => {
    await using world = await runWorld();
    await travelTo(world, "2038-03-27T12:00:00Z");
    const { cronId } = await createJob(world, {
      cronExpr: "0,30 2 * * *",
      timezone: "Europe/Berlin",
      dstGap: DstGap.SKIP,
    });
    await travelTo(world, "2038-03-29T00:00:05Z");
    await world.fire();
    const [record] = await ledger(world, cronId, RunDisposition.DST_GAP);
    expect(record).toMatchObject({ fireCount: 2, state: RunState.SKIPPED });
    expect(timestampDate(record?.scheduledAt ?? expect.fail()).toISOString()).toBe("2038-03-28T01:00:00.000Z");
    expect(await explain(world, cronId, new Date("2038-03-28T01:30:00Z"))).toMatchObject({ due: false });
    expect(await ledger(world, cronId, RunDisposition.RAN)).toHaveLength(1);
  });
});

describe("of any instant it can be said what was due", () => {
  test("that a fire ran, was let pass in a pause, is to come, or that nothing was due", async () => {
    await using world = await runWorld();
    const { cronId, nextRunAt } = await createJob(world);
    const first = timestampDate(nextRunAt ?? expect.fail());
    const later = (minutes: number) => new Date(first.getTime() + minutes * MINUTE_MS);
    expect(await explain(world, cronId, first)).toMatchObject({ due: true, explanation: "it will be due" });
    await world.database.advanceClock(31);
    await world.fire();
    await world.dispatch();
    expect(await explain(world, cronId, first)).toMatchObject({
      due: true,
      disposition: RunDisposition.RAN,
      explanation: "it was let run, and is succeeded",
      run: { state: RunState.SUCCEEDED },
    });
    expect(await explain(world, cronId, new Date(first.getTime() + 15_000))).toMatchObject({ due: false });
    expect(await explain(world, cronId, new Date(first.getTime() - 3_600_000))).toMatchObject({
      due: false,
      explanation: expect.stringContaining("the job was created at"),
    });

    await world.cron.pauseCronJob({ cronId, reason: "maintenance" });
    await world.database.advanceClock(300);
    const paused = await explain(world, cronId, later(2));
    expect(paused).toMatchObject({ due: true, disposition: RunDisposition.PAUSED });
    expect(paused.explanation).toContain("maintenance");
    await world.cron.resumeCronJob({ cronId });
    expect(await explain(world, cronId, later(2))).toMatchObject({
      due: true,
      disposition: RunDisposition.PAUSED,
      run: { fireCount: 5 },
    });
    expect(await explain(world, cronId, new Date(later(2).getTime() + 15_000))).toMatchObject({ due: false });
  });
});

describe("a fire that did not run can be run afterwards", () => {
  test("its record becomes the run", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { misfirePolicy: MisfirePolicy.SKIP });
    await world.database.advanceClock(45);
    await world.fire();
    const [missed] = await ledger(world, cronId, RunDisposition.MISSED);
    const runId = missed?.runId ?? expect.fail();
    const { run } = await world.cron.runCronRun({ cronId, runId });
    expect(run).toMatchObject({
      runId,
      state: RunState.PENDING,
      trigger: RunTrigger.BACKFILL,
      disposition: RunDisposition.CAUGHT_UP,
      scheduledAt: missed?.scheduledAt,
    });
    await world.dispatch();
    expect(world.receiver.requests[0]?.headers["carillon-trigger"]).toBe("backfill");
    expect((await world.cron.getCronRun({ cronId, runId })).run).toMatchObject({ state: RunState.SUCCEEDED });
    expect((await getJob(world, cronId)).runCount).toBe(0);
    await expect(world.cron.runCronRun({ cronId, runId })).rejects.toMatchObject({ code: Code.FailedPrecondition });
  });

  test("the overlap policy is asked again, and may be overridden", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    await world.database.advanceClock(31);
    await world.fire();
    await world.database.advanceClock(60);
    await world.fire();
    const [skipped] = await ledger(world, cronId, RunDisposition.SKIPPED_OVERLAP);
    const runId = skipped?.runId ?? expect.fail();
    await expect(world.cron.runCronRun({ cronId, runId })).rejects.toMatchObject({ code: Code.FailedPrecondition });
    expect((await world.cron.runCronRun({ cronId, runId, overlapPolicy: OverlapPolicy.ALLOW })).run).toMatchObject({
      state: RunState.PENDING,
    });
    await world.dispatch();
    expect(world.receiver.requests).toHaveLength(2);
  });
});
