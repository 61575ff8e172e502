import { describe, expect, test } from "vitest";
import {
  backoffMs,
  DEFAULT_BACKOFF,
  honourRetryAfter,
  longestWaitMs,
  WEBHOOK_POLICY,
} from "../../src/domain/backoff.ts";

const middle = () => 0.5;
const lowest = () => 0;
const highest = () => 1 - Number.EPSILON;

describe("the default", () => {
  test("doubles from five seconds", () => {
    expect([1, 2, 3, 4, 5].map((attempt) => backoffMs(DEFAULT_BACKOFF, attempt, middle))).toEqual([
      5_000, 10_000, 20_000, 40_000, 80_000,
    ]);
  });

  test("moves each wait by up to a fifth either way", () => {
    expect(backoffMs(DEFAULT_BACKOFF, 1, lowest)).toBe(4_000);
    expect(backoffMs(DEFAULT_BACKOFF, 1, highest)).toBe(6_000);
  });

  test("never passes the cap and stays spread at it, however many attempts", () => {
    for (const attempt of [11, 60, 1_100, 5_000]) {
      expect(backoffMs(DEFAULT_BACKOFF, attempt, highest)).toBe(3_600_000);
      expect(backoffMs(DEFAULT_BACKOFF, attempt, lowest)).toBe(2_400_000);
    }
  });
});

describe("a formula", () => {
  const backoff = { baseMs: 1_000, factor: 3, capMs: 20_000, jitter: "none" } as const;

  test("multiplies by its factor up to its cap", () => {
    expect([1, 2, 3, 4].map((attempt) => backoffMs(backoff, attempt, highest))).toEqual([1_000, 3_000, 9_000, 20_000]);
  });

  test("waits anything from nothing to the wait with full jitter", () => {
    const full = { ...backoff, jitter: "full" } as const;
    expect([lowest, middle, highest].map((random) => backoffMs(full, 2, random))).toEqual([0, 1_500, 3_000]);
    expect(backoffMs(full, 9, highest)).toBe(20_000);
  });

  test("is a number for every attempt and base", () => {
    expect(backoffMs({ ...backoff, baseMs: 0 }, 5_000, highest)).toBe(0);
    expect(backoffMs({ ...backoff, factor: 10 }, 5_000, highest)).toBe(20_000);
  });
});

describe("a list", () => {
  test("goes on with its last wait", () => {
    const waits = [1, 2, 3].map((attempt) => backoffMs({ waitsMs: [1_000, 2_000], jitter: "none" }, attempt, highest));
    expect(waits).toEqual([1_000, 2_000, 2_000]);
  });

  test("of webhooks has the waits that are documented, a fifth more or less", () => {
    const { backoff } = WEBHOOK_POLICY;
    const waits = [1, 2, 3, 4, 5, 6, 7].map((attempt) => backoffMs(backoff, attempt, middle));
    expect(waits).toEqual([5_000, 300_000, 1_800_000, 7_200_000, 18_000_000, 36_000_000, 36_000_000]);
    expect(backoffMs(backoff, 2, lowest)).toBe(240_000);
    expect(backoffMs(backoff, 2, highest)).toBe(360_000);
  });
});

test("a receiver's own wish is followed within the cap, and never makes a wait shorter", () => {
  expect(honourRetryAfter(5_000, 60_000, 3_600_000)).toBe(60_000);
  expect(honourRetryAfter(5_000, 1_000, 3_600_000)).toBe(5_000);
  expect(honourRetryAfter(5_000, 86_400_000, 3_600_000)).toBe(3_600_000);
  expect(honourRetryAfter(36_000_000, 86_400_000, 3_600_000)).toBe(36_000_000);
  expect(honourRetryAfter(5_000, undefined, 3_600_000)).toBe(5_000);
});

test("the longest wait is the cap, or the longest of the list", () => {
  expect(longestWaitMs(DEFAULT_BACKOFF)).toBe(3_600_000);
  expect(longestWaitMs({ waitsMs: [1, 3, 2], jitter: "none" })).toBe(3);
});
