import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import {
  CreateCronJobRequestSchema,
  TriggerCronJobRequestSchema,
  UpdateCronJobRequestSchema,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import {
  ConsumeRequestSchema,
  CreateQueueRequestSchema,
  DeleteQueueRequestSchema,
  PublishBatchRequestSchema,
  PublishRequestSchema,
  PushSubscribeRequestSchema,
  UpdateQueueRequestSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { OverlapPolicy, RunState } from "../../gen/scheduling/v1/run_pb.js";
import { ListRunsRequestSchema, ScheduleTaskRequestSchema } from "../../gen/scheduling/v1/task_service_pb.js";
import { Refusal } from "../../src/errors.ts";
import { decodeRequest } from "../../src/rest/decode.ts";
import type { Strictness } from "../../src/rest/findings.ts";
import { planMessage } from "../../src/rest/message-plan.ts";

interface Sent {
  readonly body?: string | Uint8Array;
  readonly query?: string;
  readonly path?: Record<string, string>;
  readonly strict?: Partial<Strictness>;
}

function decode<D extends DescMessage>(desc: D, { body = "", query = "", path = {}, strict = {} }: Sent) {
  const plan = planMessage(desc);
  const bound = plan.fields.filter(({ name }) => name in path).map((field) => [field, path[field.name] ?? ""] as const);
  const { message, warnings } = decodeRequest({
    plan,
    body: Buffer.from(body as string),
    query: new URLSearchParams(query),
    path: new Map(bound),
    maxDepth: 64,
    strict: { pathBody: false, unknownFields: false, ...strict },
  });
  return { message: message as MessageShape<D>, warnings };
}

function read<D extends DescMessage>(desc: D, sent: Sent): MessageShape<D> {
  const { message, warnings } = decode(desc, sent);
  expect(warnings).toEqual([]);
  return message;
}

function refused(desc: DescMessage, sent: Sent): Refusal {
  try {
    decode(desc, sent);
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error(`not refused: ${JSON.stringify(sent)}`);
}

function violations(desc: DescMessage, sent: Sent): Record<string, string> {
  const { violations: broken } = refused(desc, sent);
  return Object.fromEntries(broken.map(({ field, description }) => [field, description]));
}

function text(bytes: Uint8Array | undefined): string | undefined {
  return bytes === undefined ? undefined : Buffer.from(bytes).toString();
}

describe("spellings", () => {
  test("the contract's, the second ones and the camelCase of each name the same field", () => {
    for (const name of [
      "visibility_timeout_default",
      "visibilityTimeoutDefault",
      "visibility_timeout",
      "visibilityTimeout",
    ]) {
      expect(read(UpdateQueueRequestSchema, { body: `{"${name}":7}` }).visibilityTimeoutDefault).toBe(7);
    }
  });

  test("count in nested messages and in the query", () => {
    const batch = read(PublishBatchRequestSchema, {
      body: '{"name":"q","messages":[{"payload":1,"orderingKey":"a"},{"payload":2,"message_group_id":"b"}]}',
    });
    expect(batch.queue).toBe("q");
    expect(batch.messages.map(({ groupId }) => groupId)).toEqual(["a", "b"]);
    expect(read(ListRunsRequestSchema, { query: "jobId=cron_1" }).cronId).toBe("cron_1");
  });

  test("may come together with equal values", () => {
    const body = '{"cron_expr":"* * * * *","schedule":"* * * * *","retry":5,"retries":"5"}';
    expect(read(CreateCronJobRequestSchema, { body }).retries).toBe(5);
  });

  test.each([
    [{ body: '{"url":"https://a","task_url":"https://b"}' }, { first: "url", second: "task_url" }],
    [{ body: '{"retry":1,"retries":null}' }, { first: "retry", second: "retries" }],
    [
      { body: '{"retry":1}', query: "retries=2" },
      { first: "retry", second: "query.retries" },
    ],
    [{ query: "retry=1&retry=2" }, { first: "query.retry", second: "query.retry" }],
  ])("with different values are refused, naming both: %j", (sent, metadata) => {
    const refusal = refused(CreateCronJobRequestSchema, sent);
    expect(refusal.reason).toBe("FIELDS_CONFLICT");
    expect(refusal.metadata).toEqual(metadata);
  });

  test("of nested fields are named with their place", () => {
    const body = '{"messages":[{},{"group_id":"a","ordering_key":"b"}]}';
    expect(refused(PublishBatchRequestSchema, { body }).metadata).toEqual({
      first: "messages[1].group_id",
      second: "messages[1].ordering_key",
    });
  });
});

describe("the path", () => {
  test("wins over the body, with a warning where they differ", () => {
    const sent = { path: { cron_id: "ID" }, body: '{"job_id":"cron_01HX...","overlap_policy":"allow"}' };
    const { message, warnings } = decode(TriggerCronJobRequestSchema, sent);
    expect(message.cronId).toBe("ID");
    expect(message.overlapPolicy).toBe(OverlapPolicy.ALLOW);
    expect(warnings).toEqual(["body.job_id ignored, path names the cron_id"]);
  });

  test.each(['{"queue":"q"}', '{"name":"q"}', '{"queue":null}', "{}", ""])("agrees with the body %s", (body) => {
    expect(read(UpdateQueueRequestSchema, { path: { queue: "q" }, body }).queue).toBe("q");
  });

  test("wins over a value of the wrong kind, and over the query", () => {
    const { warnings } = decode(UpdateQueueRequestSchema, {
      path: { queue: "q" },
      body: '{"queue":[1]}',
      query: "name=x",
    });
    expect(warnings).toEqual(["body.queue ignored, path names the queue", "query.name ignored, path names the queue"]);
  });

  test("refuses a body that differs where the project is strict", () => {
    const refusal = refused(UpdateQueueRequestSchema, {
      path: { queue: "q" },
      body: '{"name":"x"}',
      strict: { pathBody: true },
    });
    expect(refusal.reason).toBe("PATH_BODY_MISMATCH");
    expect(refusal.metadata).toEqual({ field: "body.name" });
  });
});

describe("unknown fields", () => {
  test("are ignored with one warning that names ten of them at most, fit for a header", () => {
    const names = Array.from({ length: 12 }, (_, i) => `"x${i}":{"deep":[]}`).join(",");
    expect(decode(ConsumeRequestSchema, { body: `{${names}}`, query: "y=1" }).warnings).toEqual([
      "unknown fields x0, x1, x2, x3, x4, x5, x6, x7, x8, x9 and 3 more ignored",
    ]);
    const odd = `{"a\\r\\nSet-Cookie: x":1,"é\\ud800":2,"${"l".repeat(1000)}":3}`;
    expect(decode(ConsumeRequestSchema, { body: odd }).warnings).toEqual([
      `unknown fields a??Set-Cookie: x, ??, ${"l".repeat(64)}... ignored`,
    ]);
  });

  test("are named with their place", () => {
    expect(decode(PublishBatchRequestSchema, { body: '{"messages":[{"nope":1}]}' }).warnings).toEqual([
      "unknown field messages[0].nope ignored",
    ]);
  });

  test("are refused where the project is strict", () => {
    for (const sent of [{ body: '{"nope":1}' }, { query: "nope=1" }]) {
      expect(refused(ConsumeRequestSchema, { ...sent, strict: { unknownFields: true } }).reason).toBe("UNKNOWN_FIELD");
    }
  });

  test("called __proto__ or constructor are unknown like any others", () => {
    const { message, warnings } = decode(ConsumeRequestSchema, { body: '{"__proto__":{"queue":"x"},"constructor":1}' });
    expect(message.queue).toBe("");
    expect(warnings).toEqual(["unknown fields __proto__, constructor ignored"]);
  });
});

describe("a payload", () => {
  test.each(['{ "b" : 9007199254740993,\n "a":1.0e400 }', "[1,  2]", '"text\\ud800"', "0", "false", '{"k":1,"k":2}'])(
    "of JSON is kept byte for byte: %s",
    (payload) => {
      expect(text(read(PublishRequestSchema, { body: `{"queue":"q", "payload" : ${payload} }` }).payload)).toBe(
        payload,
      );
    },
  );

  test("is JSON for every +json type, also when the type comes after it", () => {
    for (const type of ["", "application/json; charset=utf-8", "Application/CloudEvents+JSON", "application/json"]) {
      const body = `{"payload":"YQ==","content_type":"${type}"}`;
      expect(text(read(PublishRequestSchema, { body }).payload)).toBe('"YQ=="');
    }
  });

  test("of another type is base64, wherever the type is given", () => {
    for (const sent of [
      { body: '{"payload":"YQ==","contentType":"text/plain"}' },
      { body: '{"content_type":"text/plain","payload":"YQ"}' },
      { body: '{"payload":"YQ=="}', query: "content_type=text/plain" },
    ]) {
      expect(text(read(PublishRequestSchema, sent).payload)).toBe("a");
    }
    for (const payload of ["{}", "1", '"*"']) {
      const body = `{"messages":[{"payload":${payload},"content_type":"text/plain"}]}`;
      expect(violations(PublishBatchRequestSchema, { body })).toEqual({
        "messages[0].payload": "must be a base64 string, as its content type is not JSON",
      });
    }
  });

  test("of null is absent", () => {
    expect(read(PublishRequestSchema, { body: '{"payload":null}' }).payload).toBeUndefined();
  });

  test("counts its levels with those of the body", () => {
    const nested = (levels: number): string => `{"payload":${"[".repeat(levels)}${"]".repeat(levels)}}`;
    expect(read(PublishRequestSchema, { body: nested(63) }).payload).toHaveLength(126);
    expect(refused(PublishRequestSchema, { body: nested(64) }).message).toContain("deeper than 64 levels");
  });

  test("is not taken from the query", () => {
    expect(violations(PublishRequestSchema, { query: "payload=1" })).toEqual({ payload: "must be given in the body" });
  });
});

describe("an update mask", () => {
  test("has the contract's names of the fields in the body, but not the path's, the mask and the idempotency key", () => {
    const body = '{"idempotency_key":"k","retry":1,"task":"https://a","headers":{},"id":"cron_1","nope":1}';
    const { message } = decode(UpdateCronJobRequestSchema, { path: { cron_id: "cron_1" }, body });
    expect(message.updateMask?.paths).toEqual(["url", "retries", "headers"]);
  });

  test("names what null clears", () => {
    const message = read(UpdateCronJobRequestSchema, { body: '{"max_runs":null,"payload":null,"overlapPolicy":null}' });
    expect(message.updateMask?.paths).toEqual(["payload", "overlap_policy", "max_runs"]);
    expect([message.maxRuns, message.payload, message.overlapPolicy]).toEqual([undefined, undefined, undefined]);
  });

  test.each(["", "{}", '{"idempotency_key":"k"}', '{"update_mask":null}'])("is empty for the body %j", (body) => {
    expect(read(UpdateQueueRequestSchema, { body }).updateMask?.paths).toEqual([]);
  });

  test("of the caller stays, in the contract's names", () => {
    const message = read(UpdateQueueRequestSchema, {
      body: '{"updateMask":"maxRetries, retention_days","paused":true}',
    });
    expect(message.updateMask?.paths).toEqual(["max_retries", "message_retention_days"]);
    expect(Object.keys(violations(UpdateQueueRequestSchema, { body: '{"update_mask":"nope"}' }))).toEqual([
      "update_mask",
    ]);
    expect(Object.keys(violations(UpdateQueueRequestSchema, { body: '{"update_mask":["paused"]}' }))).toEqual([
      "update_mask",
    ]);
  });

  test("is filled for null only where the request has one", () => {
    expect(read(ConsumeRequestSchema, { body: '{"queue":"q","max_messages":null}' }).maxMessages).toBeUndefined();
  });
});

describe("values", () => {
  test("of every kind are read from JSON", () => {
    const body = `{"queue":"orders","delay_seconds":"10","priority":5.0,"headers":{"__proto__":"a","x":"😀"}}`;
    const message = read(PublishRequestSchema, { body });
    expect(message).toMatchObject({ queue: "orders", delaySeconds: 10, priority: 5 });
    expect(Object.entries(message.headers)).toEqual([
      ["__proto__", "a"],
      ["x", "😀"],
    ]);
    expect(read(CreateQueueRequestSchema, { body: '{"type":"FIFO","enable_priority":"true"}' })).toMatchObject({
      type: 2,
      enablePriority: true,
    });
    const task = read(ScheduleTaskRequestSchema, { body: '{"run_at":1900000000000}' });
    expect(task.runAt && timestampDate(task.runAt).toISOString()).toBe("2030-03-17T17:46:40.000Z");
  });

  test("that break a rule are all named in one refusal, in the caller's spelling", () => {
    const body = `{"queue":5,"delaySeconds":1.5,"priority":[1],"headers":{"a":1,"b":"x"},"group_id":"\\ud800","ordering_key":"\\ud800","content_type":true,"nope":1}`;
    expect(violations(PublishRequestSchema, { body })).toEqual({
      queue: "must be a string",
      delaySeconds: "must be a whole number",
      priority: "must be a number",
      "headers.a": "must be a string",
      group_id: "must not hold half of a surrogate pair",
      ordering_key: "must not hold half of a surrogate pair",
      content_type: "must be a string",
    });
  });

  test("that break a rule are found in lists", () => {
    const body = '{"messages":[{"priority":1},null,"x",{"priority":1e400}]}';
    expect(violations(PublishBatchRequestSchema, { body })).toEqual({
      "messages[1]": "must be an object",
      "messages[2]": "must be an object",
      "messages[3].priority": "must be from -2147483648 to 2147483647",
    });
    expect(violations(PublishBatchRequestSchema, { body: '{"messages":{}}' })).toEqual({
      messages: "must be an array",
    });
  });

  test.each([
    [CreateQueueRequestSchema, '{"type":"lifo"}', { type: "must be one of standard, fifo" }],
    [CreateQueueRequestSchema, '{"type":true}', { type: "must be a string" }],
    [CreateQueueRequestSchema, '{"enable_priority":1}', { enable_priority: "must be true or false" }],
    [CreateQueueRequestSchema, '{"enable_priority":"yes"}', { enable_priority: "must be true or false" }],
    [CreateQueueRequestSchema, '{"max_retries":true}', { max_retries: "must be a number" }],
    [CreateQueueRequestSchema, '{"max_retries":""}', { max_retries: "must be a number" }],
    [PublishRequestSchema, '{"headers":[]}', { headers: "must be an object of strings" }],
    [PublishRequestSchema, '{"headers":{"a":null}}', { "headers.a": "must be a string" }],
    [ScheduleTaskRequestSchema, '{"run_at":{}}', { run_at: "must be a time" }],
    [ScheduleTaskRequestSchema, '{"run_at":1e400}', { run_at: "must lie in the years 1 to 9999" }],
  ])("%s refuses %s", (desc, body, expected) => {
    expect(violations(desc, { body })).toEqual(expected);
  });

  test("report fifty violations at most", () => {
    const body = `{"messages":[${"1,".repeat(500)}1]}`;
    expect(refused(PublishBatchRequestSchema, { body }).violations).toHaveLength(50);
  });
});

describe("the body", () => {
  test.each(["", "  \n", "{}", "\ufeff{}", "\ufeff"])("%j is an empty request", (body) => {
    expect(read(ConsumeRequestSchema, { body }).queue).toBe("");
  });

  test.each([
    "null",
    "[]",
    '"x"',
    "1",
    "{",
    '{"queue":"a","queue":"a"}',
    '{"headers":{"a":"1","a":"2"}}',
    "a=b",
    "{}x",
  ])("%s is refused", (body) => {
    expect(refused(PublishRequestSchema, { body }).reason).toBe("BODY_INVALID");
  });

  test("that is broken is refused as that, whatever else is wrong before", () => {
    expect(refused(ConsumeRequestSchema, { body: '{"queue":5,"x":}' }).reason).toBe("BODY_INVALID");
  });
});

describe("the query", () => {
  test("is read by the descriptor", () => {
    const query = "limit=5&state=Failed&kind=RUN_KIND_PUSH&since=2026-01-01T00:00:00+08:00&until=1900000000&cursor=";
    const message = read(ListRunsRequestSchema, { query });
    expect(message).toMatchObject({ limit: 5, state: RunState.FAILED, kind: 3, cursor: "" });
    expect(message.since && timestampDate(message.since).toISOString()).toBe("2025-12-31T16:00:00.000Z");
    expect(message.until && timestampDate(message.until).toISOString()).toBe("2030-03-17T17:46:40.000Z");
  });

  test.each([
    ["true", true],
    ["1", true],
    ["false", false],
    ["0", false],
    ["", false],
  ])("reads the boolean %j", (given, expected) => {
    expect(read(DeleteQueueRequestSchema, { query: `force=${given}` }).force).toBe(expected);
  });

  test("gives what the body does not", () => {
    const message = read(DeleteQueueRequestSchema, {
      body: '{"idempotency_key":"k"}',
      query: "force=1&idempotency_key=k",
    });
    expect(message).toMatchObject({ force: true, idempotencyKey: "k" });
  });

  test("names every broken rule", () => {
    expect(violations(ListRunsRequestSchema, { query: "limit=ten&state=nope&since=x" })).toMatchObject({
      limit: "must be a number",
      state: expect.stringContaining("must be one of pending, running"),
      since: expect.stringContaining("RFC 3339"),
    });
  });

  test("reads names of nested fields with dots, and warns about those that lead nowhere", () => {
    const { warnings } = decode(PushSubscribeRequestSchema, { query: "url.x=1&headers.a=b&a.b.c=1&.=1&__proto__.x=1" });
    expect(warnings).toEqual([
      "unknown fields query.url.x, query.headers.a, query.a.b.c, query.., query.__proto__.x ignored",
    ]);
  });
});
