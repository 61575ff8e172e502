import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { verify } from "../../src/webhook/sign.ts";
import { prunerTick } from "../../src/worker/pruner.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { projectSecret } from "../support/signing.ts";
import { createCron, eventually, FAR_AWAY, ok, refused } from "./calls.ts";
import { type Endpoint, type Endpoints, openEndpoints } from "./endpoints.ts";
import { expectAbsent, expectShape } from "./shape.ts";

let carillon: TestCarillon;
let endpoints: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

const EVERY_MINUTE = "* * * * *";

const getJob = async (cronId: string) => ok(await carillon.rest("GET", `/cron/get/${cronId}`));
const getRun = async (cronId: string, runId: string) =>
  ok(await carillon.rest("GET", `/cron/runs/get/${cronId}/${runId}`));
const listRuns = async (cronId: string) => ok(await carillon.rest("GET", `/run/list?cron_id=${cronId}`)).items;
const trigger = async (cronId: string, body: object = {}) =>
  ok(await carillon.rest("POST", `/cron/trigger/${cronId}`, body));

/** Moves the clock to just after the job's next fire time. */
async function advanceToNextRun(cronId: string): Promise<void> {
  const { next_run_at } = await getJob(cronId);
  const now = await carillon.database.now();
  await carillon.database.advanceClock((Date.parse(next_run_at) - now.getTime()) / 1_000 + 0.5);
}

/** Waits for the job to have this many finished runs, and deletes nothing. */
const finished = (cronId: string, count: number) =>
  eventually(
    () => listRuns(cronId),
    (runs) => runs.filter((run: { finished_at?: string }) => run.finished_at !== undefined).length >= count,
  );

/** Ends a job, so that moving the clock for another test does not fire it. */
const end = (cronId: string) => carillon.rest("DELETE", `/cron/delete/${cronId}`);

/** A job whose first run hangs at its target until `release` is called. */
async function hangingJob(fields: object): Promise<{ cronId: string; hook: Endpoint; release: () => void }> {
  const hook = endpoints.open();
  const { promise, resolve } = Promise.withResolvers<void>();
  hook.respond(async (_request, index) => {
    if (index === 0) await promise;
    return {};
  });
  // A lease that outlasts the clock's jumps: the run is live and not lost.
  const { cron_id } = await createCron(carillon, { url: hook.url, timeout_seconds: 900, ...fields });
  return { cronId: cron_id, hook, release: resolve };
}

describe("S8: overlap", () => {
  test("S8: with skip, a tick during a live run is recorded as skipped", async () => {
    const { cronId, hook, release } = await hangingJob({ cron_expr: EVERY_MINUTE });
    await advanceToNextRun(cronId);
    await hook.next();
    await advanceToNextRun(cronId);
    const runs = await finished(cronId, 1);
    expect(runs[0]).toMatchObject({ state: "skipped", trigger: "schedule", error: expect.stringMatching(/live/) });
    release();
    await finished(cronId, 2);
    expect(hook.count()).toBe(1);
    await end(cronId);
  });

  test("S8: with allow, runs are made side by side", async () => {
    const { cronId, hook, release } = await hangingJob({ overlap_policy: "allow" });
    await trigger(cronId);
    await hook.next();
    await trigger(cronId);
    await hook.next();
    release();
    await finished(cronId, 2);
  });

  const waiting = "S8: with queue, runs wait for their turn; beyond 100 the oldest is recorded as skipped";
  test(waiting, { timeout: 180_000 }, async () => {
    const { cronId, hook, release } = await hangingJob({ overlap_policy: "queue" });
    await trigger(cronId);
    await hook.next();
    const first = await trigger(cronId);
    expect(first.state).toBe("pending");
    for (let n = 0; n < 100; n++) await trigger(cronId);
    const dropped = await getRun(cronId, first.run_id);
    expect(dropped).toMatchObject({ state: "skipped", error: expect.stringMatching(/waiting/) });
    expect(hook.count()).toBe(1);
    release();
    await eventually(
      async () => hook.count(),
      (count) => count === 101,
      120_000,
    );
  });

  test("S8: with cancel_previous, the newer run takes the place of the live one", async () => {
    const { cronId, hook, release } = await hangingJob({ overlap_policy: "cancel_previous" });
    const older = await trigger(cronId);
    await hook.next();
    const newer = await trigger(cronId);
    await hook.next();
    expect(await getRun(cronId, older.run_id)).toMatchObject({ state: "canceled" });
    await eventually(
      () => getRun(cronId, newer.run_id),
      ({ state }) => state === "succeeded",
    );
    release();
  });
});

test("S9: max_runs counts scheduled runs that started; then the job is completed, and raising it re-arms it", async () => {
  const hook = endpoints.open();
  const { cron_id } = await createCron(carillon, { cron_expr: EVERY_MINUTE, url: hook.url, max_runs: 1 });
  await trigger(cron_id);
  await finished(cron_id, 1);
  expect(await getJob(cron_id)).toMatchObject({ enabled: true, run_count: 0 });
  await advanceToNextRun(cron_id);
  await finished(cron_id, 2);
  const completed = await getJob(cron_id);
  expect(completed).toMatchObject({ enabled: false, state: "completed", run_count: 1 });
  expectAbsent(completed, "next_run_at");
  for (const body of [{ max_runs: 1 }, { schedule: "*/5 * * * *" }, {}]) {
    expect(ok(await carillon.rest("PATCH", `/cron/update/${cron_id}`, body))).toMatchObject({ state: "completed" });
  }
  expect(ok(await carillon.rest("POST", `/cron/resume/${cron_id}`))).toMatchObject({ state: "completed" });
  await carillon.database.advanceClock(180);
  const rearmed = ok(await carillon.rest("PATCH", `/cron/update/${cron_id}`, { max_runs: 2 }));
  expect(rearmed).toMatchObject({ enabled: true, state: "active", run_count: 1 });
  expectShape(rearmed, { next_run_at: "time" });
  expect(hook.count()).toBe(2);
  await end(cron_id);
});

test("S9: skipped runs do not count", async () => {
  const { cronId, hook, release } = await hangingJob({ cron_expr: EVERY_MINUTE, max_runs: 2 });
  await advanceToNextRun(cronId);
  await hook.next();
  await advanceToNextRun(cronId);
  await finished(cronId, 1);
  expect(await getJob(cronId)).toMatchObject({ state: "active", run_count: 1 });
  release();
  await end(cronId);
});

test("S13: a running attempt of a deleted job finishes, nothing new starts, the history stays until retention ends it", async () => {
  const { cronId, hook, release } = await hangingJob({ cron_expr: EVERY_MINUTE, retention_days: 1 });
  await advanceToNextRun(cronId);
  await hook.next();
  ok(await end(cronId));
  release();
  const [run] = await finished(cronId, 1);
  expect(run).toMatchObject({ state: "succeeded", response_status: 200 });
  await carillon.database.advanceClock(300);
  await prune();
  expect(await getRun(cronId, run.run_id)).toMatchObject({ state: "succeeded" });
  expect(hook.count()).toBe(1);
  await carillon.database.advanceClock(86_400);
  await prune();
  refused(await carillon.rest("GET", `/cron/runs/get/${cronId}/${run.run_id}`), 404, "NOT_FOUND", "RUN_NOT_FOUND");
});

test("S14: what was due during a pause is not made up", async () => {
  const hook = endpoints.open();
  const { cron_id } = await createCron(carillon, { cron_expr: EVERY_MINUTE, url: hook.url, misfire_policy: "all" });
  ok(await carillon.rest("POST", `/cron/pause/${cron_id}`));
  await carillon.database.advanceClock(600);
  const resumed = ok(await carillon.rest("POST", `/cron/resume/${cron_id}`));
  expect(Date.parse(resumed.next_run_at)).toBeGreaterThan((await carillon.database.now()).getTime());
  expect(await listRuns(cron_id)).toMatchObject([{ state: "skipped", disposition: "paused", fire_count: 10 }]);
  expect(hook.count()).toBe(0);
  await end(cron_id);
});

test("S15: trigger fires a paused job", async () => {
  const hook = endpoints.open();
  const { cron_id } = await createCron(carillon, { url: hook.url });
  ok(await carillon.rest("POST", `/cron/pause/${cron_id}`));
  const { run_id } = await trigger(cron_id, { job_id: "cron_01HX..." });
  expect((await hook.next()).headers).toMatchObject({ "carillon-run-id": run_id, "carillon-trigger": "manual" });
});

describe("S18: retention of finished runs", () => {
  test("S18: with 0 days a run can be read for an hour after its end, and is swept then; counters stay", async () => {
    const hook = endpoints.open();
    const { cron_id } = await createCron(carillon, { cron_expr: EVERY_MINUTE, url: hook.url, max_runs: 1 });
    ok(await carillon.rest("PUT", `/cron/retention/set/${cron_id}`, { retention_days: 0 }));
    await advanceToNextRun(cron_id);
    const [{ run_id }] = await finished(cron_id, 1);
    await carillon.database.advanceClock(3_500);
    await prune();
    expect(await getRun(cron_id, run_id)).toMatchObject({ state: "succeeded" });
    await carillon.database.advanceClock(200);
    await prune();
    refused(await carillon.rest("GET", `/cron/runs/get/${cron_id}/${run_id}`), 404, "NOT_FOUND", "RUN_NOT_FOUND");
    expect(await getJob(cron_id)).toMatchObject({ run_count: 1, state: "completed" });
  });

  test("S18: -1 keeps runs for ever, and a later change counts for the runs that are there", async () => {
    const hook = endpoints.open();
    const { cron_id } = await createCron(carillon, { url: hook.url, retention_days: -1 });
    const { run_id } = await trigger(cron_id);
    await finished(cron_id, 1);
    await carillon.database.advanceClock(400 * 86_400);
    await prune();
    expect(await getRun(cron_id, run_id)).toMatchObject({ state: "succeeded" });
    ok(await carillon.rest("PUT", `/cron/retention/set/${cron_id}`, { retention_days: 30 }));
    await prune();
    refused(await carillon.rest("GET", `/cron/runs/get/${cron_id}/${run_id}`), 404, "NOT_FOUND", "RUN_NOT_FOUND");
  });
});

/** What the pruner does every half a minute, until nothing is left to do. */
async function prune(): Promise<void> {
  while ((await prunerTick(carillon.database.db, AbortSignal.timeout(10_000))) > 0);
}

test("S43: on_failure_webhook is told by a signed cron.run.failed after the last retry; its own failure tells nobody", async () => {
  const hook = endpoints.open();
  const onFailure = endpoints.open();
  hook.respond({ status: 500 });
  onFailure.respond((_request, index) => ({ status: index === 0 ? 503 : 200 }));
  const { cron_id } = await createCron(carillon, {
    name: "failing",
    url: hook.url,
    retries: 1,
    secret: "the job's secret",
    on_failure_webhook: onFailure.url,
  });
  const { run_id } = await trigger(cron_id);
  await hook.next();
  await eventually(
    () => getRun(cron_id, run_id),
    ({ state }) => state === "retrying",
  );
  expect(onFailure.count(), "not before the last retry").toBe(0);
  await carillon.database.advanceClock(10);
  await hook.next();
  const event = await onFailure.next();
  expect(JSON.parse(event.body.toString())).toMatchObject({
    type: "cron.run.failed",
    timestamp: expect.stringMatching(/Z$/),
    data: { run_id, cron_id, name: "failing", state: "failed", attempts: 2, error: "HTTP 500", response_status: 500 },
  });
  expectShape(JSON.parse(event.body.toString()).data, {
    scheduled_at: "time",
    started_at: "time",
    finished_at: "time",
  });
  const nowSeconds = (await carillon.database.now()).getTime() / 1_000;
  expect(verify(event.headers, event.body, "the job's secret", { nowSeconds })).toBe(true);

  await eventually(
    () => carillon.database.db.selectFrom("runs").select("state").where("kind", "=", "callback").executeTakeFirst(),
    (callback) => callback?.state === "retrying",
  );
  await carillon.database.advanceClock(10);
  const again = await onFailure.next();
  expect(again.headers["webhook-id"], "its own retry").toBe(event.headers["webhook-id"]);
  expect(await listRuns(cron_id), "the event is no run of the job").toHaveLength(1);
  expect(onFailure.count()).toBe(2);
});

test("S42: without a secret the project's signs; with one that one signs, and it is never shown", async () => {
  const ofProject = await projectSecret(carillon.database.db);
  for (const secret of [undefined, "whsec_c2VjcmV0", "any text"]) {
    const hook = endpoints.open();
    const job = await createCron(carillon, {
      cron_expr: FAR_AWAY,
      url: hook.url,
      ...(secret !== undefined && { secret }),
    });
    expectAbsent(job, "secret");
    await trigger(job.cron_id);
    const { headers, body } = await hook.next();
    const nowSeconds = (await carillon.database.now()).getTime() / 1_000;
    expect(verify(headers, body, secret ?? ofProject, { nowSeconds })).toBe(true);
  }
});
