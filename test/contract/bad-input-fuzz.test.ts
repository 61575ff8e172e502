import { randomInt } from "node:crypto";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { ACME, consume, createCron, createQueue, FAR_AWAY, ok, publish } from "./calls.ts";
import { DOCUMENTED_ROUTES } from "./documented-routes.ts";

const REQUESTS = 2_000;
/** Requests under way at a time. */
const ABREAST = 8;
/** Most time for an answer, in milliseconds. */
const DEADLINE_MS = 10_000;

let carillon: TestCarillon;
/** Things that are there, so that a part of the requests gets past the first check. */
let real: readonly string[];
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
  const { cron_id } = await createCron(carillon);
  const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  const queue = await createQueue(carillon, { type: "fifo" });
  const message_id = await publish(carillon, queue, { group_id: "g" });
  const [{ receipt }] = await consume(carillon, queue);
  const { next_cursor } = ok(await carillon.rest("GET", "/queue/list?limit=1"));
  real = [cron_id, run_id, queue, message_id, receipt, await createQueue(carillon), next_cursor ?? ""];
});
afterAll(() => carillon[Symbol.asyncDispose]());

/** Every field that a documented call takes, by one of its names, but for the time that a consumer waits. */
const NAMES = [
  "name",
  "schedule",
  "cron_expr",
  "url",
  "task_url",
  "task_type",
  "payload",
  "content_type",
  "timezone",
  "retries",
  "timeout_seconds",
  "overlap_policy",
  "max_runs",
  "headers",
  "on_failure_webhook",
  "secret",
  "retention_days",
  "misfire_policy",
  "misfire_window_seconds",
  "idempotency_key",
  "update_mask",
  "cron_id",
  "task",
  "run_at",
  "grace_seconds",
  "queue",
  "type",
  "dead_letter_queue",
  "max_retries",
  "message_retention_days",
  "visibility_timeout_default",
  "enable_priority",
  "paused",
  "delay_seconds",
  "priority",
  "group_id",
  "messages",
  "max_messages",
  "visibility_timeout",
  "request_id",
  "message_id",
  "receipt",
  "requeue",
  "reason",
  "since",
  "until",
  "limit",
  "cursor",
  "scope",
  "state",
  "kind",
  "forward_to",
  "mode",
  "force",
  "__proto__",
  "constructor",
  "nonsense",
] as const;

const odd = fc.constantFrom<unknown>(
  null,
  true,
  false,
  0,
  1,
  -1,
  -0,
  1.5,
  2 ** 31,
  2 ** 53,
  1e300,
  "",
  "\0",
  "\ud800",
  "\ufeff",
  "😀",
  "...",
  ".",
  "..",
  "../../etc/passwd",
  "' or 1=1 --",
  "fifo",
  "skip",
  "true",
  "1",
  "-1",
  "NaN",
  "2030-01-01T00:00:00Z",
  "0001-01-01",
  "9999-12-31T23:59:59.999Z",
  253_402_300_799_999,
  -62_135_596_800,
  "* * * * *",
  "@every 1s",
  FAR_AWAY,
  "UTC",
  "Asia/Shanghai",
  ACME,
  "http://127.0.0.1:1/",
  "https://[::1]/",
  "text/plain",
  "application/json",
  "whsec_!",
  [],
  {},
  [{}],
  [{ payload: 1 }],
  { a: "b" },
  { host: "x" },
  { "x-a": "\r\n" },
  "a,b",
  "name,retry",
  "x".repeat(600),
);

const value = fc.oneof(
  { weight: 4, arbitrary: odd },
  { weight: 1, arbitrary: fc.jsonValue({ maxDepth: 3 }) },
  { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 20 }) },
  { weight: 2, arbitrary: fc.nat(100).map((index) => ({ real: index })) },
);
const fields = fc.dictionary(fc.constantFrom(...NAMES), value, { maxKeys: 8 });
const body = fc.oneof(
  { weight: 8, arbitrary: fields },
  { weight: 1, arbitrary: fc.jsonValue() },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 100 }) },
);
const request = fc.record({
  route: fc.constantFrom(...DOCUMENTED_ROUTES),
  ids: fc.array(value, { minLength: 2, maxLength: 2 }),
  body,
  query: fc.oneof({ weight: 3, arbitrary: fc.constant({}) }, { weight: 1, arbitrary: fields }),
  key: fc.oneof(
    { weight: 5, arbitrary: fc.constant(undefined) },
    { weight: 1, arbitrary: fc.constantFrom("k", "k2", "\u00e9") },
  ),
});

/** A generated value with a real thing where it asks for one. */
function resolve(given: unknown): unknown {
  if (typeof given === "object" && given !== null && "real" in given) return real[Number(given.real) % real.length];
  return given;
}

function textOf(given: unknown): string {
  const resolved = resolve(given);
  return (typeof resolved === "string" ? resolved : (JSON.stringify(resolved) ?? "")).toWellFormed();
}

test("whatever is sent to a documented route, the answer is no fault and comes in time", {
  timeout: 240_000,
}, async () => {
  const seed = randomInt(2 ** 31);
  console.info(`fuzz of the REST routes: seed ${seed}`);
  const statuses = new Map<number, number>();

  async function send({ route, ids, body, query, key }: typeof request extends fc.Arbitrary<infer T> ? T : never) {
    const [method, template] = route;
    const left = [...ids];
    const path = template.replaceAll(/\{\w+\}/g, () => encodeURIComponent(textOf(left.shift())) || "x");
    const search = new URLSearchParams(
      Object.entries(query).map(([name, given]): [string, string] => [name, textOf(given)]),
    );
    const json = (object: unknown) => JSON.stringify(object, (_name, given) => resolve(given));
    const response = await fetch(`${carillon.url}/v1/scheduling${path}?${search}`, {
      method,
      headers: { authorization: `Bearer ${TEST_KEY}`, ...(key !== undefined && { "idempotency-key": key }) },
      ...(method !== "GET" && { body: body instanceof Uint8Array ? new Uint8Array(body) : json(body) }),
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
    const text = await response.text();
    statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
    expect(response.status, `${method} ${path} ${json(body)}: ${text.slice(0, 500)}`).toBeLessThan(500);
    if (response.status !== 200) expect(JSON.parse(text).error.reason).toMatch(/^[A-Z][A-Z_]+$/);
  }

  const batch = fc.array(request, { minLength: ABREAST, maxLength: ABREAST });
  const property = fc.asyncProperty(batch, async (requests) => void (await Promise.all(requests.map(send))));
  await fc.assert(property, { seed, numRuns: REQUESTS / ABREAST, endOnFailure: true });
  expect(statuses.get(200), "some of it is accepted").toBeGreaterThan(REQUESTS / 50);
  expect(statuses.get(400), "some of it is refused").toBeGreaterThan(REQUESTS / 50);
  ok(await carillon.rest("GET", "/queue/list"));
});
