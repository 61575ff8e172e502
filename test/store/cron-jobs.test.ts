import { create } from "@bufbuild/protobuf";
import { type FieldMask, FieldMaskSchema, timestampDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { BadRequestSchema, ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { CronJobState, MisfirePolicy } from "../../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy } from "../../gen/scheduling/v1/run_pb.js";
import { pruneCronTombstones } from "../../src/store/cron-jobs.ts";
import { applyRetention, pruneRuns } from "../../src/store/runs-pruning.ts";
import { createJob, getJob, type RunWorld, runWorld } from "../support/runs.ts";

function mask(...paths: string[]): FieldMask {
  return create(FieldMaskSchema, { paths });
}

/** What a call was refused for. */
async function refusal(call: Promise<unknown>): Promise<{ code: Code; reason?: string; field?: string; text: string }> {
  const error = ConnectError.from(
    await call.then(
      () => expect.fail("not refused"),
      (cause: unknown) => cause,
    ),
  );
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  const field = error.findDetails(BadRequestSchema)[0]?.fieldViolations[0]?.field;
  return {
    code: error.code,
    text: error.rawMessage,
    ...(reason !== undefined && { reason }),
    ...(field !== undefined && { field }),
  };
}

describe("a created cron job", () => {
  test("has the documented defaults and a name from its URL", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { url: `${world.receiver.url}/weekly?x=1` });
    expect(job).toMatchObject({
      name: `127.0.0.1:${world.receiver.port}/weekly`,
      cronExpr: "* * * * *",
      timezone: "UTC",
      contentType: "application/json",
      retries: 3,
      timeoutSeconds: 30,
      overlapPolicy: OverlapPolicy.SKIP,
      misfirePolicy: MisfirePolicy.ONCE,
      misfireWindowSeconds: 3_600,
      retentionDays: 30,
      enabled: true,
      state: CronJobState.ACTIVE,
      runCount: 0,
    });
    expect(job.payload).toBeUndefined();
    expect(job.maxRuns).toBeUndefined();
    expect(timestampDate(job.nextRunAt ?? expect.fail()).getUTCSeconds()).toBe(0);
    expect(await getJob(world, job.cronId)).toEqual(job);
  });

  test("fires by the wall clock of its time zone", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { cronExpr: "30 9 * * *", timezone: "Asia/Kolkata" });
    expect(timestampDate(job.nextRunAt ?? expect.fail()).toISOString()).toMatch(/T04:00:00.000Z$/);
  });

  test.each([
    { job: { cronExpr: "61 * * * *" }, reason: "CRON_EXPR_INVALID", field: "cron_expr" },
    { job: { cronExpr: "0 0 0 1 1 * 2001" }, reason: "CRON_EXPR_INVALID", field: "cron_expr" },
    { job: { timezone: "Mars/Olympus" }, reason: "TIMEZONE_INVALID", field: "timezone" },
    { job: { url: "http://192.168.0.1/" }, reason: "TARGET_REFUSED", field: "url" },
    { job: { onFailureWebhook: "ftp://x" }, reason: "TARGET_REFUSED", field: "on_failure_webhook" },
    { job: { payload: Buffer.from("{") }, reason: "FIELD_INVALID", field: "payload" },
    { job: { headers: { Host: "x" } }, reason: "FIELD_INVALID", field: 'headers["Host"]' },
    { job: { headers: { authorization: "***" } }, reason: "FIELD_INVALID", field: 'headers["authorization"]' },
    { job: { secret: "whsec_!" }, reason: "FIELD_INVALID", field: "secret" },
  ])("is refused for $field: $reason", async ({ job, reason, field }) => {
    await using world = await runWorld();
    expect(await refusal(createJob(world, job))).toMatchObject({ code: Code.InvalidArgument, reason, field });
  });

  test("is created once for an idempotency key", async () => {
    await using world = await runWorld();
    const request = { cronExpr: "@hourly", url: world.receiver.url, idempotencyKey: "k" };
    const { cronJob } = await world.cron.createCronJob(request);
    expect((await world.cron.createCronJob(request)).cronJob).toEqual(cronJob);
    expect((await world.cron.listCronJobs({})).items.length).toBe(1);
  });

  test("shows the values of headers that carry credentials as ***", async () => {
    await using world = await runWorld();
    const job = await createJob(world, {
      headers: { Authorization: "Bearer 1", "x-auth-token": "2", "X-Api-Key": "3", accept: "4", cookie: "5" },
    });
    expect(job.headers).toEqual({
      authorization: "***",
      "x-auth-token": "***",
      "x-api-key": "***",
      accept: "4",
      cookie: "***",
    });
    await world.cron.triggerCronJob({ cronId: job.cronId });
    await world.dispatch();
    expect(world.receiver.requests[0]?.headers).toMatchObject({ authorization: "Bearer 1", "x-api-key": "3" });
  });
});

describe("an update", () => {
  test("without fields changes nothing, not even updated_at", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { headers: { accept: "x" } });
    await world.database.advanceClock(10);
    for (const request of [{}, { idempotencyKey: "k" }, { updateMask: mask() }, { headers: {} }]) {
      expect((await world.cron.updateCronJob({ cronId: job.cronId, ...request })).cronJob).toEqual(job);
    }
  });

  test("changes the fields that are set and keeps the others", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { payload: Buffer.from("1"), maxRuns: 7, retries: 1 });
    await world.database.advanceClock(10);
    const { cronJob } = await world.cron.updateCronJob({ cronId: job.cronId, name: "n", retries: 0 });
    const { updatedAt, ...rest } = job;
    expect(cronJob).toMatchObject({ ...rest, name: "n", retries: 0 });
    expect(timestampDate(cronJob?.updatedAt ?? expect.fail()).getTime()).toBeGreaterThan(
      timestampDate(updatedAt ?? expect.fail()).getTime(),
    );
  });

  test("clears the fields that the mask names and the request does not set", async () => {
    await using world = await runWorld();
    const job = await createJob(world, {
      payload: Buffer.from("1"),
      maxRuns: 7,
      retries: 1,
      headers: { accept: "x" },
      onFailureWebhook: world.receiver.url,
      name: "n",
    });
    const { cronJob } = await world.cron.updateCronJob({
      cronId: job.cronId,
      timeoutSeconds: 60,
      updateMask: mask("payload", "max_runs", "retries", "headers", "on_failure_webhook", "name", "cron_id"),
    });
    expect(cronJob).toMatchObject({
      retries: 3,
      headers: {},
      // Set, and not named.
      timeoutSeconds: 30,
      name: `127.0.0.1:${world.receiver.port}`,
    });
    expect(cronJob?.payload).toBeUndefined();
    expect(cronJob?.maxRuns).toBeUndefined();
    expect(cronJob?.onFailureWebhook).toBeUndefined();
  });

  test.each([
    { request: { updateMask: mask("nonsense") }, field: "update_mask" },
    { request: { updateMask: mask("url") }, field: "url" },
    { request: { updateMask: mask("cron_expr") }, field: "cron_expr" },
    { request: { headers: { "x-token": "***" } }, field: 'headers["x-token"]' },
    { request: { contentType: "application/json" }, field: "payload" },
  ])("is refused for $field", async ({ request, field }) => {
    await using world = await runWorld();
    const job = await createJob(world, { payload: Buffer.from("<a/>"), contentType: "text/xml" });
    const call = world.cron.updateCronJob({ cronId: job.cronId, ...request });
    expect(await refusal(call)).toMatchObject({ code: Code.InvalidArgument, field });
    expect(await getJob(world, job.cronId)).toEqual(job);
  });

  test("of schedule or zone computes the next fire time anew", async () => {
    await using world = await runWorld();
    const job = await createJob(world, { cronExpr: "0 12 * * *" });
    const nextOf = async (request: object) => {
      const { cronJob } = await world.cron.updateCronJob({ cronId: job.cronId, ...request });
      return timestampDate(cronJob?.nextRunAt ?? expect.fail())
        .toISOString()
        .slice(11);
    };
    expect(await nextOf({ timezone: "Asia/Tokyo" })).toBe("03:00:00.000Z");
    expect(await nextOf({ cronExpr: "15 12 * * *" })).toBe("03:15:00.000Z");
    expect(await nextOf({ updateMask: mask("timezone") })).toBe("12:15:00.000Z");
    expect(await nextOf({ cronExpr: "TZ=Asia/Tokyo 15 12 * * *" })).toBe("03:15:00.000Z");
  });

  test("of a paused job leaves it paused", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    await world.cron.pauseCronJob({ cronId });
    const { cronJob } = await world.cron.updateCronJob({ cronId, cronExpr: "@hourly", maxRuns: 3 });
    expect(cronJob).toMatchObject({ state: CronJobState.PAUSED, enabled: false });
    expect(cronJob?.nextRunAt).toBeUndefined();
  });

  test("that lowers max_runs to what has run completes the job", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    await world.database.advanceClock(60);
    await world.fire();
    const { cronJob } = await world.cron.updateCronJob({ cronId, maxRuns: 1 });
    expect(cronJob).toMatchObject({ state: CronJobState.COMPLETED, enabled: false });
    const { cronJob: endless } = await world.cron.updateCronJob({ cronId, updateMask: mask("max_runs") });
    expect(endless).toMatchObject({ state: CronJobState.ACTIVE });
  });
});

describe("a cron job that is not there", () => {
  const calls: readonly [string, (world: RunWorld, cronId: string) => Promise<unknown>][] = [
    ["get", (world, cronId) => world.cron.getCronJob({ cronId })],
    ["update", (world, cronId) => world.cron.updateCronJob({ cronId, name: "n" })],
    ["pause", (world, cronId) => world.cron.pauseCronJob({ cronId })],
    ["resume", (world, cronId) => world.cron.resumeCronJob({ cronId })],
    ["trigger", (world, cronId) => world.cron.triggerCronJob({ cronId })],
    ["get retention", (world, cronId) => world.cron.getCronRetention({ cronId })],
    ["set retention", (world, cronId) => world.cron.setCronRetention({ cronId, retentionDays: 1 })],
  ];
  test.each(calls)("is answered NOT_FOUND to %s, with the time of its deletion", async (_, call) => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    await world.cron.deleteCronJob({ cronId });
    const deleted = await refusal(call(world, cronId));
    expect(deleted).toMatchObject({ code: Code.NotFound, reason: "CRON_JOB_NOT_FOUND" });
    expect(deleted.text).toMatch(/deleted at \d{4}-/);
    for (const id of ["cron_", "x", `${cronId.slice(0, -1)}!`, cronId.replace("cron", "task")]) {
      expect(await refusal(call(world, id))).toMatchObject({ code: Code.NotFound, reason: "CRON_JOB_NOT_FOUND" });
    }
  });

  test("cannot be deleted, and leaves its runs readable when it was", async () => {
    await using world = await runWorld();
    expect(await refusal(world.cron.deleteCronJob({ cronId: "cron_x" }))).toMatchObject({ code: Code.NotFound });
    const { cronId } = await createJob(world);
    const { run } = await world.cron.triggerCronJob({ cronId });
    await world.dispatch();
    await world.cron.deleteCronJob({ cronId });
    expect((await world.cron.getCronRun({ cronId, runId: run?.runId ?? "" })).run?.attempts.length).toBe(1);
    expect((await world.cron.listCronJobs({})).items).toEqual([]);
    expect((await world.tasks.listRuns({ cronId })).items.length).toBe(1);
  });
});

test("lists give every cron job once, newest first, page by page", async () => {
  await using world = await runWorld();
  const ids: string[] = [];
  for (let index = 0; index < 5; index++) ids.unshift((await createJob(world, { name: `${index}` })).cronId);
  const seen: string[] = [];
  let cursor = "";
  do {
    const page = await world.cron.listCronJobs({ cursor, limit: 2 });
    expect(page.items.length).toBeLessThanOrEqual(2);
    seen.push(...page.items.map(({ cronId }) => cronId));
    cursor = page.nextCursor ?? "";
  } while (cursor !== "");
  expect(seen).toEqual(ids);
  expect(await refusal(world.cron.listCronJobs({ cursor: "forged" }))).toMatchObject({ field: "cursor" });
});

describe("retention", () => {
  test("of 0 keeps a finished run for an hour", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { retentionDays: 0 });
    await world.cron.triggerCronJob({ cronId });
    await world.dispatch();
    await world.database.advanceClock(3_590);
    expect(await pruneRuns(world.db, 100)).toBe(0);
    await world.database.advanceClock(20);
    expect(await pruneRuns(world.db, 100)).toBe(1);
    expect(await world.runs()).toEqual([]);
    expect(await world.db.selectFrom("run_attempts").selectAll().execute()).toEqual([]);
    expect(await getJob(world, cronId)).toMatchObject({ runCount: 0 });
  });

  test("that is set applies to runs that have finished before, and -1 keeps them for ever", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    for (let index = 0; index < 5; index++) {
      await world.cron.triggerCronJob({ cronId });
      await world.dispatch();
    }
    expect(await world.cron.setCronRetention({ cronId, retentionDays: -1 })).toMatchObject({ retentionDays: -1 });
    expect(await world.cron.getCronRetention({ cronId })).toMatchObject({ cronId, retentionDays: -1 });
    while ((await applyRetention(world.db, 2)) > 0);
    expect((await world.runs()).map(({ expires_at }) => expires_at)).toEqual(Array(5).fill(null));

    await world.cron.setCronRetention({ cronId, retentionDays: 1 });
    while ((await applyRetention(world.db, 2)) > 0);
    await world.database.advanceClock(86_500);
    expect(await pruneRuns(world.db, 100)).toBe(5);
  });

  test("of a deleted job ends with its last run, and a month after it is forgotten", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { retentionDays: 60 });
    await world.cron.triggerCronJob({ cronId });
    await world.dispatch();
    await world.cron.deleteCronJob({ cronId });
    await world.database.advanceClock(40 * 86_400);
    expect(await pruneCronTombstones(world.db, 10)).toBe(0);
    await world.database.advanceClock(30 * 86_400);
    expect(await pruneRuns(world.db, 10)).toBe(1);
    expect(await pruneCronTombstones(world.db, 10)).toBe(1);
    expect(await refusal(world.cron.deleteCronJob({ cronId }))).toMatchObject({ reason: "CRON_JOB_NOT_FOUND" });
  });
});
