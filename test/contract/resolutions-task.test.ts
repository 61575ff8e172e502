import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, createCron, eventually, ok, otherProject, publish, refused, refusedField, unique } from "./calls.ts";
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

const schedule = (body: object) => carillon.rest("POST", "/task/schedule", body);
const getTask = async (id: string) => ok(await carillon.rest("GET", `/task/get/${id}`));
const inSeconds = async (seconds: number) =>
  new Date((await carillon.database.now()).getTime() + seconds * 1_000).toISOString();
const until = (id: string, state: string) =>
  eventually(
    () => getTask(id),
    (task) => task.state === state,
  );

/** An endpoint that does not answer until `release` is called. */
function hangingEndpoint(): Endpoint & { readonly release: () => void } {
  const hook = endpoints.open();
  const { promise, resolve } = Promise.withResolvers<void>();
  hook.respond(async () => {
    await promise;
    return {};
  });
  return { ...hook, release: resolve };
}

test("S16: a run tells kind, trigger, times and attempt; a run under another cron job is a 404", async () => {
  const hook = endpoints.open();
  const { cron_id } = await createCron(carillon, { url: hook.url });
  const other = await createCron(carillon, { url: hook.url });
  const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  await hook.next();
  const read = async () => ok(await carillon.rest("GET", `/cron/runs/get/${cron_id}/${run_id}`));
  const run = await eventually(read, ({ state }) => state === "succeeded");
  expect(run).toMatchObject({ kind: "cron", trigger: "manual", attempt: 1 });
  expectShape(run, { scheduled_at: "time", started_at: "time", finished_at: "time", response_status: "number" });
  expectAbsent(run, "task_id", "error");
  expect(run.attempts).toMatchObject([{ attempt: 1, response_status: 200 }]);
  const elsewhere = await carillon.rest("GET", `/cron/runs/get/${other.cron_id}/${run_id}`);
  refused(elsewhere, 404, "NOT_FOUND", "RUN_NOT_FOUND");
});

test("S16: run.list shows runs of cron jobs, tasks and pushes, newest first, and filters them", async () => {
  const headers = await otherProject(carillon);
  const call = async (method: string, path: string, body?: object) =>
    ok(await carillon.rest(method, path, body, headers));
  const list = async (query = "") => (await call("GET", `/run/list${query}`)).items;
  const hook = endpoints.open();
  const { cron_id } = await call("POST", "/cron/create", { schedule: "0 0 0 1 1 * 2090", url: hook.url });
  const before = (await carillon.database.now()).toISOString();
  const { run_id } = await call("POST", `/cron/trigger/${cron_id}`);
  await hook.next();
  const task = await call("POST", "/task/schedule", { url: hook.url, run_at: before });
  await hook.next();
  await call("POST", "/queue/push_subscribe/pushed", { url: hook.url });
  const { message_id } = await call("POST", "/queue/publish", { queue: "pushed", payload: 1 });
  await hook.next();

  const runs = await eventually(list, (items) => items.every(({ state }: { state: string }) => state === "succeeded"));
  expect(runs).toMatchObject([
    { kind: "push", trigger: "message", message_id },
    { kind: "task", trigger: "schedule", task_id: task.task_id },
    { kind: "cron", trigger: "manual", cron_id, run_id },
  ]);
  const [push, ofTask, cron] = runs;
  for (const [query, expected] of [
    [`?cron_id=${cron_id}`, [cron]],
    [`?task_id=${task.task_id}`, [ofTask]],
    ["?kind=push", [push]],
    ["?kind=cron&state=succeeded", [cron]],
    ["?state=failed", []],
    [`?cron_id=${cron_id}&kind=task`, []],
    ["?cron_id=cron_nonsense", []],
    [`?since=${before}&kind=cron`, [cron]],
    [`?until=${before}&kind=cron`, []],
    [`?since=${cron.scheduled_at}&cron_id=${cron_id}`, [cron]],
    [`?until=${cron.scheduled_at}&cron_id=${cron_id}`, []],
  ] as const) {
    expect(await list(query), query).toEqual(expected);
  }
});

test("S17: the states of runs and tasks are words to filter by; others are refused", async () => {
  for (const state of ["pending", "running", "retrying", "succeeded", "failed", "skipped", "missed", "canceled"]) {
    ok(await carillon.rest("GET", `/run/list?state=${state}`));
  }
  for (const state of ["scheduled", "running", "retrying", "succeeded", "failed", "canceled", "expired"]) {
    ok(await carillon.rest("GET", `/task/list?state=${state}`));
  }
  refusedField(await carillon.rest("GET", "/run/list?state=expired"), "state");
  refusedField(await carillon.rest("GET", "/task/list?state=skipped"), "state");
});

test("S17: a task is scheduled, running, retrying and failed or succeeded, and its run goes with it", async () => {
  const hook = endpoints.open();
  const gate = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  hook.respond(async (_request, index) => {
    await gate[index]?.promise;
    return { status: 500 };
  });
  const task = ok(await schedule({ url: hook.url, run_at: await inSeconds(60), retries: 1, timeout_seconds: 900 }));
  expect(task).toMatchObject({ state: "scheduled", last_run: { state: "pending", attempt: 0 } });
  await carillon.database.advanceClock(61);
  await hook.next();
  expect(await getTask(task.task_id)).toMatchObject({ state: "running", last_run: { state: "running", attempt: 1 } });
  gate[0]?.resolve();
  const retrying = await until(task.task_id, "retrying");
  expect(retrying.last_run).toMatchObject({ state: "retrying", response_status: 500 });
  expectShape(retrying.last_run, { next_attempt_at: "time" });
  await carillon.database.advanceClock(10);
  await hook.next();
  gate[1]?.resolve();
  const failed = await until(task.task_id, "failed");
  expect(failed.last_run).toMatchObject({ state: "failed", attempt: 2, error: "HTTP 500" });
});

test("S17: fire times that nobody could fire are recorded as missed", async () => {
  const hook = endpoints.open();
  const { cron_id } = await createCron(carillon, { cron_expr: "* * * * *", url: hook.url, misfire_policy: "skip" });
  await carillon.database.advanceClock(3_600);
  const read = async () => ok(await carillon.rest("GET", `/run/list?cron_id=${cron_id}&state=missed`)).items;
  const [missed] = await eventually(read, (items) => items.length > 0);
  expect(missed.fire_count).toBeGreaterThan(50);
  await carillon.rest("DELETE", `/cron/delete/${cron_id}`);
});

describe("S19: task.schedule", () => {
  test("S19: its aliases and ranges are those of cron", async () => {
    const { url } = endpoints.open();
    const run_at = await inSeconds(86_400 * 365);
    for (const name of ["url", "task", "task_url"]) {
      const task = ok(await schedule({ [name]: url, run_at, retry: 7, timeout_seconds: 900 }));
      expect(task).toMatchObject({ url, task: url, task_url: url, retries: 7, retry: 7, timeout_seconds: 900 });
      ok(await carillon.rest("POST", `/task/cancel/${task.task_id}`));
    }
    const defaults = ok(await schedule({ url, run_at }));
    expect(defaults).toMatchObject({ retries: 3, timeout_seconds: 30 });
    ok(await carillon.rest("POST", `/task/cancel/${defaults.task_id}`));
    for (const [field, value] of [
      ["retries", 11],
      ["timeout_seconds", 0],
      ["timeout_seconds", 901],
      ["grace_seconds", -1],
    ] as const) {
      refusedField(await schedule({ url, run_at, [field]: value }), field);
    }
  });

  test("S19: placeholders are a 400 with field violations", async () => {
    refusedField(await schedule({ task: "...", run_at: "..." }), "run_at");
    refusedField(await schedule({ task: "...", run_at: await inSeconds(60) }), "url", "TARGET_REFUSED");
  });
});

describe("S20: run_at", () => {
  test("S20: in the past means now", async () => {
    const hook = endpoints.open();
    const { task_id } = ok(await schedule({ url: hook.url, run_at: "2020-01-01T00:00:00Z" }));
    expect((await hook.next()).headers["carillon-task-id"]).toBe(task_id);
    await until(task_id, "succeeded");
  });

  test("S20: further past than grace_seconds the task expires and is not run", async () => {
    const hook = endpoints.open();
    const expired = ok(await schedule({ url: hook.url, run_at: await inSeconds(-60), grace_seconds: 30 }));
    expect(expired).toMatchObject({ state: "expired", last_run: { state: "canceled", error: "expired" } });
    const inTime = ok(await schedule({ url: hook.url, run_at: await inSeconds(-10), grace_seconds: 30 }));
    expect((await hook.next()).headers["carillon-task-id"]).toBe(inTime.task_id);
    expect(hook.count()).toBe(1);
  });

  test("S20: it lies at most 10 years ahead", async () => {
    const { url } = endpoints.open();
    const task = ok(await schedule({ url, run_at: await inSeconds(86_400 * 3_651) }));
    ok(await carillon.rest("POST", `/task/cancel/${task.task_id}`));
    refusedField(await schedule({ url, run_at: await inSeconds(86_400 * 3_660) }), "run_at");
  });
});

describe("S21: the other calls on tasks", () => {
  test("S21: get and list", async () => {
    const { url } = endpoints.open();
    const task = ok(await schedule({ url, run_at: await inSeconds(3_600), name: "mine" }));
    expect(await getTask(task.task_id)).toEqual(task);
    expect(ok(await carillon.rest("GET", "/task/list?state=scheduled&limit=1")).items).toEqual([task]);
    refused(await carillon.rest("GET", "/task/get/task_none"), 404, "NOT_FOUND", "TASK_NOT_FOUND");
    await carillon.rest("POST", `/task/cancel/${task.task_id}`);
  });

  test("S21: cancel calls a task off, once", async () => {
    const hook = endpoints.open();
    const { task_id } = ok(await schedule({ url: hook.url, run_at: await inSeconds(60) }));
    const path = `/task/cancel/${task_id}`;
    expect(ok(await carillon.rest("POST", path))).toEqual({ task_id, canceled: true, state: "canceled" });
    expect(ok(await carillon.rest("POST", path))).toEqual({ task_id, canceled: false, state: "canceled" });
    expect((await getTask(task_id)).last_run).toMatchObject({ state: "canceled" });
    expect(hook.count()).toBe(0);
  });

  test("S21: reschedule moves a scheduled task", async () => {
    const hook = endpoints.open();
    const { task_id } = ok(await schedule({ url: hook.url, run_at: await inSeconds(3_600) }));
    const run_at = await inSeconds(60);
    expect(ok(await carillon.rest("POST", `/task/reschedule/${task_id}`, { run_at }))).toMatchObject({
      task_id,
      run_at,
    });
    await carillon.database.advanceClock(61);
    await hook.next();
    await until(task_id, "succeeded");
    const late = await carillon.rest("POST", `/task/reschedule/${task_id}`, { run_at });
    refused(late, 400, "FAILED_PRECONDITION", "TASK_NOT_SCHEDULED");
  });

  test("S21: run_now fires a scheduled task now and a done one again, but not one that runs", async () => {
    const hook = hangingEndpoint();
    const { task_id } = ok(await schedule({ url: hook.url, run_at: await inSeconds(3_600) }));
    expect(ok(await carillon.rest("POST", `/task/run_now/${task_id}`))).toMatchObject({ task_id, trigger: "manual" });
    await hook.next();
    refused(await carillon.rest("POST", `/task/run_now/${task_id}`), 400, "FAILED_PRECONDITION", "TASK_RUNNING");
    hook.release();
    await until(task_id, "succeeded");
    ok(await carillon.rest("POST", `/task/run_now/${task_id}`));
    await hook.next();
    await until(task_id, "succeeded");
    expect(ok(await carillon.rest("GET", `/run/list?task_id=${task_id}`)).items).toHaveLength(2);
  });
});

test("S41: targets of cron jobs, tasks, pushes and failure webhooks pass one guard", async () => {
  const queue = unique("q");
  await publish(carillon, queue);
  for (const url of [
    "http://example.com/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://metadata.google.internal/",
    "https://user:password@example.com/",
    "ftp://example.com/",
    "https://example.com:22/",
    carillon.url,
    "...",
  ]) {
    const target = { schedule: "0 0 0 1 1 * 2090", url };
    refusedField(await carillon.rest("POST", "/cron/create", target), "url", "TARGET_REFUSED");
    refusedField(await schedule({ url, run_at: "2030-01-01" }), "url", "TARGET_REFUSED");
    refusedField(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url }), "url", "TARGET_REFUSED");
    const onFailure = { ...target, url: ACME, on_failure_webhook: url };
    refusedField(await carillon.rest("POST", "/cron/create", onFailure), "on_failure_webhook", "TARGET_REFUSED");
  }
});
