import { type DescMessage, type DescService, fromJsonString, type JsonValue } from "@bufbuild/protobuf";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { ACME, createCron, createQueue, FAR_AWAY, ok, publish, unique } from "./calls.ts";
import { connectJson, expectRefusal, grpcClients, outcomeOf, restOutcome } from "./outcomes.ts";

let carillon: TestCarillon;
let cronId: string;
let queue: string;
let grpc: ReturnType<typeof grpcClients>;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
  cronId = (await createCron(carillon)).cron_id;
  queue = await createQueue(carillon);
  grpc = grpcClients(carillon);
});
afterAll(() => carillon[Symbol.asyncDispose]());
// After whatever came in, the server answers a normal request.
afterEach(async () => void ok(await carillon.rest("POST", "/queue/publish", { queue, payload: {} })));

/** A request in the contract's JSON, and where REST takes it. */
interface Call {
  readonly service: DescService;
  readonly method: string;
  readonly rest: readonly [verb: string, path: () => string];
}

const CREATE_CRON: Call = { service: CronService, method: "createCronJob", rest: ["POST", () => "/cron/create"] };
const TASK: Call = { service: TaskService, method: "scheduleTask", rest: ["POST", () => "/task/schedule"] };
const CREATE_QUEUE: Call = { service: QueueService, method: "createQueue", rest: ["POST", () => "/queue/create"] };
const PUBLISH: Call = { service: QueueService, method: "publish", rest: ["POST", () => "/queue/publish"] };
const BATCH: Call = { service: QueueService, method: "publishBatch", rest: ["POST", () => "/queue/publish_batch"] };
const CONSUME: Call = { service: QueueService, method: "consume", rest: ["POST", () => "/queue/consume"] };
const NACK: Call = { service: QueueService, method: "nack", rest: ["POST", () => "/queue/nack"] };

/** What a case lacks of a valid request. A payload is base64 here, and JSON text in it. */
const VALID = new Map<Call, () => Record<string, JsonValue>>([
  [CREATE_CRON, () => ({ cron_expr: FAR_AWAY, url: ACME })],
  [TASK, () => ({ url: ACME, run_at: "2030-01-01T00:00:00Z" })],
  [CREATE_QUEUE, () => ({ queue: unique("q") })],
  [PUBLISH, () => ({ queue, payload: "e30=" })],
  [BATCH, () => ({ queue })],
  [CONSUME, () => ({ queue })],
  [NACK, () => ({ queue, message_id: "..." })],
]);

const FIELD = "FIELD_INVALID";
const cron = (expression: string) => ["7", CREATE_CRON, { cron_expr: expression }, "CRON_EXPR_INVALID"] as const;
const zone = (timezone: string) => ["8", CREATE_CRON, { timezone }, "TIMEZONE_INVALID"] as const;
const header = (name: string, value = "x") => ["14", TASK, { headers: { [name]: value } }, FIELD] as const;

/** The item of the list of bad inputs, the call, what is wrong with it, and the reason of the refusal. */
const EVERYWHERE: readonly (readonly [item: string, call: Call, wrong: Record<string, JsonValue>, reason: string])[] = [
  ["3", CREATE_QUEUE, { queue: "a\0b" }, FIELD],
  ["3", CREATE_QUEUE, { queue: "\ufeffq" }, FIELD],
  ["3", CREATE_QUEUE, { queue: "😀" }, FIELD],
  ["3", CREATE_CRON, { name: "a\0b" }, FIELD],
  ["3", CREATE_CRON, { name: "line\nend" }, FIELD],
  ["3", CREATE_CRON, { secret: "a\0b" }, FIELD],
  ["3", CREATE_CRON, { timezone: "UTC\0" }, FIELD],
  ["3", TASK, { name: "\u0007" }, FIELD],
  ["3", TASK, { secret: "\0" }, FIELD],
  ["3", PUBLISH, { group_id: "\0" }, FIELD],
  ["3", PUBLISH, { content_type: "text/plain\0" }, FIELD],
  ["3", NACK, { reason: "\0" }, FIELD],
  ["3", NACK, { receipt: "\0" }, FIELD],
  ["3", CONSUME, { request_id: "\0" }, FIELD],
  ["5", PUBLISH, { delay_seconds: -1 }, FIELD],
  ["5", PUBLISH, { delay_seconds: 315_360_001 }, FIELD],
  ["5", PUBLISH, { delay_seconds: 2_147_483_647 }, FIELD],
  ["5", PUBLISH, { priority: -2_147_483_648 }, FIELD],
  ["5", CONSUME, { visibility_timeout: 0 }, FIELD],
  ["5", CONSUME, { visibility_timeout: -1 }, FIELD],
  ["5", CONSUME, { visibility_timeout: 2_147_483_647 }, FIELD],
  ["5", CONSUME, { max_messages: 0 }, FIELD],
  ["5", CONSUME, { wait_seconds: 21 }, FIELD],
  ["6", TASK, { run_at: "9999-12-31T23:59:59Z" }, FIELD],
  ["6", TASK, { run_at: "2090-01-01T00:00:00Z" }, FIELD],
  cron("* * * *"),
  cron("* * * * * * * *"),
  cron("0 0 30 2 *"),
  cron("0 0 31 4 *"),
  cron("60 * * * *"),
  cron("*/0 * * * *"),
  cron("* 24 * * *"),
  cron("* * * * MON-"),
  cron("@reboot"),
  cron("@every 0s"),
  cron("@every -1h"),
  cron("٣ * * * *"),
  cron("0 9 * * 1 # weekly"),
  cron("0 0 0 1 1 * 1999"),
  cron("0 0 * * 1#9"),
  cron("0 0 99W * *"),
  cron("TZ=Mars/Olympus 0 9 * * *"),
  ["7", CREATE_CRON, { cron_expr: "" }, FIELD],
  ["7", CREATE_CRON, { cron_expr: "1,".repeat(20_000) }, FIELD],
  ["7", CREATE_CRON, { cron_expr: `${"1,".repeat(150)}1 * * * *` }, FIELD],
  zone("Mars/Olympus"),
  zone("UTC+8"),
  zone("../etc/passwd"),
  zone("Europe/../UTC"),
  zone(":UTC"),
  ["8", CREATE_CRON, { timezone: "A/".repeat(100) }, FIELD],
  ["10", CREATE_CRON, { idempotency_key: "k".repeat(10_240) }, FIELD],
  ["10", PUBLISH, { idempotency_key: "a\u0001b" }, FIELD],
  ["10", PUBLISH, { idempotency_key: "é" }, FIELD],
  ["11", BATCH, { messages: Array.from({ length: 1_001 }, () => ({ payload: "e30=" })) }, FIELD],
  ["11", BATCH, { messages: [...Array.from({ length: 99 }, () => ({ payload: "e30=" })), { priority: 10 }] }, FIELD],
  ["11", BATCH, { messages: [{ payload: "e30=" }, {}] }, FIELD],
  header("x-a", "a\r\nx-injected: b"),
  header("x-a", "a\0"),
  header("x-a", "\u20ac"),
  header("host"),
  header("Connection"),
  header("transfer-encoding", "chunked"),
  header("content-length", "0"),
  header("te"),
  header("proxy-authorization"),
  header("webhook-signature"),
  header("Webhook-Id"),
  header("carillon-run-id"),
  header("x-forwarded-for"),
  header(""),
  header("a b"),
  header(":path"),
  header("x".repeat(9_000)),
  ["14", TASK, { headers: { "x-a": "1", "X-A": "2" } }, FIELD],
  ["14", TASK, { headers: Object.fromEntries(Array.from({ length: 33 }, (_, n) => [`x-${n}`, "v"])) }, FIELD],
  ["17", CREATE_QUEUE, { queue: "self", dead_letter_queue: "self" }, "DEAD_LETTER_QUEUE_MISSING"],
  ["17", CREATE_QUEUE, { dead_letter_queue: "there-is-none" }, "DEAD_LETTER_QUEUE_MISSING"],
  ["17", CREATE_QUEUE, { dead_letter_queue: "a/b" }, FIELD],
];

describe("over REST, Connect and gRPC the same refusal", () => {
  test.each(EVERYWHERE.map((row) => [row[0], row[1].method, JSON.stringify(row[2]).slice(0, 80), row] as const))(
    "item %s: %s of %s",
    async (_item, _method, _wrong, [, call, wrong, reason]) => {
      const request = { ...VALID.get(call)?.(), ...wrong };
      const code = reason.endsWith("_MISSING") ? "failed_precondition" : "invalid_argument";
      const [verb, path] = call.rest;
      expectRefusal(restOutcome(await carillon.rest(verb, path(), plainPayloads(request))), code, reason);
      const method = call.service.method[call.method];
      if (method === undefined) throw new Error(`no method ${call.method}`);
      const json = JSON.stringify(request);
      expectRefusal(await connectJson(carillon, `${call.service.typeName}/${method.name}`, json), code, reason);
      const message = fromJsonString(method.input as DescMessage, json);
      expectRefusal(await grpc.call(method as never, message as never), code, reason);
    },
  );
});

/** The request as REST has it: payloads as JSON. */
function plainPayloads(request: Record<string, JsonValue>): Record<string, unknown> {
  const entries = Object.entries(request).map(([name, value]) => {
    if (name === "payload") return [name, JSON.parse(Buffer.from(String(value), "base64").toString())];
    if (name !== "messages" || !Array.isArray(value)) return [name, value];
    return [name, value.map((item) => plainPayloads(item as Record<string, JsonValue>))];
  });
  return Object.fromEntries(entries);
}

describe("JSON text over REST", () => {
  const field = (name: string, json: string) => `{"queue":"q","payload":1,"${name}":${json}}`;
  const payload = (json: string) => `{"queue":"q","payload":${json}}`;
  const nested = (depth: number) => "[".repeat(depth) + "]".repeat(depth);

  test.each<[item: string, body: string, reason: string]>([
    ["1", payload(nested(65)), "BODY_INVALID"],
    ["1", payload(nested(7_000)), "BODY_INVALID"],
    ["1", payload(nested(1_000_000)), "BODY_INVALID"],
    ["1", "[".repeat(7_000), "BODY_INVALID"],
    ["1", `${'{"a":'.repeat(100_000)}1`, "BODY_INVALID"],
    ["3", field("group_id", '"\\ud800"'), FIELD],
    ["3", field("group_id", '"\\u0000"'), FIELD],
    ["3", field("group_id", '"\0"'), "BODY_INVALID"],
    ["4", '{"queue":"q","queue":"p","payload":1}', "BODY_INVALID"],
    ["4", field("delay_seconds", '1,"delaySeconds":2'), "FIELDS_CONFLICT"],
    ["4", field("headers", '{"a":"1","a":"2"}'), "BODY_INVALID"],
    ["5", field("delay_seconds", "9007199254740993"), FIELD],
    ["5", field("delay_seconds", "2147483648"), FIELD],
    ["5", field("delay_seconds", "1e400"), FIELD],
    ["5", field("delay_seconds", "1e-400"), FIELD],
    ["5", field("delay_seconds", "1.5"), FIELD],
    ["5", field("delay_seconds", '"NaN"'), FIELD],
    ["5", field("delay_seconds", '"Infinity"'), FIELD],
    ["5", field("delay_seconds", "NaN"), "BODY_INVALID"],
    ["5", field("delay_seconds", "-Infinity"), "BODY_INVALID"],
    ["5", field("delay_seconds", "01"), "BODY_INVALID"],
    ["5", field("delay_seconds", "[1]"), FIELD],
    ["5", field("delay_seconds", "{}"), FIELD],
    ["5", payload("1e"), "BODY_INVALID"],
    ["11", '{"queue":"q","messages":{}}', FIELD],
    ["11", "[]", "BODY_INVALID"],
    ["11", '"q"', "BODY_INVALID"],
    ["11", "null", "BODY_INVALID"],
    ["11", '{"queue":"q"', "BODY_INVALID"],
    ["11", `${field("priority", "1")}x`, "BODY_INVALID"],
  ])("item %s: %#", async (_item, body, reason) => {
    const path = body.includes('"messages"') ? "/queue/publish_batch" : "/queue/publish";
    expectRefusal(restOutcome(await carillon.rest("POST", path, body)), "invalid_argument", reason);
  });

  test("items 3, 4 and 5: what is odd and legal is taken", async () => {
    for (const body of [
      `\ufeff${field("priority", "1")}`,
      field("delay_seconds", "-0"),
      field("delay_seconds", '"5"'),
      field("delay_seconds", "1e1"),
      payload('"\\u0000\\ud800"'),
      payload('{"__proto__":{"a":1},"constructor":2,"a":1,"a":2}'),
      field("__proto__", '{"queue":"p"}'),
      field("constructor", "1"),
      field("headers", '{"__proto__":"x","constructor":"y"}'),
      payload(nested(63)),
    ]) {
      ok(await carillon.rest("POST", "/queue/publish", body));
    }
  });

  test.each([
    "300000-01-01T00:00:00Z",
    "2030-06-30T23:59:60Z",
    "2030-01-01T24:00:00Z",
    "2030-02-30T00:00:00Z",
    "2030-01-01T00:00:00+24:00",
    "infinity",
    "now",
    "tomorrow",
    "",
    "1e400",
    "0000-01-01T00:00:00Z",
    "-0001-01-01T00:00:00Z",
  ])("item 6: run_at %s is refused", async (run_at) => {
    expectRefusal(
      restOutcome(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at })),
      "invalid_argument",
      FIELD,
    );
  });

  test("item 6: the far past and odd offsets are taken", async () => {
    for (const run_at of ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z", "2030-01-01T00:00:00+23:59", 0, -1]) {
      ok(await carillon.rest("POST", "/task/schedule", { url: ACME, run_at }));
    }
  });
});

describe("JSON text over Connect", () => {
  test.each<[item: string, json: string]>([
    ["1", `{"payload":${"[".repeat(100_000)}`],
    ["3", '{"queue":"\\ud800"}'],
    ["4", '{"queue":"q","messageRetentionDays":1,"message_retention_days":2}'],
    ["5", '{"queue":"q","maxRetries":2147483648}'],
    ["5", '{"queue":"q","maxRetries":1e400}'],
    ["5", '{"queue":"q","maxRetries":1.5}'],
    ["5", '{"queue":"q","maxRetries":"NaN"}'],
    ["5", '{"queue":"q","maxRetries":[]}'],
    ["11", "[]"],
    ["11", ""],
    ["11", '{"queue":"q"'],
    ["12", '{"queue":"q","type":99}'],
  ])("item %s: %#", async (_item, json) => {
    const outcome = await connectJson(carillon, "scheduling.v1.QueueService/CreateQueue", json);
    expect(outcome.code, outcome.text).toBe("invalid_argument");
  });

  // The JSON reader of Connect takes a name that no value has for an unknown field, and those are to be ignored.
  test.fails("item 12: a value that an enum does not have", async () => {
    const json = JSON.stringify({ queue: unique("q"), type: "fifo" });
    const { code } = await connectJson(carillon, "scheduling.v1.QueueService/CreateQueue", json);
    expect(code).toBe("invalid_argument");
  });

  test("item 1: a payload of deep JSON is refused at the door", async () => {
    const payload = Buffer.from("[".repeat(65) + "]".repeat(65)).toString("base64");
    const json = JSON.stringify({ queue, payload });
    expectRefusal(await connectJson(carillon, "scheduling.v1.QueueService/Publish", json), "invalid_argument", FIELD);
  });

  test("item 4: __proto__ in a map is a header like others", async () => {
    const json = `{"queue":"${queue}","payload":"e30=","headers":{"__proto__":"x"}}`;
    expect((await connectJson(carillon, "scheduling.v1.QueueService/Publish", json)).code).not.toBe("internal");
  });
});

describe("what only gRPC can say", () => {
  test("item 6: instants outside the years 1 to 9999", async () => {
    const { task, queue: queues } = grpc;
    for (const seconds of [2n ** 62n, -(2n ** 62n), 253_402_300_800n, -62_135_596_801n]) {
      const instant = { seconds };
      for (const outcome of [
        await outcomeOf(task.scheduleTask({ url: ACME, runAt: instant })),
        await outcomeOf(task.listRuns({ since: instant })),
        await outcomeOf(task.listRuns({ until: instant })),
        await outcomeOf(queues.redriveDeadLetters({ queue, since: instant })),
      ]) {
        expectRefusal(outcome, "invalid_argument", FIELD);
      }
    }
    for (const nanos of [-2_147_483_648, 2_147_483_647]) {
      const { code } = await outcomeOf(task.listRuns({ since: { seconds: 1n, nanos } }));
      expect(code).not.toBe("internal");
    }
  });

  test("item 12: enum values that do not exist", async () => {
    const { queue: queues, cron: crons } = grpc;
    for (const outcome of [
      await outcomeOf(queues.createQueue({ queue: unique("q"), type: 99 as never })),
      await outcomeOf(crons.createCronJob({ cronExpr: FAR_AWAY, url: ACME, overlapPolicy: -1 as never })),
      await outcomeOf(crons.triggerCronJob({ cronId, overlapPolicy: 2_147_483_647 as never })),
      await outcomeOf(queues.listDeadLetters({ queue, scope: 7 as never })),
    ]) {
      expectRefusal(outcome, "invalid_argument", FIELD);
    }
  });

  test("item 11: one message of a batch that is too large refuses all", async () => {
    const big = { payload: Buffer.alloc(1_048_577, 0x31) };
    const outcome = await grpc.call(QueueService.method.publishBatch, {
      queue,
      messages: [{ payload: Buffer.from("1") }, big],
    });
    expectRefusal(outcome, "invalid_argument", "PAYLOAD_TOO_LARGE");
  });
});

test("item 11: a batch with one message too large is a 413 over REST", async () => {
  const messages = [{ payload: 1 }, { payload: "x".repeat(1_048_577) }];
  const answer = await carillon.rest("POST", "/queue/publish_batch", { queue, messages });
  expect(answer.status).toBe(413);
  expectRefusal(restOutcome(answer), "invalid_argument", "PAYLOAD_TOO_LARGE");
});

test("item 17: a dead letter queue that is deleted later is gone", async () => {
  const named = await createQueue(carillon);
  const source = await createQueue(carillon, { dead_letter_queue: named, max_retries: 0 });
  ok(await carillon.rest("DELETE", `/queue/delete/${named}?force=1`));
  const message_id = await publish(carillon, source);
  ok(await carillon.rest("POST", "/queue/consume", { queue: source }));
  expect(ok(await carillon.rest("POST", "/queue/nack", { queue: source, message_id }))).toMatchObject({
    requeued: false,
  });
  expect(ok(await carillon.rest("GET", `/queue/dlq/list/${source}`)).items).toMatchObject([{ message_id }]);
});
