import { expect, test } from "vitest";
import { retryAfterMs } from "../../src/webhook/retry-after.ts";

const now = Date.parse("Wed, 21 Oct 2026 07:28:00 GMT");

test.each([
  ["0", 0],
  ["120", 120_000],
  [" 7 ", 7_000],
  ["86401", 86_400_000],
  ["9".repeat(400), 86_400_000],
  ["Wed, 21 Oct 2026 07:28:30 GMT", 30_000],
  ["Wed, 21 Oct 2026 07:00:00 GMT", 0],
  ["Thu, 21 Oct 2027 07:28:00 GMT", 86_400_000],
])("Retry-After %s asks for %i ms", (value, expected) => {
  expect(retryAfterMs(value, now)).toBe(expected);
});

test.each([
  "",
  "-1",
  "1.5",
  "1e3",
  "0x10",
  "soon",
  "2026-10-21",
  "Wed, 21 Oct 2026 07:28:30",
  "Wed, 99 Oct 2026 07:28:30 GMT",
  "120, 5",
])("Retry-After %j asks for nothing", (value) => {
  expect(retryAfterMs(value, now)).toBeUndefined();
});
