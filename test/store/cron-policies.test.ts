import { timestampDate } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { CronJobState } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy, RunDisposition, RunState } from "../../gen/scheduling/v1/run_pb.js";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const ledger = async (world: RunWorld, cronId: string) => (await world.cron.listCronRuns({ cronId })).items;

/** Lets the next fire come and everything that it causes. */
async function nextMinute(world: RunWorld): Promise<void> {
  await world.database.advanceClock(60);
  await world.fire();
  await world.dispatch();
}

describe("a fire that has to start within some seconds", () => {
  test("does not run when nobody started it in time, and no node starts it late", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { expireAfterSeconds: 5 });
    await world.database.advanceClock(31);
    await world.scheduler()(new AbortController().signal);
    await world.database.advanceClock(6);
    await world.dispatch();
    expect(world.receiver.requests).toHaveLength(0);
    await world.fire();
    expect(await ledger(world, cronId)).toMatchObject([
      { state: RunState.CANCELED, disposition: RunDisposition.EXPIRED, error: "expired" },
    ]);
    expect((await getJob(world, cronId)).runCount).toBe(0);
  });

  test("gives its turn to the next one that waits", async () => {
    await using world = await runWorld();
    await createJob(world, { expireAfterSeconds: 70, overlapPolicy: OverlapPolicy.QUEUE });
    await world.database.advanceClock(31);
    await world.fire();
    await world.database.advanceClock(60);
    await world.fire();
    expect((await world.runs()).map(({ waiting }) => waiting)).toEqual([false, true]);
    await world.database.advanceClock(15);
    await world.fire();
    await world.dispatch();
    expect((await world.runs()).map(({ disposition, state }) => [disposition, state])).toEqual([
      ["expired", "canceled"],
      ["ran", "succeeded"],
    ]);
  });

  test("may start as long after it was caught up", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { expireAfterSeconds: 5 });
    await world.database.advanceClock(50);
    await world.fire();
    await world.dispatch();
    expect(await ledger(world, cronId)).toMatchObject([
      { state: RunState.SUCCEEDED, disposition: RunDisposition.CAUGHT_UP },
    ]);
  });
});

describe("a job that is paused when its runs fail", () => {
  test("is paused after so many in a row, says why, and tells", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, { pauseAfterFailures: 2, retries: 0 });
    await world.database.advanceClock(-29);
    await nextMinute(world);
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.ACTIVE, failuresInARow: 1 });
    await nextMinute(world);
    const paused = await getJob(world, cronId);
    expect(paused).toMatchObject({ state: CronJobState.PAUSED, pauseReason: "2 runs in a row failed" });
    expect(paused.nextRunAt).toBeUndefined();
  });

  test("goes on when a run succeeds in between", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { pauseAfterFailures: 2, retries: 0 });
    await world.database.advanceClock(-29);
    for (const status of [500, 200, 500]) {
      world.receiver.respond({ status });
      await nextMinute(world);
    }
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.ACTIVE, failuresInARow: 1 });
  });

  test("counts runs whose retries gave way to the next fire", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, { pauseAfterFailures: 1, retries: 10 });
    await world.database.advanceClock(-29);
    await nextMinute(world);
    await nextMinute(world);
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.PAUSED });
  });
});

test("a delivery says for when it was due, when it was made, and how late that was", async () => {
  await using world = await runWorld();
  const { nextRunAt } = await createJob(world);
  await world.database.advanceClock(34);
  await world.fire();
  await world.dispatch();
  const headers = world.receiver.requests[0]?.headers ?? {};
  const due = timestampDate(nextRunAt ?? expect.fail());
  expect(headers).toMatchObject({
    "carillon-scheduled-at": due.toISOString(),
    "carillon-effective-at": due.toISOString(),
    "carillon-trigger": "schedule",
    "carillon-attempt": "1",
  });
  const latenessMs = Number(headers["carillon-lateness-ms"]);
  expect(latenessMs).toBeGreaterThanOrEqual(3_000);
  expect(latenessMs).toBe(Date.parse(String(headers["carillon-attempted-at"])) - due.getTime());
});
