import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { CronJobSchema, CronJobState, GetCronJobResponseSchema } from "../../gen/scheduling/v1/cron_service_pb.js";
import {
  ListQueuesResponseSchema,
  PublishBatchResponseSchema,
  QueueMessageSchema,
  QueueRatesSchema,
  QueueSchema,
  QueueType,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { encodeField, encodeMessage } from "../../src/rest/encode.ts";
import { planMessage } from "../../src/rest/message-plan.ts";

function encode<D extends DescMessage>(desc: D, init: MessageInitShape<D>): string {
  return encodeMessage(planMessage(desc), create(desc, init));
}

function payloadOf(payload: string | Uint8Array, contentType = ""): string {
  const json = encode(QueueMessageSchema, { payload: Buffer.from(payload as string), contentType });
  return json.slice(json.indexOf('"payload":') + 10, json.indexOf(',"content_type"'));
}

describe("an answer", () => {
  test("has every field without presence, second spellings, short enum names and times in milliseconds", () => {
    const queue = { queue: "q", type: QueueType.FIFO, createdAt: timestampFromMs(1_900_000_000_123) };
    const text = encode(QueueSchema, queue);
    expect(text).toMatch(
      /^\{"queue":"q","name":"q","type":"fifo","max_retries":0,"message_retention_days":0,"retention_days":0,"visibility_timeout_default":0,"visibility_timeout":0,"enable_priority":false,"paused":false,"created_at":"2030-03-17T17:46:40.123Z"/,
    );
    expect(JSON.parse(text)).toMatchObject({ require_receipt: false, fair: false });
  });

  test("leaves out what is unset and unspecified, and keeps what is set to its zero", () => {
    const job = JSON.parse(encode(CronJobSchema, { maxRuns: 0, onFailureWebhook: "" }));
    expect(job).toMatchObject({
      max_runs: 0,
      on_failure_webhook: "",
      headers: {},
      enabled: false,
      run_count: 0,
      name: "",
    });
    for (const absent of ["state", "overlap_policy", "payload", "next_run_at", "last_run", "created_at"]) {
      expect(job, absent).not.toHaveProperty(absent);
    }
  });

  test("shows empty lists", () => {
    expect(encode(ListQueuesResponseSchema, {})).toBe('{"items":[]}');
    expect(encode(PublishBatchResponseSchema, { messageIds: ["a", 'b"\n'] })).toBe(
      '{"message_ids":["a","b\\"\\n"],"deduplicated":[]}',
    );
  });

  test("is the field alone that response_body names", () => {
    const plan = planMessage(GetCronJobResponseSchema);
    const [field] = plan.fields;
    if (field === undefined) throw new Error("the response has no field");
    const message = create(GetCronJobResponseSchema, { cronJob: { cronId: "cron_1", state: CronJobState.ACTIVE } });
    expect(JSON.parse(encodeField(field, message))).toMatchObject({ cron_id: "cron_1", state: "active" });
    expect(encodeField(field, create(GetCronJobResponseSchema))).toBe("{}");
  });

  test("keeps __proto__ as a name in maps and is well-formed whatever the strings", () => {
    const headers = Object.fromEntries([
      ["__proto__", "a"],
      ["lone\ud800", "\u2028</script>"],
    ]);
    const { headers: read } = JSON.parse(encode(QueueMessageSchema, { headers }));
    expect(Object.entries(read)).toEqual(Object.entries(headers));
  });

  test("has no number that is not finite", () => {
    expect(encode(QueueRatesSchema, { publishedPerSecond: Number.NaN, ackedPerSecond: Number.POSITIVE_INFINITY })).toBe(
      '{"published_per_second":null,"acked_per_second":null}',
    );
  });
});

describe("a payload", () => {
  test.each(['{ "b" : 9007199254740993,\n\t"a":1e400 }', '"x"', '{"k":1,"k":2}', " [1] ", '"\\ud800"'])(
    "of JSON is shown byte for byte: %s",
    (payload) => {
      expect(payloadOf(payload)).toBe(payload);
      expect(payloadOf(payload, "application/problem+json; charset=utf-8")).toBe(payload);
    },
  );

  test("of another type is shown as base64", () => {
    expect(payloadOf("{}", "text/plain")).toBe('"e30="');
    expect(payloadOf(Uint8Array.of(0xfb, 0xff), "application/octet-stream")).toBe('"+/8="');
  });

  test("that is no JSON after all is shown as base64, so that the answer is", () => {
    for (const payload of [
      "",
      "{",
      '{"a":1}}',
      "\ufeff{}",
      "[".repeat(65) + "]".repeat(65),
      Uint8Array.of(0x22, 0xff, 0x22),
    ]) {
      expect(payloadOf(payload)).toBe(JSON.stringify(Buffer.from(payload as string).toString("base64")));
    }
  });
});
