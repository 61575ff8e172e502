import { request as httpRequest } from "node:http";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { hashApiKey, newApiKey } from "../../src/domain/api-key.ts";
import { createApiKey, revokeApiKey } from "../../src/store/api-keys.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { type RestAnswer, startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { signsWith } from "../support/signing.ts";
import { ACME, createCron, createQueue, FAR_AWAY, ok, otherProject, publish, refused, unique } from "./calls.ts";
import { connectJson, expectRefusal, grpcClients, outcomeOf, restOutcome } from "./outcomes.ts";

let carillon: TestCarillon;
let queue: string;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
  queue = await createQueue(carillon);
});
afterAll(() => carillon[Symbol.asyncDispose]());
// After whatever came in, the server answers a normal request.
afterEach(async () => void ok(await carillon.rest("POST", "/queue/publish", { queue, payload: {} })));

/** A request whose path and headers go out as they are, which fetch would tidy up. */
async function raw(
  method: string,
  path: string,
  headers: Readonly<Record<string, string | string[]>> = {},
): Promise<RestAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<RestAnswer>();
  const request = httpRequest(carillon.url, {
    method,
    path: `/v1/scheduling${path}`,
    headers: { authorization: `Bearer ${TEST_KEY}`, ...headers },
    signal: AbortSignal.timeout(10_000),
  });
  request.on("error", reject);
  request.on("response", (response) => {
    text(response).then((body) => {
      const json = body.startsWith("{") ? JSON.parse(body) : undefined;
      resolve({ status: response.statusCode ?? 0, headers: new Headers(), text: body, body: json });
    }, reject);
  });
  request.end();
  return promise;
}

describe("item 9: ids in the path", () => {
  test.each([
    ["/cron/get/a%2Fb", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/%00", 400, "PATH_INVALID"],
    ["/cron/get/%ff", 400, "PATH_INVALID"],
    ["/cron/get/%", 400, "PATH_INVALID"],
    ["/cron/get/.", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/..", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/%2e%2e", 404, "CRON_JOB_NOT_FOUND"],
    [`/cron/get/${"x".repeat(2_048)}`, 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/cron_01HX;v=1", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/cron_ZZZZZZZZZZZZZZZZZZZZZZZZZZ", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/task_01HX0000000000000000000000", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/get/'%20or%201=1--", 404, "CRON_JOB_NOT_FOUND"],
    ["/cron/runs/get/a/b", 404, "RUN_NOT_FOUND"],
    ["/queue/get/.", 400, "FIELD_INVALID"],
    ["/queue/get/..", 400, "FIELD_INVALID"],
    ["/queue/get/a%2Fb", 400, "FIELD_INVALID"],
    [`/queue/get/${"x".repeat(2_048)}`, 400, "FIELD_INVALID"],
    ["/queue/get/q;v=1", 400, "FIELD_INVALID"],
    ["/task/get/%F0%9F%98%80", 404, "TASK_NOT_FOUND"],
  ])("%s answers %d %s", async (path, status, reason) => {
    const answer = await raw("GET", path);
    expect(answer.status, answer.text).toBe(status);
    expect(answer.body.error.reason).toBe(reason);
  });

  test("empty ids, doubled and trailing slashes are answered with a refusal or as if they were not there", async () => {
    const { cron_id } = await createCron(carillon);
    for (const path of [
      "/cron/get/",
      "/cron/get//",
      "//cron/get/x",
      `/cron//get/${cron_id}`,
      `/cron/get/${cron_id}/`,
    ]) {
      const answer = await raw("GET", path);
      expect([200, 400, 404], `${path}: ${answer.text}`).toContain(answer.status);
      if (answer.status !== 200) expect(answer.body.error.reason).toMatch(/^[A-Z_]+$/);
    }
  });

  test("an id in lower case is the same id", async () => {
    const { cron_id } = await createCron(carillon);
    const lower = `cron_${cron_id.slice(5).toLowerCase()}`;
    expect(ok(await carillon.rest("GET", `/cron/get/${lower}`)).cron_id).toBe(cron_id);
  });

  test("ids of another project do not exist", async () => {
    const headers = await otherProject(carillon);
    const { cron_id } = await createCron(carillon);
    const answer = await carillon.rest("GET", `/cron/get/${cron_id}`, undefined, headers);
    const never = await carillon.rest("GET", "/cron/get/cron_01HX0000000000000000000000", undefined, headers);
    expect(refused(answer, 404, "NOT_FOUND").message.replace(cron_id, "")).toBe(
      refused(never, 404, "NOT_FOUND").message.replace("cron_01HX0000000000000000000000", ""),
    );
  });
});

describe("item 10: idempotency keys", () => {
  const body = () => ({ queue, payload: {} });

  test("in the header: too long, control characters and other than ASCII are refused", async () => {
    for (const key of ["k".repeat(256), "k".repeat(10_240), "a\tb", "\u00e9"]) {
      const answer = await carillon.rest("POST", "/queue/publish", body(), { "idempotency-key": key });
      expectRefusal(restOutcome(answer), "invalid_argument", "FIELD_INVALID");
      const json = JSON.stringify({ queue, payload: "e30=" });
      const connect = await connectJson(carillon, "scheduling.v1.QueueService/Publish", json, {
        "idempotency-key": key,
      });
      expectRefusal(connect, "invalid_argument", "FIELD_INVALID");
    }
  });

  test("an empty one is none", async () => {
    const call = () =>
      carillon.rest("POST", "/queue/publish", { ...body(), idempotency_key: "" }, { "idempotency-key": "" });
    expect(ok(await call()).message_id).not.toBe(ok(await call()).message_id);
  });

  test("over every protocol the same key with another request is refused", async () => {
    const idempotency_key = unique("key");
    ok(await carillon.rest("POST", "/queue/publish", { ...body(), idempotency_key }));
    const json = JSON.stringify({ queue, payload: "MQ==", idempotency_key });
    const connect = await connectJson(carillon, "scheduling.v1.QueueService/Publish", json);
    expectRefusal(connect, "failed_precondition", "IDEMPOTENCY_KEY_REUSED");
    const publishing = grpcClients(carillon).queue.publish({
      queue,
      payload: Buffer.from("1"),
      idempotencyKey: idempotency_key,
    });
    expectRefusal(await outcomeOf(publishing), "failed_precondition", "IDEMPOTENCY_KEY_REUSED");
  });
});

describe("item 15: Authorization", () => {
  const key = newApiKey();
  const wrongChecksum = key.slice(0, -1) + (key.endsWith("0") ? "1" : "0");
  const cases: readonly (readonly [name: string, header: string, reason: string])[] = [
    ["missing", "", "API_KEY_MISSING"],
    ["Basic", "Basic dXNlcjpwYXNz", "AUTHORIZATION_INVALID"],
    ["without a key", "Bearer", "AUTHORIZATION_INVALID"],
    ["with blanks for a key", "Bearer   ", "AUTHORIZATION_INVALID"],
    ["with two keys", `Bearer ${TEST_KEY} ${TEST_KEY}`, "AUTHORIZATION_INVALID"],
    ["twice in one", `Bearer ${TEST_KEY}, Bearer ${TEST_KEY}`, "AUTHORIZATION_INVALID"],
    ["unknown", "Bearer crl_unknown", "API_KEY_INVALID"],
    ["shorter than the key", `Bearer ${TEST_KEY.slice(0, -1)}`, "API_KEY_INVALID"],
    ["longer than the key", `Bearer ${TEST_KEY}x`, "API_KEY_INVALID"],
    ["of other case", `Bearer ${TEST_KEY.toUpperCase()}`, "API_KEY_INVALID"],
    ["with a wrong checksum", `Bearer ${wrongChecksum}`, "API_KEY_INVALID"],
    ["of 8 kB", `Bearer ${"x".repeat(8_192)}`, "AUTHORIZATION_INVALID"],
    ["with other than ASCII", "Bearer \u00e9", "AUTHORIZATION_INVALID"],
  ];

  test.each(cases)("%s is refused", async (_name, authorization, reason) => {
    const rest = await raw("GET", "/queue/list", { authorization });
    expectRefusal(restOutcome(rest), "unauthenticated", reason);
    expect(rest.status).toBe(401);
    const headers = { authorization };
    const connect = await connectJson(carillon, "scheduling.v1.QueueService/ListQueues", "{}", headers);
    expectRefusal(connect, "unauthenticated", reason);
    const grpc = await outcomeOf(grpcClients(carillon, authorization).queue.listQueues({}));
    expectRefusal(grpc, "unauthenticated", reason);
  });

  test("two headers are refused", async () => {
    const answer = await raw("GET", "/queue/list", { authorization: [`Bearer ${TEST_KEY}`, "Bearer other"] });
    expect([400, 401]).toContain(answer.status);
  });

  test("a revoked key is refused", async () => {
    const { db } = carillon.database;
    const project = await ensureProject(db, unique("project"), signsWith());
    const key = newApiKey();
    const made = { projectId: project.project_id, keyHash: hashApiKey(key), name: "revoked", hint: "" };
    await revokeApiKey(db, (await createApiKey(db, made)) ?? "");
    const answer = await carillon.rest("GET", "/queue/list", undefined, { authorization: `Bearer ${key}` });
    expectRefusal(restOutcome(answer), "unauthenticated", "API_KEY_INVALID");
  });
});

describe("item 16: cursors and limits", () => {
  const encode = (parts: readonly unknown[]) => Buffer.from(JSON.stringify(parts)).toString("base64url");
  const decode = (cursor: string): string[] => JSON.parse(Buffer.from(cursor, "base64url").toString());
  let lists: (readonly [path: string, cursor: string])[];

  beforeAll(async () => {
    const source = await createQueue(carillon, { max_retries: 0 });
    for (let n = 0; n < 2; n++) {
      const { cron_id } = await createCron(carillon);
      ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
      ok(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at: "2030-01-01" }));
      ok(await carillon.rest("POST", `/queue/push_subscribe/${source}`, { url: `${ACME}/${n}` }));
      const message_id = await publish(carillon, source);
      ok(await carillon.rest("POST", "/queue/consume", { queue: source }));
      ok(await carillon.rest("POST", "/queue/nack", { queue: source, message_id }));
    }
    lists = await Promise.all(
      [
        "/cron/list",
        "/task/list",
        "/run/list",
        "/queue/list",
        `/queue/dlq/list/${source}`,
        `/queue/push_subscription/list/${source}`,
      ].map(async (path) => [path, ok(await carillon.rest("GET", `${path}?limit=1`)).next_cursor] as const),
    );
  });

  test("cursors of other lists, of other filters, forged and damaged ones are refused", async () => {
    for (const [path, cursor] of lists) {
      const position = decode(cursor);
      const head = position.slice(0, 3);
      const forged = [
        ...lists.filter(([other]) => other !== path).map(([, foreign]) => foreign),
        "x",
        "null",
        cursor.slice(0, -3),
        encode([]),
        encode(["1"]),
        encode({} as never),
        encode(["2", ...position.slice(1)]),
        encode([position[0], position[1], "other filters", ...position.slice(3)]),
        "A".repeat(513),
        "\u00e9",
      ];
      for (const given of forged) {
        const answer = await carillon.rest("GET", `${path}?cursor=${encodeURIComponent(given)}`);
        expect(restOutcome(answer), `${path} ${given}`).toMatchObject({
          code: "invalid_argument",
          reason: "FIELD_INVALID",
        });
      }
      for (const made of [
        ["\0"],
        ["\0", "\0"],
        ["nonsense", "nonsense"],
        ["2030-01-01T00:00:00Z", "x"],
        ["\ud800", ""],
        ["", ""],
      ]) {
        const answer = await carillon.rest("GET", `${path}?cursor=${encode([...head, ...made])}`);
        expect([200, 400], `${path} ${JSON.stringify(made)}: ${answer.text}`).toContain(answer.status);
      }
    }
  });

  test("limits of 0, less, more than 500 and other than whole numbers are refused", async () => {
    for (const [path] of lists) {
      for (const limit of ["0", "-1", "501", "1000000000", "2147483648", "1.5", "ten", "1e400", "0x10", "NaN"]) {
        const answer = await carillon.rest("GET", `${path}?limit=${limit}`);
        expectRefusal(restOutcome(answer), "invalid_argument", "FIELD_INVALID");
      }
    }
  });
});

test("item 18: what the documented examples bring along is taken", async () => {
  const job = ok(
    await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, task_type: "http_url", task_url: ACME }),
  );
  ok(await carillon.rest("PATCH", `/cron/update/${job.cron_id}`, {}));
  ok(await carillon.rest("POST", `/cron/trigger/${job.cron_id}`, { job_id: "cron_01HX..." }));
  ok(await carillon.rest("PUT", `/cron/retention/set/${job.cron_id}`, { retention_days: 0 }));
  ok(await carillon.rest("POST", "/queue/publish", { queue, payload: { order_id: "o_123" }, priority: 5 }));
  ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { queue: "orders", forward_to: ACME }));
  ok(await carillon.rest("POST", `/queue/dlq/redrive/${queue}`, { queue: "orders", max_messages: 100 }));
});

test("item 17: a dead letter queue of another project does not exist", async () => {
  const theirs = await createQueue(carillon);
  const body = { queue: unique("q"), dead_letter_queue: theirs };
  const answer = await carillon.rest("POST", "/queue/create", body, await otherProject(carillon));
  expectRefusal(restOutcome(answer), "failed_precondition", "DEAD_LETTER_QUEUE_MISSING");
});
