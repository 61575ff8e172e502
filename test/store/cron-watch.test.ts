import { timestampDate } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { CronJobState, CronOverdueReason, MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy } from "../../gen/scheduling/v1/run_pb.js";
import { insertEventWebhook } from "../../src/store/event-webhooks.ts";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

/** A world in which somebody subscribes to cron.* events. Nobody is there to take them, so that they stay to be read. */
async function watchedWorld(): Promise<RunWorld> {
  const world = await runWorld();
  const url = "http://127.0.0.1:1/hook";
  await insertEventWebhook(world.db, { project_id: world.projectId, name: "", url, event_types: ["cron.*"] });
  return world;
}

/** The events of overdue jobs so far, oldest first. */
async function events(world: RunWorld) {
  const rows = await world.db.selectFrom("callbacks").select("body").orderBy("callback_id").execute();
  return rows
    .map(({ body }) => JSON.parse(body.toString()))
    .filter(({ type }) => type === "cron.overdue" || type === "cron.recovered");
}

const types = async (world: RunWorld) => (await events(world)).map(({ type }) => type);

/** Lets the first fire of a job for every minute come, a second after its time. */
async function firstFire(world: RunWorld): Promise<void> {
  await world.database.advanceClock(31);
  await world.fire();
}

async function later(world: RunWorld, seconds: number): Promise<void> {
  await world.database.advanceClock(seconds);
  await world.fire();
}

const waits = async (world: RunWorld) => (await world.db.selectFrom("cron_watches").selectAll().execute()).length;

describe("a job whose runs have to succeed in time", () => {
  test("is overdue from the end of the grace on, which is told once and shown", async () => {
    await using world = await watchedWorld();
    world.receiver.respond({ status: 500 });
    const { cronId, nextRunAt, name, url } = await createJob(world, { finishGraceSeconds: 40, retries: 0 });
    const fireAt = timestampDate(nextRunAt ?? expect.fail());
    await firstFire(world);
    await world.dispatch();
    await later(world, 30);
    expect(await getJob(world, cronId)).toMatchObject({ overdueFires: 0 });
    expect((await getJob(world, cronId)).overdueSince).toBeUndefined();

    await later(world, 15);
    const dueAt = new Date(fireAt.getTime() + 40_000);
    const job = await getJob(world, cronId);
    expect(job).toMatchObject({ overdueReason: CronOverdueReason.NOT_SUCCEEDED, overdueFires: 1 });
    expect(timestampDate(job.overdueSince ?? expect.fail())).toEqual(dueAt);
    expect((await world.cron.listCronJobs({})).items).toMatchObject([{ cronId, overdueFires: 1 }]);
    const told = {
      type: "cron.overdue",
      data: {
        cron_id: cronId,
        name,
        url,
        reason: "not_succeeded",
        scheduled_at: fireAt.toISOString(),
        due_at: dueAt.toISOString(),
      },
    };
    expect(await events(world)).toMatchObject([told]);

    await later(world, 60);
    const longer = await getJob(world, cronId);
    expect(longer).toMatchObject({ overdueFires: 2 });
    expect(timestampDate(longer.overdueSince ?? expect.fail())).toEqual(dueAt);
    expect(await types(world)).toEqual(["cron.overdue"]);
  });

  test("recovers when a run of its newest fire succeeds, which is told", async () => {
    await using world = await watchedWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, { finishGraceSeconds: 10, retries: 0 });
    await firstFire(world);
    await world.dispatch();
    await later(world, 15);
    world.receiver.respond({ status: 200 });
    await later(world, 45);
    await world.dispatch();

    const job = await getJob(world, cronId);
    expect(job).toMatchObject({ overdueFires: 0 });
    expect(job.overdueSince).toBeUndefined();
    expect(job.overdueReason).toBeUndefined();
    const [overdue, recovered] = await events(world);
    expect(recovered).toMatchObject({
      type: "cron.recovered",
      data: { cron_id: cronId, overdue_since: overdue.data.due_at, overdue_fires: 1 },
    });
    expect(Date.parse(recovered.data.scheduled_at) - Date.parse(overdue.data.scheduled_at)).toBe(60_000);
    await later(world, 30);
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("recovers by a run that somebody starts", async () => {
    await using world = await watchedWorld();
    const { cronId } = await createJob(world, { finishGraceSeconds: 10, overlapPolicy: OverlapPolicy.ALLOW });
    await firstFire(world);
    await later(world, 15);
    expect(await types(world)).toEqual(["cron.overdue"]);
    await world.cron.triggerCronJob({ cronId });
    await world.dispatch();
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("is told of nothing while it keeps its time", async () => {
    await using world = await watchedWorld();
    await createJob(world, { startGraceSeconds: 10, finishGraceSeconds: 20 });
    await firstFire(world);
    expect(await waits(world)).toBe(1);
    await world.dispatch();
    expect(await waits(world)).toBe(0);
    await later(world, 28);
    expect(await types(world)).toEqual([]);
  });

  test("was overdue when its success came late, even if no worker has looked in between", async () => {
    await using world = await watchedWorld();
    await createJob(world, { finishGraceSeconds: 10 });
    await firstFire(world);
    await world.database.advanceClock(15);
    await world.dispatch();
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("does not recover by the success of a fire before the newest that was not kept", async () => {
    await using world = await watchedWorld();
    const answer = Promise.withResolvers<{ status: number }>();
    world.receiver.respond(() => answer.promise);
    const { cronId } = await createJob(world, {
      finishGraceSeconds: 10,
      retries: 0,
      overlapPolicy: OverlapPolicy.ALLOW,
      timeoutSeconds: 900,
    });
    await firstFire(world);
    await world.dispatcher.tick(NEVER);
    await expect.poll(() => world.receiver.count, { interval: 5 }).toBe(1);
    await later(world, 15);
    // The second fire comes, and nobody starts it.
    await later(world, 45);
    await later(world, 15);
    expect(await getJob(world, cronId)).toMatchObject({ overdueFires: 2 });
    answer.resolve({ status: 200 });
    await world.dispatcher.settled();
    expect((await world.runs()).map(({ state }) => state)).toContain("succeeded");
    expect(await getJob(world, cronId)).toMatchObject({ overdueFires: 2 });
    await world.dispatch();
    expect(await getJob(world, cronId)).toMatchObject({ overdueFires: 0 });
  });

  test("is overdue for a fire that no node could make", async () => {
    await using world = await watchedWorld();
    const { cronId } = await createJob(world, { finishGraceSeconds: 10, misfirePolicy: MisfirePolicy.SKIP });
    await later(world, 600);
    expect(await getJob(world, cronId)).toMatchObject({ overdueFires: 1 });
    expect(await types(world)).toEqual(["cron.overdue"]);
  });

  test("is judged once for each fire however many nodes look", async () => {
    await using world = await watchedWorld();
    const { cronId } = await createJob(world, { finishGraceSeconds: 5, overlapPolicy: OverlapPolicy.ALLOW });
    const nodes = Array.from({ length: 4 }, () => world.scheduler());
    for (let minute = 0; minute < 5; minute++) {
      await later(world, minute === 0 ? 31 : 50);
      await world.database.advanceClock(10);
      await Promise.all(nodes.map((tick) => tick(NEVER)));
      expect(await getJob(world, cronId)).toMatchObject({ overdueFires: minute + 1 });
    }
    expect(world.errors).toEqual([]);
    expect(await types(world)).toEqual(["cron.overdue"]);
  });
});

describe("a job whose runs have to start in time", () => {
  test("is overdue when none has, and recovers by the next that does", async () => {
    await using world = await watchedWorld();
    const { cronId } = await createJob(world, { startGraceSeconds: 10, overlapPolicy: OverlapPolicy.ALLOW });
    await firstFire(world);
    await later(world, 15);
    expect(await getJob(world, cronId)).toMatchObject({ overdueReason: CronOverdueReason.NOT_STARTED });
    world.receiver.respond({ status: 500 });
    await later(world, 45);
    await world.dispatch();
    await later(world, 15);
    expect(await types(world)).toEqual(["cron.overdue", "cron.recovered"]);
  });

  test("and succeed: one that starts in time and fails is overdue at the end of the second grace", async () => {
    await using world = await watchedWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, { startGraceSeconds: 10, finishGraceSeconds: 25, retries: 0 });
    await firstFire(world);
    await world.dispatch();
    await later(world, 15);
    expect(await types(world)).toEqual([]);
    await later(world, 12);
    expect(await getJob(world, cronId)).toMatchObject({
      overdueReason: CronOverdueReason.NOT_SUCCEEDED,
      overdueFires: 1,
    });
  });
});

describe("a job is not waited for", () => {
  test("by default", async () => {
    await using world = await watchedWorld();
    await createJob(world);
    await firstFire(world);
    expect(await waits(world)).toBe(0);
  });

  test("where the overlap policy lets a fire pass", async () => {
    await using world = await watchedWorld();
    await createJob(world, { finishGraceSeconds: 3_600 });
    await firstFire(world);
    await later(world, 60);
    expect((await world.runs()).map(({ state }) => state)).toEqual(["pending", "skipped"]);
    expect(await waits(world)).toBe(1);
  });

  test.each([
    ["it is paused", (world: RunWorld, cronId: string) => world.cron.pauseCronJob({ cronId })],
    ["it is deleted", (world: RunWorld, cronId: string) => world.cron.deleteCronJob({ cronId })],
    [
      "its grace is cleared",
      (world: RunWorld, cronId: string) =>
        world.cron.updateCronJob({ cronId, updateMask: { paths: ["finish_grace_seconds"] } }),
    ],
  ])("once %s", async (_, end) => {
    await using world = await watchedWorld();
    const { cronId } = await createJob(world, { finishGraceSeconds: 70, overlapPolicy: OverlapPolicy.ALLOW });
    await firstFire(world);
    await later(world, 75);
    expect(await types(world)).toEqual(["cron.overdue"]);
    expect(await waits(world)).toBe(1);
    await end(world, cronId);
    expect(await waits(world)).toBe(0);
    const { items } = await world.cron.listCronJobs({});
    expect(items.every(({ overdueFires, overdueSince }) => overdueFires === 0 && overdueSince === undefined)).toBe(
      true,
    );
    await later(world, 10);
    expect(await types(world)).toEqual(["cron.overdue"]);
  });

  test("once its failures have paused it", async () => {
    await using world = await watchedWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, { finishGraceSeconds: 20, retries: 0, pauseAfterFailures: 1 });
    await firstFire(world);
    await world.dispatch();
    await later(world, 25);
    expect(await getJob(world, cronId)).toMatchObject({ state: CronJobState.PAUSED, overdueFires: 0 });
    expect(await types(world)).toEqual([]);
  });
});
