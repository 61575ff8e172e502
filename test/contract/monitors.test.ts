import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { PingService } from "../../gen/scheduling/v1/ping_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, FAR_AWAY } from "./calls.ts";
import { serviceFaces } from "./service-faces.ts";

const RID = "8B4F1E0A-6F6C-4F0E-9D5E-000000000001";
const UNKNOWN = `/v1/scheduling/ping/ping_${"A".repeat(32)}`;

// Without workers nothing fires: every ping is of a run beside the schedule.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

/** What curl does at the end of a line of a crontab: no key, no JSON. */
async function ping(path: string, init: RequestInit = {}) {
  const response = await fetch(carillon.url + path, { ...init, signal: AbortSignal.timeout(20_000) });
  return { status: response.status, headers: response.headers, text: await response.text() };
}

const warningOf = ({ headers }: { headers: Headers }) => headers.get("x-scheduling-warning");

describe.each(serviceFaces(CronService, () => carillon))("over $name", (face) => {
  const monitor = (fields: object = {}) =>
    face.call("createCronJob", { cron_expr: FAR_AWAY, task_type: "monitor", ...fields });

  test("a monitor has a path to ping, no target, and a grace unless it is given one", async () => {
    const job = await monitor();
    expect(job).toMatchObject({ task_type: "monitor", name: "monitor", url: "", finish_grace_seconds: 300 });
    expect(job.ping_path).toMatch(/^\/v1\/scheduling\/ping\/ping_[\w-]{32}$/);
    expect((await face.call("getCronJob", { cron_id: job.cron_id })).ping_path).toBe(job.ping_path);
    expect((await monitor({ start_grace_seconds: 9 })).finish_grace_seconds).toBeUndefined();
    expect((await face.call("createCronJob", { cron_expr: FAR_AWAY, url: ACME })).ping_path).toBeUndefined();
  });

  test.each([
    { url: ACME },
    { headers: { a: "b" } },
    { retries: 1 },
    { timeout_seconds: 9 },
    { overlap_policy: "queue" },
    { misfire_policy: "all" },
    { spread_seconds: 3 },
    { expire_after_seconds: 9 },
    { pause_after_failures: 3 },
    { retry_policy: { waits_seconds: [5] } },
  ])("a monitor is not told %j, which is about sending", async (fields) => {
    const refused = expect.objectContaining({ reason: "FIELD_INVALID", fields: Object.keys(fields) });
    await expect(monitor(fields)).rejects.toEqual(refused);
    const { cron_id } = await monitor();
    await expect(face.call("updateCronJob", { cron_id, ...fields })).rejects.toEqual(refused);
  });

  test("a job that is no monitor still needs a target", async () => {
    await expect(face.call("createCronJob", { cron_expr: FAR_AWAY })).rejects.toMatchObject({ fields: ["url"] });
  });

  test.each([
    ["triggerCronJob", {}],
    ["startCronBackfill", { since: "2026-01-01T00:00:00Z" }],
    ["runCronRun", { run_id: "run_01M8KE4AT5046H0BE95KCX2M8Z" }],
  ])("%s is refused for a monitor", async (method, fields) => {
    const { cron_id } = await monitor();
    await expect(face.call(method, { cron_id, ...fields })).rejects.toMatchObject({ reason: "CRON_JOB_IS_MONITOR" });
  });

  test("a run has its pings, its exit code and its rid", async () => {
    const { cron_id, ping_path } = await monitor();
    await ping(`${ping_path}/start?rid=${RID}`);
    await ping(`${ping_path}/7?rid=${RID}`, { method: "POST", body: "disk full" });
    const { items } = await face.call("listCronRuns", { cron_id });
    expect(items).toMatchObject([
      { state: "failed", error: "exit code 7", exit_code: 7, rid: RID.toLowerCase(), trigger: "manual", pings: [] },
    ]);
    const run = await face.call("getCronRun", { cron_id, run_id: items[0].run_id });
    expect(run.pings).toMatchObject([{ kind: "start" }, { kind: "fail", exit_code: 7, body: "disk full" }]);
  });

  test("a new token takes the place of the old one, at once or when the overlap ends", async () => {
    const { cron_id, ping_path } = await monitor();
    const second = await face.call("rotatePingToken", { cron_id });
    expect(second.previous_valid_until).toBeDefined();
    expect([(await ping(ping_path)).status, (await ping(second.ping_path)).status]).toEqual([200, 200]);
    const third = await face.call("rotatePingToken", { cron_id, overlap_seconds: 0 });
    expect([(await ping(second.ping_path)).status, (await ping(third.ping_path)).status]).toEqual([404, 200]);
    expect((await face.call("getCronJob", { cron_id })).ping_path).toBe(third.ping_path);
    const { cron_id: other } = await face.call("createCronJob", { cron_expr: FAR_AWAY, url: ACME });
    const refused = face.call("rotatePingToken", { cron_id: other });
    await expect(refused).rejects.toMatchObject({ reason: "CRON_JOB_IS_NO_MONITOR" });
  });
});

describe("a ping over HTTP", () => {
  async function newMonitor(): Promise<{ cron_id: string; ping_path: string }> {
    return (await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, task_type: "monitor" })).body;
  }
  const runsOf = async (cronId: string) => (await carillon.rest("GET", `/cron/runs/list/${cronId}`)).body.items;

  test.each(["GET", "HEAD", "POST"])("%s needs no key, is answered OK and is kept by no cache", async (method) => {
    const { cron_id, ping_path } = await newMonitor();
    const answer = await ping(ping_path, { method });
    expect(answer).toMatchObject({ status: 200, text: method === "HEAD" ? "" : "OK" });
    expect(answer.headers.get("content-type")).toBe("text/plain; charset=utf-8");
    expect(answer.headers.get("cache-control")).toBe("no-store");
    expect(await runsOf(cron_id)).toMatchObject([{ state: "succeeded" }]);
  });

  test("works without the base path, with a slash at the end, and for another method says which there are", async () => {
    const { ping_path } = await newMonitor();
    expect((await ping(ping_path.replace("/v1/scheduling", ""))).text).toBe("OK");
    expect((await ping(`${ping_path}/start/`)).text).toBe("OK");
    const put = await ping(ping_path, { method: "PUT" });
    expect([put.status, put.headers.get("allow")]).toEqual([405, "GET, HEAD, POST"]);
  });

  test("keeps a body of any type as text, and only its beginning", async () => {
    const { cron_id, ping_path } = await newMonitor();
    const bodies: [string, Uint8Array | URLSearchParams | string][] = [
      ["start", new Uint8Array([0x61, 0, 0xff])],
      ["log", new URLSearchParams({ a: "1" })],
      ["success", "x".repeat(3_000_000)],
    ];
    for (const [signal, body] of bodies) {
      expect(await ping(`${ping_path}/${signal}`, { method: "POST", body })).toMatchObject({ status: 200 });
    }
    const [{ run_id }] = await runsOf(cron_id);
    const { body: run } = await carillon.rest("GET", `/cron/runs/get/${cron_id}/${run_id}`);
    const [start, log, end] = run.pings.map(({ body }: { body: string }) => body);
    expect([start, log]).toEqual(["a\ufffd\ufffd", "a=1"]);
    expect(end).toBe(`${"x".repeat(10_240)}\n[cut: only the first 10240 bytes are kept]`);
  });

  test("with a token that nobody has says nothing but that, and is kept by no cache", async () => {
    const { ping_path } = await newMonitor();
    const unknown = [UNKNOWN, `${UNKNOWN}/start`, `${ping_path}x`, "/v1/scheduling/ping/x"];
    for (const path of unknown) {
      const { status, text, headers } = await ping(path);
      expect([status, headers.get("cache-control")]).toEqual([404, "no-store"]);
      expect(JSON.parse(text).error).toMatchObject({ reason: "PING_TOKEN_UNKNOWN", message: "nothing is pinged here" });
    }
  });

  test.each(["/stop", "/256", "/-1", "/01x", "?rid=7"])("is refused with %s", async (rest) => {
    const { ping_path } = await newMonitor();
    expect((await ping(ping_path + rest)).status).toBe(400);
  });

  test("is taken and warned of when it repeats, or there is nothing to log to", async () => {
    const { cron_id, ping_path } = await newMonitor();
    expect(warningOf(await ping(`${ping_path}/log`))).toContain("no run");
    expect(warningOf(await ping(ping_path))).toBeNull();
    expect(warningOf(await ping(ping_path))).toContain("a repeat");
    expect(await runsOf(cron_id)).toHaveLength(1);
  });

  test("beyond 60 at once is refused, for that monitor alone", async () => {
    const { ping_path } = await newMonitor();
    const other = await newMonitor();
    const answers = await Promise.all(Array.from({ length: 90 }, () => ping(ping_path)));
    const refused = answers.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThanOrEqual(20);
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(60);
    expect(JSON.parse(refused[0]?.text ?? "").error).toMatchObject({ reason: "TOO_MANY_PINGS" });
    expect((await ping(other.ping_path)).status).toBe(200);
  });

  test("is of a monitor only while there is one", async () => {
    const { cron_id, ping_path } = await newMonitor();
    await carillon.rest("POST", `/cron/pause/${cron_id}`);
    expect((await ping(ping_path)).status).toBe(200);
    await carillon.rest("DELETE", `/cron/delete/${cron_id}`);
    expect((await ping(ping_path)).status).toBe(404);
  });

  test("has a token that the database shows in no table", async () => {
    const create = { cron_expr: FAR_AWAY, task_type: "monitor" };
    const header = { "idempotency-key": "a monitor" };
    const { body } = await carillon.rest("POST", "/cron/create", create, header);
    const again = await carillon.rest("POST", "/cron/create", create, header);
    expect(again.body.ping_path).toBe(body.ping_path);
    await ping(body.ping_path);
    const token: string = body.ping_path.split("/").at(-1);
    for (const table of ["cron_jobs", "ping_tokens", "idempotency_keys", "run_pings", "runs"] as const) {
      const rows = await carillon.database.db.selectFrom(table).selectAll().execute();
      const text = rows
        .flatMap((row) => Object.values(row))
        .map((value) => (Buffer.isBuffer(value) ? value.toString("latin1") : String(value)));
      expect(text.filter((value) => value.includes(token))).toEqual([]);
    }
  });
});

test("gRPC takes pings as REST does, without a key", async () => {
  const client = createClient(PingService, createGrpcTransport({ baseUrl: carillon.url }));
  const { body } = await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, task_type: "monitor" });
  const token: string = body.ping_path.split("/").at(-1);
  const started = await client.ping({ token, signal: "start" });
  const ended = await client.ping({ token, signal: "0", body: Buffer.from("fine") });
  expect(started).toMatchObject({ answer: "OK", runId: expect.stringMatching(/^run_/) });
  expect(ended.runId).toBe(started.runId);
  await expect(client.ping({ token: `${token}x` })).rejects.toThrow("nothing is pinged here");
});
