import { ScalarType } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { QueueTypeSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import { OverlapPolicySchema } from "../../gen/scheduling/v1/run_pb.js";
import { bytesFromBase64, enumFromText, enumName, numberFromText, Wrong } from "../../src/rest/scalar.ts";

function int32(text: string): unknown {
  const value = numberFromText(ScalarType.INT32, text);
  return value instanceof Wrong ? value.rule : value;
}

describe("a 32 bit integer", () => {
  test.each([
    ["5", 5],
    ["-5", -5],
    ["5.0", 5],
    ["1e2", 100],
    ["120E-1", 12],
    ["0.5e1", 5],
    ["0e999999999999", 0],
    ["2147483647", 2147483647],
    ["-2147483648.000", -2147483648],
  ])("is read from %s", (text, expected) => {
    expect(int32(text)).toBe(expected);
  });

  test("is 0 for -0", () => {
    expect(Object.is(int32("-0"), 0)).toBe(true);
  });

  test.each([
    ["5.5", /whole/],
    ["1e-400", /whole/],
    ["2147483647.0000000000000001", /whole/],
    ["2147483648", /from -2147483648 to 2147483647/],
    ["1e400", /from/],
    ["9007199254740993", /from/],
    ["", /number/],
    ["05", /number/],
    ["+5", /number/],
    ["0x10", /number/],
    [" 5", /number/],
    ["NaN", /number/],
    ["Infinity", /number/],
  ])("is not read from %j", (text, rule) => {
    expect(int32(text)).toMatch(rule);
  });
});

test("a double takes fractions but nothing that is not finite", () => {
  expect(numberFromText(ScalarType.DOUBLE, "0.25")).toBe(0.25);
  expect(numberFromText(ScalarType.DOUBLE, "1e400")).toBeInstanceOf(Wrong);
});

describe("an enum value", () => {
  test("is read by its short or full name in any case, or by its number", () => {
    for (const text of ["fifo", "FIFO", "Queue_Type_Fifo", "QUEUE_TYPE_FIFO", "2"]) {
      expect(enumFromText(QueueTypeSchema, text), text).toBe(2);
    }
  });

  test("is refused with the names that exist", () => {
    for (const text of ["lifo", "", "9", "-1", "2.0", "cancel", "toString", "__proto__"]) {
      expect(enumFromText(OverlapPolicySchema, text), text).toEqual(
        new Wrong("must be one of allow, skip, queue, cancel_previous"),
      );
    }
  });

  test("is written by its short name in lower case", () => {
    expect(enumName(OverlapPolicySchema, 4)).toBe("cancel_previous");
    expect(enumName(OverlapPolicySchema, 99)).toBeUndefined();
  });
});

test("base64 is read in both alphabets, with and without padding, and nothing else", () => {
  for (const text of ["-_8=", "+/8=", "+/8", "-_8"]) expect(bytesFromBase64(text)).toEqual(Uint8Array.of(0xfb, 0xff));
  for (const text of ["a", "a b=", "é===", "====", "aa\n"]) expect(bytesFromBase64(text), text).toBeInstanceOf(Wrong);
});
