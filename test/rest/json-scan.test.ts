import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isJson, JsonScanner } from "../../src/rest/json-scan.ts";

const DEPTH = 64;

/** What a scanner reads, built; numbers as their text. */
function build(scanner: JsonScanner): unknown {
  switch (scanner.peek()) {
    case "object": {
      const members: [string, unknown][] = [];
      scanner.object((name) => members.push([name, build(scanner)]));
      return Object.fromEntries(members);
    }
    case "array": {
      const items: unknown[] = [];
      scanner.array(() => items.push(build(scanner)));
      return items;
    }
    case "string":
      return scanner.string();
    case "number":
      return Number(scanner.number());
    case "boolean":
      return scanner.boolean();
    default:
      return scanner.null();
  }
}

function read(text: string | Uint8Array): unknown {
  const scanner = new JsonScanner(Buffer.from(text as string), DEPTH);
  const value = build(scanner);
  scanner.end();
  return value;
}

describe("the JSON scanner", () => {
  test("reads every value that JSON.stringify writes", () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 10 }), fc.constantFrom(undefined, 1, "\t"), (value, indent) => {
        const text = JSON.stringify(value, null, indent);
        expect(read(text)).toEqual(JSON.parse(text));
      }),
    );
  });

  test("accepts and refuses what JSON.parse accepts and refuses", () => {
    const piece = fc.constantFrom(
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      '"',
      '"a"',
      "0",
      "-",
      "1.5",
      "e",
      "E+2",
      "01",
      "true",
      "nul",
      "null",
      "\\",
      "\\u00",
      " ",
      "\n",
      "\u0001",
      "é",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        const text = pieces.join("");
        let valid = true;
        try {
          JSON.parse(text);
        } catch {
          valid = false;
        }
        expect(isJson(Buffer.from(text), DEPTH), text).toBe(valid);
      }),
      { numRuns: 2000 },
    );
  });

  test("gives a skipped value byte for byte", () => {
    const scanner = new JsonScanner(
      Buffer.from(' { "a" : [ 1.00, 9007199254740993,\n {"x":1,"x":2} ] , "b":0}'),
      DEPTH,
    );
    const raw: string[] = [];
    scanner.object(() => raw.push(Buffer.from(scanner.skip()).toString()));
    expect(raw).toEqual(['[ 1.00, 9007199254740993,\n {"x":1,"x":2} ]', "0"]);
  });

  test("gives the text of a number", () => {
    for (const text of ["9007199254740993", "1e400", "-0", "10.0", "1E-400"]) {
      expect(new JsonScanner(Buffer.from(text), DEPTH).number()).toBe(text);
    }
  });

  test("reads escapes, also halves of surrogate pairs", () => {
    expect(read('"\\ud83d\\ude00 \\u0041\\n\\/ \\ud800"')).toBe("😀 A\n/ \ud800");
  });

  test("refuses a name that occurs twice, however it is escaped", () => {
    expect(() => read('{"a":1,"\\u0061":2}')).toThrow(/the name "a" occurs twice/);
  });

  test("keeps __proto__ as a name", () => {
    const names: string[] = [];
    const scanner = new JsonScanner(Buffer.from('{"__proto__":{"x":1},"constructor":2}'), DEPTH);
    scanner.object((name) => {
      names.push(name);
      scanner.skip();
    });
    expect(names).toEqual(["__proto__", "constructor"]);
  });

  test.each([
    ["[1,]", /is missing/],
    ['{"a":1,}', /a string is missing/],
    ["{'a':1}", /a string is missing/],
    ["01", /the end is missing/],
    ["+1", /a value is missing/],
    ["NaN", /a value is missing/],
    ["1.", /ends where a digit/],
    ["nulL", /a value is missing/],
    ['"\u0000"', /control character/],
    ['"a', /ends within a string/],
    ['"\\x"', /escape/],
    ['"\\u12g4"', /escape/],
    ["{} {}", /the end is missing/],
    ["", /ends where a value/],
    ["\ufeff{}", /a value is missing at byte 0/],
  ])("refuses %j", (text, message) => {
    expect(() => read(text)).toThrow(message);
  });

  test.each([[[0xff]], [[0x22, 0xc3, 0x28, 0x22]], [[0x22, 0xed, 0xa0, 0x80, 0x22]], [[0x22, 0xc0, 0x80, 0x22]]])(
    "refuses the bytes %j, which are not UTF-8",
    (bytes) => {
      expect(() => read(Uint8Array.from(bytes))).toThrow(/not UTF-8/);
    },
  );

  test("takes 64 levels and refuses 65, read or skipped", () => {
    for (const [open, close] of [
      ["[", "]"],
      ['{"a":', "}"],
    ] as const) {
      const nested = (levels: number): string => `${open.repeat(levels)}1${close.repeat(levels)}`;
      expect(() => read(nested(64))).not.toThrow();
      expect(() => read(nested(65))).toThrow(/deeper than 64 levels/);
      expect(isJson(Buffer.from(nested(64)), DEPTH)).toBe(true);
      expect(isJson(Buffer.from(nested(65)), DEPTH)).toBe(false);
    }
  });

  test("counts levels, not brackets", () => {
    expect(isJson(Buffer.from(`[${"[],{},".repeat(500)}0]`), 2)).toBe(true);
  });

  test("refuses a million levels at once", () => {
    const startedAt = performance.now();
    expect(isJson(Buffer.from("[".repeat(1_000_000)), DEPTH)).toBe(false);
    expect(performance.now() - startedAt).toBeLessThan(500);
  });
});
