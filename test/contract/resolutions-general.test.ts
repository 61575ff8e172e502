import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { REFUSALS } from "../../src/errors.ts";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import {
  ACME,
  createCron,
  createQueue,
  FAR_AWAY,
  ok,
  otherProject,
  publish,
  refused,
  refusedField,
  unique,
  warning,
} from "./calls.ts";
import { expectAbsent } from "./shape.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe("G1: second names", () => {
  test("G1: every operation takes the canonical names and those of its siblings", async () => {
    for (const schedule of ["schedule", "cron_expr"]) {
      for (const url of ["url", "task", "task_url"]) {
        for (const retries of ["retries", "retry"]) {
          const body = { [schedule]: FAR_AWAY, [url]: ACME, [retries]: 7 };
          const job = ok(await carillon.rest("POST", "/cron/create", body));
          expect(job).toMatchObject({ schedule: FAR_AWAY, cron_expr: FAR_AWAY, url: ACME, task: ACME, retry: 7 });
          const update = { [schedule]: FAR_AWAY, [url]: `${ACME}/2`, [retries]: 1 };
          const updated = ok(await carillon.rest("PATCH", `/cron/update/${job.cron_id}`, update));
          expect(updated).toMatchObject({ url: `${ACME}/2`, retries: 1 });
        }
      }
    }
    for (const url of ["url", "task", "task_url"]) {
      ok(await carillon.rest("POST", "/task/schedule", { [url]: ACME, run_at: "2030-01-01T00:00:00Z" }));
    }
    for (const url of ["url", "task", "task_url", "forward_to"]) {
      ok(await carillon.rest("POST", `/queue/push_subscribe/${await createQueue(carillon)}`, { [url]: ACME }));
    }
    for (const name of ["queue", "name"]) {
      ok(await carillon.rest("POST", "/queue/create", { [name]: unique("q") }));
      ok(await carillon.rest("POST", "/queue/publish", { [name]: unique("q"), payload: {} }));
    }
  });

  test("G1: two names of one field with equal values are fine", async () => {
    const body = { cron_expr: FAR_AWAY, schedule: FAR_AWAY, url: ACME, task: ACME, task_url: ACME };
    ok(await carillon.rest("POST", "/cron/create", body));
  });

  test("G1: two names of one field with different values are refused, naming both", async () => {
    const body = { cron_expr: FAR_AWAY, schedule: "0 9 * * *", url: ACME };
    const error = refused(
      await carillon.rest("POST", "/cron/create", body),
      400,
      "INVALID_ARGUMENT",
      "FIELDS_CONFLICT",
    );
    expect(error.message).toContain("cron_expr");
    expect(error.message).toContain("schedule");
  });
});

describe("G2: path wins", () => {
  test("G2: an identifier in the body under any name addresses nothing, and a different one is warned of", async () => {
    const job = await createCron(carillon);
    for (const name of ["cron_id", "id", "job_id"]) {
      const answer = await carillon.rest("POST", `/cron/pause/${job.cron_id}`, { [name]: "cron_01HX..." });
      expect(ok(answer).cron_id).toBe(job.cron_id);
      expect(warning(answer)).toBe(`body.${name} ignored, path names the cron_id`);
    }
    const queue = await createQueue(carillon);
    const purged = await carillon.rest("POST", `/queue/purge/${queue}`, { queue: "orders" });
    expect(ok(purged).queue).toBe(queue);
    expect(warning(purged)).toBe("body.queue ignored, path names the queue");
  });

  test("G2: an identifier in the body that equals the path is not warned of", async () => {
    const { cron_id } = await createCron(carillon);
    const answer = await carillon.rest("POST", `/cron/pause/${cron_id}`, { cron_id });
    ok(answer);
    expect(warning(answer)).toBe("");
  });

  test("G2: a project with strict_path_body refuses the mismatch", async () => {
    const headers = await otherProject(carillon, { strictPathBody: true });
    const job = ok(await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, url: ACME }, headers));
    const path = `/cron/pause/${job.cron_id}`;
    refused(
      await carillon.rest("POST", path, { cron_id: "..." }, headers),
      400,
      "INVALID_ARGUMENT",
      "PATH_BODY_MISMATCH",
    );
    ok(await carillon.rest("POST", path, { cron_id: job.cron_id }, headers));
  });
});

test("G3: unknown fields are ignored with a warning, and refused for a strict project", async () => {
  const lenient = await carillon.rest("POST", "/queue/create", { queue: unique("q"), colour: "red" });
  ok(lenient);
  expect(warning(lenient)).toBe("unknown field colour ignored");
  const headers = await otherProject(carillon, { strictFields: true });
  const strict = await carillon.rest("POST", "/queue/create", { queue: unique("q"), colour: "red" }, headers);
  refused(strict, 400, "INVALID_ARGUMENT", "UNKNOWN_FIELD");
});

test("G4: an empty body, {} and no Content-Type are legal on POST, PATCH and DELETE", async () => {
  const { cron_id } = await createCron(carillon);
  const queue = await createQueue(carillon);
  const calls = [
    ["POST", `/cron/pause/${cron_id}`],
    ["PATCH", `/cron/update/${cron_id}`],
    ["POST", `/queue/purge/${queue}`],
    ["DELETE", `/cron/delete/${cron_id}`],
    ["DELETE", `/queue/delete/${queue}`],
  ] as const;
  for (const [method, path] of calls) {
    for (const init of [{}, { body: "" }, { body: new TextEncoder().encode("{}") }]) {
      // A body of bytes goes out without a Content-Type.
      const response = await fetch(`${carillon.url}/v1/scheduling${path}`, {
        method,
        headers: { authorization: `Bearer ${TEST_KEY}` },
        signal: AbortSignal.timeout(10_000),
        ...init,
      });
      const text = await response.text();
      const isRepeatedDelete = method === "DELETE" && response.status === 404;
      expect(response.status === 200 || isRepeatedDelete, text).toBe(true);
    }
  }
});

describe("G6: JSON", () => {
  test("G6: names are snake_case, numbers are numbers, false, 0 and [] are there, enums are lower case", async () => {
    const queue = await createQueue(carillon, { type: "fifo", max_retries: 0 });
    const answer = await carillon.rest("GET", `/queue/get/${queue}`);
    expect(ok(answer)).toMatchObject({ type: "fifo", max_retries: 0, enable_priority: false, paused: false });
    expect(ok(await carillon.rest("GET", `/queue/stats/${queue}`))).toMatchObject({ available: 0, delayed: 0, dlq: 0 });
    expect(ok(await carillon.rest("POST", "/queue/consume", { queue }))).toMatchObject({ messages: [] });
    const headers = await otherProject(carillon);
    for (const list of ["/cron/list", "/queue/list", "/run/list", "/task/list"]) {
      expect(ok(await carillon.rest("GET", list, undefined, headers))).toEqual({ items: [] });
    }
    const job = await createCron(carillon, { overlap_policy: "allow", retries: 0 });
    expect(job).toMatchObject({ overlap_policy: "allow", retries: 0, run_count: 0, headers: {} });
    for (const name of Object.keys(job)) expect(name).toMatch(/^[a-z_]+$/);
  });

  test("G6: optional fields that are not set are left out, never null", async () => {
    const job = await createCron(carillon);
    expectAbsent(job, "payload", "max_runs", "on_failure_webhook", "last_run");
    expect(Object.values(job)).not.toContain(null);
  });

  test("G6: camelCase is accepted too, and enum values in any case", async () => {
    const body = { cronExpr: FAR_AWAY, taskUrl: ACME, timeoutSeconds: 12, overlapPolicy: "ALLOW", maxRuns: 3 };
    const job = ok(await carillon.rest("POST", "/cron/create", body));
    expect(job).toMatchObject({ cron_expr: FAR_AWAY, timeout_seconds: 12, overlap_policy: "allow", max_runs: 3 });
  });
});

test("G7: a payload is kept byte for byte: big integers, key order, duplicate keys, white space, escapes", async () => {
  const payload = '{ "z": 9007199254740993, "a":1.0e0 ,"b":[ ], "b" : null, "\\u00e9":"\\u0000é😀" }';
  const queue = await createQueue(carillon);
  ok(await carillon.rest("POST", "/queue/publish", `{"queue":"${queue}","payload":  ${payload} ,"priority":0}`));
  const { text } = await carillon.rest("POST", "/queue/consume", { queue });
  expect(text).toContain(`"payload":${payload},`);
  const job = await carillon.rest(
    "POST",
    "/cron/create",
    `{"schedule":"${FAR_AWAY}","url":"${ACME}","payload":${payload}}`,
  );
  expect(job.text).toContain(`"payload":${payload},`);
});

test("G8: times are RFC 3339, without an offset UTC, or epoch seconds or milliseconds; they come back in UTC with ms", async () => {
  for (const [given, expected] of [
    ["2030-01-31T09:00:00Z", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31T09:00:00", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31T09:00:00.1234567+08:00", "2030-01-31T01:00:00.123Z"],
    ["2030-01-31", "2030-01-31T00:00:00.000Z"],
    [1_896_080_400, "2030-01-31T09:00:00.000Z"],
    [1_896_080_400_123, "2030-01-31T09:00:00.123Z"],
    ["1896080400", "2030-01-31T09:00:00.000Z"],
  ] as const) {
    const task = ok(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at: given }));
    expect(task.run_at, String(given)).toBe(expected);
  }
});

describe("G9: pages", () => {
  test("G9: every list has cursor and limit, and next_cursor is absent on the last page", async () => {
    const headers = await otherProject(carillon);
    const call = async (method: string, path: string, body?: object) =>
      ok(await carillon.rest(method, path, body, headers));
    const queue = "paged";
    await call("POST", "/queue/create", { queue, max_retries: 0 });
    for (let n = 0; n < 3; n++) {
      const job = await call("POST", "/cron/create", { schedule: FAR_AWAY, url: ACME });
      await call("POST", `/cron/trigger/${job.cron_id}`);
      await call("POST", "/task/schedule", { url: ACME, run_at: "2030-01-01" });
      await call("POST", "/queue/create", { queue: `q${n}` });
      await call("POST", `/queue/push_subscribe/${queue}`, { url: `${ACME}/${n}` });
      const { message_id } = await call("POST", "/queue/publish", { queue, payload: n });
      await call("POST", "/queue/consume", { queue });
      await call("POST", "/queue/nack", { queue, message_id });
    }
    const lists = [
      ["/cron/list", "cron_id", 3],
      ["/task/list", "task_id", 3],
      ["/run/list", "run_id", 6],
      ["/queue/list", "queue", 4],
      [`/queue/dlq/list/${queue}`, "message_id", 3],
      [`/queue/push_subscription/list/${queue}`, "subscription_id", 3],
    ] as const;
    for (const [path, id, total] of lists) {
      const ids: string[] = [];
      let cursor: string | undefined;
      do {
        const page = await call("GET", `${path}?limit=2${cursor === undefined ? "" : `&cursor=${cursor}`}`);
        expect(page.items.length, path).toBeGreaterThan(0);
        expect(page.items.length, path).toBeLessThanOrEqual(2);
        ids.push(...page.items.map((item: Record<string, string>) => item[id]));
        cursor = page.next_cursor;
      } while (cursor !== undefined);
      expect(new Set(ids).size, path).toBe(total);
      expectAbsent(await call("GET", path), "next_cursor");
    }
  });

  test("G9: the default is 50 and the most is 500", async () => {
    const headers = await otherProject(carillon);
    const queue = "many";
    ok(await carillon.rest("POST", "/queue/create", { queue, max_retries: 0 }, headers));
    const messages = Array.from({ length: 60 }, (_, n) => ({ payload: n }));
    ok(await carillon.rest("POST", "/queue/publish_batch", { queue, messages }, headers));
    const leased = ok(await carillon.rest("POST", "/queue/consume", { queue, max_messages: 100 }, headers)).messages;
    for (const { message_id } of leased) {
      ok(await carillon.rest("POST", "/queue/nack", { queue, message_id, requeue: false }, headers));
    }
    const path = `/queue/dlq/list/${queue}`;
    expect(ok(await carillon.rest("GET", path, undefined, headers)).items).toHaveLength(50);
    expect(ok(await carillon.rest("GET", `${path}?limit=500`, undefined, headers)).items).toHaveLength(60);
    for (const limit of ["0", "501", "-1"]) {
      refusedField(await carillon.rest("GET", `${path}?limit=${limit}`, undefined, headers), "limit");
    }
  });
});

test("G10: names are 1 to 128 of A-Z a-z 0-9 . _ - and neither . nor ..", async () => {
  for (const queue of ["...", "a", "A.b_c-9", "x".repeat(128), "-", "_"]) {
    expect(ok(await carillon.rest("POST", "/queue/create", { queue })).queue).toBe(queue);
  }
  for (const queue of [".", "..", "", "x".repeat(129), "a b", "a/b", "é", "a\n", "%41"]) {
    refusedField(await carillon.rest("POST", "/queue/create", { queue }), "queue");
  }
});

describe("G11: errors", () => {
  test("G11: an error is {error:{code,message,details[],request_id}} with a SCREAMING_SNAKE code", async () => {
    const answers = [
      await carillon.rest("GET", "/cron/get/cron_none"),
      await carillon.rest("POST", "/queue/create", {}),
      await carillon.rest("POST", "/queue/create", "{"),
      await carillon.rest("GET", "/nothing/here"),
      await carillon.rest("PUT", "/cron/list"),
      await carillon.rest("GET", "/cron/list", undefined, { authorization: "Bearer wrong" }),
    ];
    expect(answers.map(({ status }) => status)).toEqual([404, 400, 400, 404, 405, 401]);
    for (const { body, headers } of answers) {
      expect(Object.keys(body)).toEqual(["error"]);
      expect(body.error.code).toMatch(/^[A-Z]+(_[A-Z]+)*$/);
      expect(body.error.reason).toMatch(/^[A-Z]+(_[A-Z]+)*$/);
      expect(body.error.message).toMatch(/./);
      expect(Array.isArray(body.error.details)).toBe(true);
      expect(body.error.request_id).toBe(headers.get("x-request-id"));
    }
  });

  test("G11: 402 is reserved: no refusal has it", () => {
    const statuses = Object.values(REFUSALS).map((refusal) => ("rest" in refusal ? refusal.rest.status : undefined));
    expect(statuses).not.toContain(402);
  });

  test("G11: a caller's X-Request-Id is the request_id", async () => {
    const answer = await carillon.rest("GET", "/cron/get/none", undefined, { "x-request-id": "my-request-7" });
    expect(answer.body.error.request_id).toBe("my-request-7");
    expect(answer.headers.get("x-request-id")).toBe("my-request-7");
  });
});

test("G12: ids have prefixes and ULID bodies", async () => {
  const ulid = /^[0-7][0-9A-HJKMNP-TV-Z]{25}$/;
  const job = await createCron(carillon);
  const run = ok(await carillon.rest("POST", `/cron/trigger/${job.cron_id}`));
  const task = ok(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at: "2030-01-01" }));
  const queue = await createQueue(carillon);
  const message = await publish(carillon, queue);
  const subscription = ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: ACME }));
  for (const [id, prefix] of [
    [job.cron_id, "cron_"],
    [run.run_id, "run_"],
    [task.task_id, "task_"],
    [message, "msg_"],
    [subscription.subscription_id, "sub_"],
  ]) {
    expect(id.startsWith(prefix), id).toBe(true);
    expect(id.slice(prefix.length)).toMatch(ulid);
  }
});
