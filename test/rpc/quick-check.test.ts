import { create, type DescField, type DescMessage, type Message } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AckBatchRequestSchema, PublishBatchRequestSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import { quickCheck } from "../../src/rpc/interceptors/quick-check.ts";
import { unstorableText } from "../../src/rpc/interceptors/unstorable-text.ts";
import { matches } from "../../src/rpc/interceptors/validate.ts";
import { SERVICES } from "../../src/rpc/routes.ts";

const validator = createValidator({ regexMatch: matches });

/** Text around what the contract's rules are about. */
const text = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom("", "a", "orders", "https://a.example/", "text/plain") },
  fc.constantFrom(".", "..", "a b", "\0", "a\0", "\ud800", "\u0007", "é", "😀", "A.b_c-1"),
  fc
    .tuple(fc.constantFrom("x", "😀", "é", "\0"), fc.constantFrom(63, 64, 65, 127, 128, 129, 257))
    .map(([c, n]) => c.repeat(n)),
);
const whole = fc.constantFrom(0, 1, -1, 2, 9, 10, 11, 30, 3_600, 31_536_000, 315_360_001, 2 ** 31 - 1, -(2 ** 31));

/** Values of a field, as an initialiser has them; undefined leaves it out. */
function valuesOf(field: DescField, depth: number): fc.Arbitrary<unknown> {
  const one = ((): fc.Arbitrary<unknown> => {
    if (field.message !== undefined) return depth > 2 ? fc.constant(undefined) : initOf(field.message, depth + 1);
    if (field.enum !== undefined) return fc.constantFrom(0, 1, 2, 99);
    switch (field.scalar) {
      case 8:
        return fc.boolean();
      case 9:
        return text;
      case 12:
        return fc.constantFrom(new Uint8Array(), Buffer.from("{}"));
      case 3:
      case 4:
        return whole.map((value) => BigInt(Math.abs(value)));
      default:
        return whole.map((value) => (field.scalar === 13 ? Math.abs(value) : value));
    }
  })();
  if (field.fieldKind === "list")
    return fc.array(
      one.filter((value) => value !== undefined),
      { maxLength: 3 },
    );
  if (field.fieldKind === "map")
    return field.mapKind === "scalar" ? fc.dictionary(text, text, { maxKeys: 2 }) : fc.constant({});
  return fc.option(one, { nil: undefined, freq: 2 });
}

function initOf(schema: DescMessage, depth = 0): fc.Arbitrary<Record<string, unknown>> {
  const fields = schema.fields.filter(({ oneof }) => oneof === undefined);
  return fc
    .record(Object.fromEntries(fields.map((field) => [field.localName, valuesOf(field, depth)])))
    .map((init) => Object.fromEntries(Object.entries(init).filter(([, value]) => value !== undefined)));
}

const inputs = SERVICES.flatMap(({ methods }) => methods.map(({ input }) => input));

describe("what passes quickly is right by the rules of the contract and can be stored:", () => {
  test.each(inputs.map((input) => [input.name, input] as const))("%s", (_, schema) => {
    const check = quickCheck(schema, matches);
    fc.assert(
      fc.property(initOf(schema), (init) => {
        const message: Message = create(schema, init);
        if (!check(message)) return;
        expect(validator.validate(schema, message).kind).toBe("valid");
        expect(unstorableText(schema, message)).toBeUndefined();
      }),
      { numRuns: 200, endOnFailure: true },
    );
  });
});

describe("quickly passes", () => {
  test("a batch of messages", () => {
    const messages = [{ payload: Buffer.from("1") }, { payload: Buffer.from("2"), headers: { a: "b" }, groupId: "g" }];
    const request = create(PublishBatchRequestSchema, { queue: "orders", messages });
    expect(quickCheck(PublishBatchRequestSchema, matches)(request)).toBe(true);
  });

  test("acks with receipts", () => {
    const items = [{ messageId: "msg_1", receipt: "00000000-0000-0000-0000-000000000001" }];
    const request = create(AckBatchRequestSchema, { queue: "orders", items });
    expect(quickCheck(AckBatchRequestSchema, matches)(request)).toBe(true);
  });
});
