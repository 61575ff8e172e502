import { describe, expect, test } from "vitest";
import {
  backoffMs,
  DEFAULT_RETRY_POLICY,
  honourRetryAfter,
  scheduleMs,
  WEBHOOK_SCHEDULE_MS,
} from "../../src/domain/backoff.ts";

const middle = () => 0.5;
const lowest = () => 0;
const highest = () => 1 - Number.EPSILON;

describe("backoff", () => {
  test("doubles from five seconds", () => {
    const policy = { ...DEFAULT_RETRY_POLICY, retries: 5 };
    expect([1, 2, 3, 4, 5].map((attempt) => backoffMs(policy, attempt, middle))).toEqual([
      5_000, 10_000, 20_000, 40_000, 80_000,
    ]);
  });

  test("moves each wait by up to a fifth either way", () => {
    expect(backoffMs(DEFAULT_RETRY_POLICY, 1, lowest)).toBe(4_000);
    expect(backoffMs(DEFAULT_RETRY_POLICY, 1, highest)).toBe(6_000);
  });

  test("never passes the cap and stays spread at it, however many attempts", () => {
    const policy = { retries: 5_000, baseMs: 5_000, capMs: 3_600_000 };
    for (const attempt of [11, 60, 1_100, 5_000]) {
      expect(backoffMs(policy, attempt, highest)).toBe(3_600_000);
      expect(backoffMs(policy, attempt, lowest)).toBe(2_400_000);
    }
    expect(backoffMs({ ...policy, baseMs: 0 }, 5_000, highest)).toBe(0);
  });

  test("ends after the last retry", () => {
    expect(backoffMs(DEFAULT_RETRY_POLICY, 3, middle)).toBe(20_000);
    expect(backoffMs(DEFAULT_RETRY_POLICY, 4, middle)).toBeUndefined();
    expect(backoffMs({ ...DEFAULT_RETRY_POLICY, retries: 0 }, 1, middle)).toBeUndefined();
  });

  test("follows the webhook schedule and ends with it", () => {
    const waits = [1, 2, 3, 4, 5, 6, 7, 8].map((attempt) => scheduleMs(WEBHOOK_SCHEDULE_MS, attempt, middle));
    expect(waits).toEqual([5_000, 300_000, 1_800_000, 7_200_000, 18_000_000, 36_000_000, 36_000_000, undefined]);
    expect(scheduleMs(WEBHOOK_SCHEDULE_MS, 2, lowest)).toBe(240_000);
    expect(scheduleMs(WEBHOOK_SCHEDULE_MS, 2, highest)).toBe(360_000);
  });

  test("waits as long as the receiver asks, within the cap, and never shorter than its own wait", () => {
    expect(honourRetryAfter(5_000, 60_000, 3_600_000)).toBe(60_000);
    expect(honourRetryAfter(5_000, 1_000, 3_600_000)).toBe(5_000);
    expect(honourRetryAfter(5_000, 86_400_000, 3_600_000)).toBe(3_600_000);
    expect(honourRetryAfter(36_000_000, 86_400_000, 3_600_000)).toBe(36_000_000);
    expect(honourRetryAfter(5_000, undefined, 3_600_000)).toBe(5_000);
    expect(honourRetryAfter(undefined, 60_000, 3_600_000)).toBeUndefined();
  });
});
