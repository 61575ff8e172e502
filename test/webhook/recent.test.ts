import { expect, test } from "vitest";
import { Recent } from "../../src/webhook/recent.ts";

test("what is in use is made once, and of more than are kept the one that was asked for longest ago is made anew", () => {
  const recent = new Recent<string>(2);
  const made: string[] = [];
  const ask = (key: string) =>
    recent.of(key, () => {
      made.push(key);
      return key.toUpperCase();
    });
  expect(["a", "b", "a", "c", "a", "b"].map(ask)).toEqual(["A", "B", "A", "C", "A", "B"]);
  expect(made).toEqual(["a", "b", "c", "b"]);
});

test("what cannot be made is tried again", () => {
  const recent = new Recent<number>(2);
  const fail = () => {
    throw new RangeError("no");
  };
  expect(() => recent.of("a", fail)).toThrow(RangeError);
  expect(recent.of("a", () => 1)).toBe(1);
});
