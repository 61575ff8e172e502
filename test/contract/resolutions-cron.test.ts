import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, createCron, FAR_AWAY, ok, otherProject, refused, refusedField, unique, warning } from "./calls.ts";
import { expectAbsent, expectShape } from "./shape.ts";

// Without workers nothing fires, so that targets on the internet can be named.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

const create = (body: object) => carillon.rest("POST", "/cron/create", body);
const update = (id: string, body: object) => carillon.rest("PATCH", `/cron/update/${id}`, body);

describe("S1: the parameters of cron.create", () => {
  test("S1: schedule and url, or cron_expr and task_url, with the name made from host and path", async () => {
    const documented = { name: "weekly", schedule: "0 9 * * 1", url: ACME };
    expect(ok(await create(documented))).toMatchObject(documented);
    const example = { cron_expr: "0 9 * * 1", task_type: "http_url", task_url: "https://api.acme.com/weekly" };
    expect(ok(await create(example))).toMatchObject({ name: "api.acme.com/weekly", schedule: "0 9 * * 1", url: ACME });
    expect(ok(await create({ schedule: FAR_AWAY, task: ACME }))).toMatchObject({ task: ACME });
  });

  test("S1: a schedule and a target are needed", async () => {
    refusedField(await create({ url: ACME }), "cron_expr");
    refusedField(await create({ schedule: FAR_AWAY }), "url");
    const both = refused(await create({}), 400, "INVALID_ARGUMENT", "FIELD_INVALID");
    expect(both.details.map(({ field }: { field: string }) => field).sort()).toEqual(["cron_expr", "url"]);
  });
});

test("S2: task_type is http_url by default, and others are refused", async () => {
  expect(await createCron(carillon)).toMatchObject({ task_type: "http_url" });
  expect(await createCron(carillon, { task_type: "http_url" })).toMatchObject({ task_type: "http_url" });
  refusedField(await create({ schedule: FAR_AWAY, url: ACME, task_type: "email" }), "task_type");
});

test("S3: create, get, update, pause, resume and list answer the union of all documented fields", async () => {
  const created = await createCron(carillon, { payload: { a: 1 }, max_runs: 3 });
  const { cron_id } = created;
  const answers = [
    created,
    ok(await carillon.rest("GET", `/cron/get/${cron_id}`)),
    ok(await update(cron_id, {})),
    ok(await carillon.rest("POST", `/cron/resume/${cron_id}`)),
    ok(await carillon.rest("GET", "/cron/list?limit=1")).items[0],
    ok(await carillon.rest("POST", `/cron/pause/${cron_id}`)),
  ];
  for (const answer of answers) {
    expectShape(answer, {
      cron_id: "string",
      name: "string",
      cron_expr: "string",
      schedule: "string",
      url: "string",
      task: "string",
      task_url: "string",
      payload: "object",
      timezone: "string",
      retries: "number",
      retry: "number",
      timeout_seconds: "number",
      overlap_policy: "string",
      max_runs: "number",
      headers: "object",
      retention_days: "number",
      misfire_policy: "string",
      misfire_window_seconds: "number",
      enabled: "boolean",
      state: "string",
      "next_run_at?": "time",
      created_at: "time",
      updated_at: "time",
    });
    expectAbsent(answer, "last_run");
  }
  const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  expect(ok(await carillon.rest("GET", `/cron/get/${cron_id}`)).last_run).toMatchObject({ run_id, cron_id });
});

test("S4: retries and retry are one field, 0 to 10, by default 3", async () => {
  expect(await createCron(carillon)).toMatchObject({ retries: 3, retry: 3 });
  const { cron_id } = await createCron(carillon, { retry: 0 });
  expect(ok(await update(cron_id, { retries: 10 }))).toMatchObject({ retries: 10, retry: 10 });
  expect(ok(await update(cron_id, { retry: 1 }))).toMatchObject({ retries: 1, retry: 1 });
  for (const retries of [-1, 11, 1.5, "many"]) {
    refusedField(await create({ schedule: FAR_AWAY, url: ACME, retries }), "retries");
    refusedField(await update(cron_id, { retries }), "retries");
  }
});

describe("S5: what update has, create has", () => {
  test("S5: timeout, overlap policy, max_runs, headers, failure webhook and secret are taken and shown", async () => {
    const given = {
      timeout_seconds: 900,
      overlap_policy: "queue",
      max_runs: 7,
      headers: { "x-tenant": "acme" },
      on_failure_webhook: "https://api.acme.com/failed",
    };
    const job = await createCron(carillon, { ...given, secret: "s3cret" });
    expect(job).toMatchObject(given);
    expect(JSON.stringify(job)).not.toContain("s3cret");
    const { cron_id } = await createCron(carillon);
    expect(ok(await update(cron_id, { ...given, secret: "s3cret" }))).toMatchObject(given);
  });

  test("S5: their ranges", async () => {
    for (const [field, value] of [
      ["timeout_seconds", 0],
      ["timeout_seconds", 901],
      ["max_runs", 0],
      ["overlap_policy", "maybe"],
      ["on_failure_webhook", "http://10.0.0.1/"],
    ] as const) {
      const reason = field === "on_failure_webhook" ? "TARGET_REFUSED" : "FIELD_INVALID";
      refusedField(await create({ schedule: FAR_AWAY, url: ACME, [field]: value }), field, reason);
    }
  });

  test("S5: a header that carries a credential is hidden in answers", async () => {
    const job = await createCron(carillon, {
      headers: { Authorization: "Bearer hidden", "x-api-key": "hidden", "x-a": "b" },
    });
    expect(job.headers).toEqual({ authorization: "***", "x-api-key": "***", "x-a": "b" });
  });
});

test("S6: the payload is any JSON", async () => {
  for (const payload of [{ a: 1 }, [], "text", 0, false, [null]]) {
    expect((await createCron(carillon, { payload })).payload).toEqual(payload);
    const { message_id } = ok(await carillon.rest("POST", "/queue/publish", { queue: unique("q"), payload }));
    expect(message_id).toMatch(/^msg_/);
    const task = ok(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at: "2030-01-01", payload }));
    expect(task.payload).toEqual(payload);
  }
});

describe("S7: cron expressions", () => {
  test.each([
    ["0 9 * * 1", /T09:00:00\.000Z$/],
    ["30 0 9 * * *", /T09:00:30\.000Z$/],
    ["15 30 9 1 1 * 2090", /^2090-01-01T09:30:15\.000Z$/],
    ["@daily", /T00:00:00\.000Z$/],
    ["@weekly", /T00:00:00\.000Z$/],
    ["@every 1h30m", /Z$/],
    ["0 0 L * *", /-(28|29|30|31)T00:00:00\.000Z$/],
    ["0 0 15W * *", /-(14|15|16|17)T00:00:00\.000Z$/],
    ["0 0 * * 5#2", /-(08|09|1[0-4])T00:00:00\.000Z$/],
    ["H H * * *", /:00\.000Z$/],
    ["0 0 * * MON-FRI", /T00:00:00\.000Z$/],
  ])("S7: %s is read", async (schedule, next) => {
    expect((await createCron(carillon, { cron_expr: schedule })).next_run_at).toMatch(next);
  });

  test("S7: H draws one time and keeps it", async () => {
    const job = await createCron(carillon, { cron_expr: "H H * * *" });
    expect(ok(await carillon.rest("GET", `/cron/get/${job.cron_id}`)).next_run_at).toBe(job.next_run_at);
  });

  test("S7: what may surprise is warned of: seconds first, and either day matches", async () => {
    expect(warning(await create({ schedule: "30 0 9 * * *", url: ACME }))).toMatch(/second/i);
    expect(warning(await create({ schedule: "0 0 13 * 5", url: ACME }))).toMatch(/day/i);
    expect(warning(await create({ schedule: "0 9 * * 1", url: ACME }))).toBe("");
  });
});

test("S8: the time zone is UTC and the overlap policy skip by default", async () => {
  expect(await createCron(carillon)).toMatchObject({ timezone: "UTC", overlap_policy: "skip" });
  for (const overlap_policy of ["allow", "skip", "queue", "cancel_previous"]) {
    expect(await createCron(carillon, { overlap_policy })).toMatchObject({ overlap_policy });
  }
  const inShanghai = await createCron(carillon, { cron_expr: "0 9 * * *", timezone: "Asia/Shanghai" });
  expect(inShanghai.next_run_at).toMatch(/T01:00:00\.000Z$/);
  refusedField(await create({ schedule: FAR_AWAY, url: ACME, timezone: "Mars" }), "timezone", "TIMEZONE_INVALID");
});

test("S10: cron.list has pages and shows the project of the key only", async () => {
  const headers = await otherProject(carillon);
  const mine = await createCron(carillon);
  for (let n = 0; n < 3; n++) {
    ok(await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, url: ACME, name: `n${n}` }, headers));
  }
  const first = ok(await carillon.rest("GET", "/cron/list?limit=2", undefined, headers));
  expect(first.items.map(({ name }: { name: string }) => name)).toEqual(["n2", "n1"]);
  const rest = ok(await carillon.rest("GET", `/cron/list?limit=2&cursor=${first.next_cursor}`, undefined, headers));
  expect(rest.items.map(({ name }: { name: string }) => name)).toEqual(["n0"]);
  expectAbsent(rest, "next_cursor");
  refused(await carillon.rest("GET", `/cron/get/${mine.cron_id}`, undefined, headers), 404, "NOT_FOUND");
});

test("S11: the {id} of the path is the cron_id", async () => {
  const { cron_id } = await createCron(carillon);
  expect(ok(await carillon.rest("GET", `/cron/get/${cron_id}`)).cron_id).toBe(cron_id);
});

describe("S12: cron.update", () => {
  test("S12: {} or an idempotency key alone changes nothing, not even updated_at", async () => {
    const job = await createCron(carillon);
    expect(ok(await update(job.cron_id, {}))).toEqual(job);
    expect(ok(await update(job.cron_id, { idempotency_key: unique("key") }))).toEqual(job);
  });

  test("S12: null clears to the default, what is absent is kept", async () => {
    const { cron_id, updated_at } = await createCron(carillon, {
      name: "mine",
      payload: { a: 1 },
      max_runs: 3,
      timezone: "Asia/Shanghai",
      retries: 9,
      timeout_seconds: 5,
      overlap_policy: "allow",
      headers: { a: "b" },
      on_failure_webhook: ACME,
    });
    const kept = ok(await update(cron_id, { retries: null, timeout_seconds: null, max_runs: null, payload: null }));
    expect(kept).toMatchObject({ retries: 3, timeout_seconds: 30, name: "mine", timezone: "Asia/Shanghai" });
    expectAbsent(kept, "max_runs", "payload");
    expect(kept.updated_at > updated_at).toBe(true);
    const cleared = ok(
      await update(cron_id, {
        name: null,
        timezone: null,
        overlap_policy: null,
        headers: null,
        on_failure_webhook: null,
      }),
    );
    expect(cleared).toMatchObject({
      name: "api.acme.com/weekly",
      timezone: "UTC",
      overlap_policy: "skip",
      headers: {},
    });
    expectAbsent(cleared, "on_failure_webhook");
  });

  test("S12: what cannot be cleared is refused", async () => {
    const { cron_id } = await createCron(carillon);
    refusedField(await update(cron_id, { schedule: null }), "cron_expr");
    refusedField(await update(cron_id, { url: null }), "url");
  });

  test("S12: a new schedule or zone computes the next fire time anew", async () => {
    const { cron_id } = await createCron(carillon);
    const rescheduled = ok(await update(cron_id, { schedule: "0 0 12 1 1 * 2091" }));
    expect(rescheduled.next_run_at).toBe("2091-01-01T12:00:00.000Z");
    expect(ok(await update(cron_id, { timezone: "Asia/Shanghai" })).next_run_at).toBe("2091-01-01T04:00:00.000Z");
  });
});

describe("S13: cron.delete", () => {
  test("S13: deleting again answers deleted false, a job that never existed 404", async () => {
    const { cron_id } = await createCron(carillon);
    expect(ok(await carillon.rest("DELETE", `/cron/delete/${cron_id}`))).toEqual({ cron_id, deleted: true });
    expect(ok(await carillon.rest("DELETE", `/cron/delete/${cron_id}`))).toEqual({ cron_id, deleted: false });
    const never = await carillon.rest("DELETE", "/cron/delete/cron_01HX0000000000000000000000");
    refused(never, 404, "NOT_FOUND", "CRON_JOB_NOT_FOUND");
  });

  test("S13: the history stays", async () => {
    const { cron_id } = await createCron(carillon);
    const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
    ok(await carillon.rest("DELETE", `/cron/delete/${cron_id}`));
    const run = ok(await carillon.rest("GET", `/cron/runs/get/${cron_id}/${run_id}`));
    expect(run).toMatchObject({ run_id, state: "canceled" });
  });

  test("S44: a deleted job is a 404 that says when it was deleted, for every call", async () => {
    const { cron_id } = await createCron(carillon);
    ok(await carillon.rest("DELETE", `/cron/delete/${cron_id}`));
    for (const [method, path] of [
      ["GET", "get"],
      ["PATCH", "update"],
      ["POST", "pause"],
      ["POST", "resume"],
      ["POST", "trigger"],
      ["GET", "retention/get"],
    ] as const) {
      const error = refused(await carillon.rest(method, `/cron/${path}/${cron_id}`), 404, "NOT_FOUND");
      expect(error.message).toMatch(/deleted at \d{4}-\d{2}-\d{2}T/);
    }
  });
});

test("S14: pause and resume take the id in path and body, answer the full record, and repeat without effect", async () => {
  const { cron_id } = await createCron(carillon);
  const paused = ok(await carillon.rest("POST", `/cron/pause/${cron_id}`, { cron_id: "..." }));
  expect(paused).toMatchObject({ cron_id, enabled: false, state: "paused", cron_expr: FAR_AWAY, task: ACME });
  expect(ok(await carillon.rest("POST", `/cron/pause/${cron_id}`))).toEqual(paused);
  const resumed = ok(await carillon.rest("POST", `/cron/resume/${cron_id}`, { cron_id: "..." }));
  expect(resumed).toMatchObject({ enabled: true, state: "active", next_run_at: "2090-01-01T00:00:00.000Z" });
  expect(ok(await carillon.rest("POST", `/cron/resume/${cron_id}`))).toEqual(resumed);
});

test("S15: trigger takes job_id in the body, the path wins; started_at is there from the start", async () => {
  const { cron_id } = await createCron(carillon, { max_runs: 1 });
  ok(await carillon.rest("POST", `/cron/pause/${cron_id}`));
  const answer = await carillon.rest("POST", `/cron/trigger/${cron_id}`, { job_id: "cron_01HX..." });
  expect(ok(answer)).toMatchObject({ cron_id, state: "pending", trigger: "manual", kind: "cron" });
  expectShape(ok(answer), { started_at: "time", scheduled_at: "time" });
  expect(warning(answer)).toBe("body.job_id ignored, path names the cron_id");
  expect(ok(await carillon.rest("GET", `/cron/get/${cron_id}`)).run_count).toBe(0);
});

test("S15: trigger respects the overlap policy, by a run that is skipped, unless the call says otherwise", async () => {
  const { cron_id } = await createCron(carillon);
  const trigger = async (body: object = {}) => ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`, body));
  expect((await trigger()).state).toBe("pending");
  const skipped = await trigger();
  expect(skipped).toMatchObject({ state: "skipped", error: expect.stringMatching(/./) });
  expectShape(skipped, { started_at: "time", finished_at: "time" });
  expect((await trigger({ overlap_policy: "allow" })).state).toBe("pending");
});

describe("S18: retention", () => {
  test("S18: the default is 30; 0, -1 and up to 3650 are legal, also on create", async () => {
    const { cron_id } = await createCron(carillon);
    expect(ok(await carillon.rest("GET", `/cron/retention/get/${cron_id}`)).retention_days).toBe(30);
    for (const retention_days of [0, -1, 1, 3650]) {
      const set = ok(await carillon.rest("PUT", `/cron/retention/set/${cron_id}`, { retention_days }));
      expect(set).toEqual({ cron_id, retention_days });
      expect(ok(await carillon.rest("GET", `/cron/retention/get/${cron_id}`))).toEqual({ cron_id, retention_days });
      expect(await createCron(carillon, { retention_days })).toMatchObject({ retention_days });
    }
  });

  test("S18: what is out of range or missing is refused", async () => {
    const { cron_id } = await createCron(carillon);
    for (const body of [{ retention_days: -2 }, { retention_days: 3651 }, { retention_days: "x" }, {}]) {
      refusedField(await carillon.rest("PUT", `/cron/retention/set/${cron_id}`, body), "retention_days");
    }
  });
});
