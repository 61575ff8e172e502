import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { CronBackfillState } from "../../gen/scheduling/v1/cron_backfill_pb.js";
import { MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy, RunDisposition, RunTrigger } from "../../gen/scheduling/v1/run_pb.js";
import { stepBackfill } from "../../src/store/backfills.ts";
import { createBackfiller } from "../../src/worker/backfiller.ts";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

/** A job whose fires of the last `minutes` were missed. */
async function outage(world: RunWorld, minutes: number): Promise<{ readonly cronId: string; readonly since: Date }> {
  const { cronId } = await createJob(world, { misfirePolicy: MisfirePolicy.SKIP });
  const since = await world.database.now();
  await world.database.advanceClock(minutes * 60);
  await world.fire();
  await world.dispatch();
  return { cronId, since };
}

const start = (world: RunWorld, cronId: string, since: Date, more: object = {}) =>
  world.cron.startCronBackfill({ cronId, since: timestampFromDate(since), ...more });

async function finish(world: RunWorld): Promise<void> {
  const tick = createBackfiller({ db: world.db });
  for (let rounds = 0; rounds < 50; rounds++) {
    const { done } = await tick(NEVER);
    await world.dispatch();
    if (done === 0) return;
  }
}

const backfilled = async (world: RunWorld, cronId: string) =>
  (await world.cron.listCronRuns({ cronId, disposition: RunDisposition.CAUGHT_UP, limit: 500 })).items;

describe("a backfill", () => {
  test("counts beforehand, then runs each fire of the range that did not run, once and in order", async () => {
    await using world = await runWorld();
    const { cronId, since } = await outage(world, 20);
    const { matched, backfill: none } = await start(world, cronId, since, { dryRun: true });
    expect(none).toBeUndefined();
    expect(matched).toBeGreaterThanOrEqual(19);
    const before = world.receiver.requests.length;

    const { backfill } = await start(world, cronId, since);
    await finish(world);
    const after = await world.cron.getCronBackfill({ backfillId: backfill?.backfillId ?? "" });
    expect(after.backfill).toMatchObject({ state: CronBackfillState.SUCCEEDED, matched, started: matched });
    const delivered = world.receiver.requests.slice(before).map(({ headers }) => headers["carillon-scheduled-at"]);
    expect(delivered).toHaveLength(matched);
    expect(delivered).toEqual(delivered.toSorted());
    expect(new Set(delivered).size).toBe(matched);
    const runs = await backfilled(world, cronId);
    expect(runs.every(({ trigger }) => trigger === RunTrigger.BACKFILL)).toBe(true);
    expect((await getJob(world, cronId)).runCount).toBeLessThanOrEqual(1);
    expect((await start(world, cronId, since, { dryRun: true })).matched).toBe(0);
  });

  test("may reach back before the job was created", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { cronExpr: "0 0 * * *" });
    const since = new Date((await world.database.now()).getTime() - 5 * 86_400_000);
    const { matched } = await start(world, cronId, since);
    expect(matched).toBe(5);
    await finish(world);
    expect(await backfilled(world, cronId)).toHaveLength(5);
  });

  test("goes on where the last whole step ended when its node dies under a step", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { cronExpr: "* * * * * *", misfirePolicy: MisfirePolicy.SKIP });
    const since = new Date((await world.database.now()).getTime() - 250_000);
    const { matched } = await start(world, cronId, since, { overlapPolicy: OverlapPolicy.ALLOW });
    const [key] = await world.db.selectFrom("backfills").select(["project_id", "backfill_id"]).execute();
    const dying = world.db.transaction().execute(async (trx) => {
      await stepBackfill(trx, key ?? expect.fail());
      throw new Error("the node died");
    });
    await expect(dying).rejects.toThrow("the node died");
    expect(await backfilled(world, cronId)).toHaveLength(0);

    const ticks = [createBackfiller({ db: world.db }), createBackfiller({ db: world.db })];
    for (let round = 0; round < 4; round++) await Promise.all(ticks.map((tick) => tick(NEVER)));
    expect(await backfilled(world, cronId)).toHaveLength(matched);
  });

  test("keeps to its rate, and ends when it is called off", async () => {
    await using world = await runWorld();
    const { cronId, since } = await outage(world, 30);
    const { backfill } = await start(world, cronId, since, { runsPerSecond: 4 });
    const tick = createBackfiller({ db: world.db });
    expect((await tick(NEVER)).done).toBe(1);
    expect((await tick(NEVER)).done).toBe(0);
    await world.database.advanceClock(1);
    expect((await tick(NEVER)).done).toBe(1);
    const backfillId = backfill?.backfillId ?? "";
    expect((await world.cron.cancelCronBackfill({ backfillId })).backfill).toMatchObject({
      state: CronBackfillState.CANCELED,
      started: 2,
    });
    await world.database.advanceClock(10);
    expect((await tick(NEVER)).done).toBe(0);
  });

  test("lets no more wait at a time than may, and drops none", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { cronExpr: "* * * * * *", misfirePolicy: MisfirePolicy.SKIP });
    const since = new Date((await world.database.now()).getTime() - 150_000);
    const { matched } = await start(world, cronId, since);
    const tick = createBackfiller({ db: world.db });
    for (let step = 0; step < 3; step++) {
      await tick(NEVER);
      await world.database.advanceClock(2);
    }
    // One is live, 100 wait.
    expect(await backfilled(world, cronId)).toHaveLength(101);
    await world.dispatch();
    await finish(world);
    expect(await backfilled(world, cronId)).toHaveLength(matched);
  });

  test("of a deleted job fails, and a job has one at a time", async () => {
    await using world = await runWorld();
    const { cronId, since } = await outage(world, 5);
    const { backfill } = await start(world, cronId, since);
    await expect(start(world, cronId, since)).rejects.toMatchObject({ code: Code.AlreadyExists });
    await world.cron.deleteCronJob({ cronId });
    await finish(world);
    const { backfill: failed } = await world.cron.getCronBackfill({ backfillId: backfill?.backfillId ?? "" });
    expect(failed).toMatchObject({ state: CronBackfillState.FAILED, error: expect.stringContaining("deleted") });
  });

  test("is refused for a range with too many fire times", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { cronExpr: "* * * * * *" });
    const since = new Date((await world.database.now()).getTime() - 86_400_000);
    await expect(start(world, cronId, since)).rejects.toMatchObject({ code: Code.InvalidArgument });
  });
});
