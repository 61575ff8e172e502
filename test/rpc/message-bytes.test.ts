import { create, fromBinary, toBinary, toJson } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ConsumeSessionResponseSchema, ConsumeStreamResponseSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import { toMessages } from "../../src/rpc/convert-queue.ts";
import { toAnswer } from "../../src/rpc/message-bytes.ts";
import type { MessageRow } from "../../src/store/messages.ts";

const callOf = (contentType: string) => ({ requestHeader: new Headers({ "content-type": contentType }) });

const date = fc.date({ min: new Date(0), max: new Date("9999-12-31T23:59:59Z"), noInvalidDate: true });
const text = fc.string({ unit: "grapheme", maxLength: 40 });
const count = fc.integer({ min: 0, max: 2 ** 31 - 1 });
const maybe = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: null });
const FIELDS: { readonly [Name in keyof MessageRow]: fc.Arbitrary<MessageRow[Name]> } = {
  message_id: fc.uuid(),
  payload: fc
    .oneof(fc.uint8Array({ maxLength: 300 }), fc.uint8Array({ minLength: 16_384, maxLength: 16_500 }))
    .map((bytes) => Buffer.from(bytes)),
  content_type: text,
  headers: fc.dictionary(text, text, { maxKeys: 3 }),
  group_id: text,
  priority: fc.integer({ min: 0, max: 9 }),
  receive_count: count,
  failure_count: count,
  return_count: count,
  expiry_count: count,
  published_at: date,
  visible_at: date,
  lease_token: maybe(fc.uuid()),
  lease_expires_at: maybe(date),
  error: maybe(text),
  dead_reason: maybe(text),
  dead_lettered_at: maybe(date),
  source_queue: maybe(text),
};
const row: fc.Arbitrary<MessageRow> = fc.record(FIELDS);
const NAMES = Object.keys(FIELDS) as (keyof MessageRow)[];
/** Rows that follow one another, each with some fields of its own and the others' objects. */
const rows = fc.array(fc.tuple(row, fc.subarray(NAMES)), { minLength: 1, maxLength: 6 }).map((all) => {
  let last = all[0]?.[0] as MessageRow;
  return all.map(([row, own]) => {
    last = { ...last, ...Object.fromEntries(own.map((name) => [name, row[name]])) };
    return last;
  });
});

const contentType = fc.constantFrom("application/grpc", "application/grpc-web+proto", "application/connect+proto");

describe.each([ConsumeStreamResponseSchema, ConsumeSessionResponseSchema])("$name", (schema) => {
  test("has in its binary form what it has as messages", () => {
    fc.assert(
      fc.property(fc.oneof(rows, fc.constant([])), contentType, (some, type) => {
        const expected = toBinary(schema, create(schema, { messages: toMessages(some) }));
        const bytes = toBinary(schema, toAnswer(schema, callOf(type), some));
        expect(bytes.length).toBe(expected.length);
        // The order of fields is all that may differ.
        const again = toBinary(schema, fromBinary(schema, bytes));
        expect(Buffer.compare(again, expected)).toBe(0);
      }),
      { numRuns: 200, endOnFailure: true },
    );
  });

  test("has its messages as such where the call takes JSON", () => {
    const [some] = fc.sample(rows, 1) as [MessageRow[]];
    const answer = toAnswer(schema, callOf("application/connect+json"), some);
    expect(toJson(schema, answer)).toEqual(toJson(schema, create(schema, { messages: toMessages(some) })));
  });
});
