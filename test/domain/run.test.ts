import { describe, expect, test } from "vitest";
import { DEFAULT_BACKOFF } from "../../src/domain/backoff.ts";
import { type AttemptResult, retentionSeconds, settle, startBy } from "../../src/domain/run.ts";

const policy = { retries: 1, backoff: DEFAULT_BACKOFF };
const middle = () => 0.5;
const rejected = { kind: "rejected", status: 503, permanent: false } as const;

describe("settle", () => {
  const cases: readonly { name: string; attempt: number; result: AttemptResult; to: string; waitMs?: number }[] = [
    { name: "a 2xx succeeds", attempt: 2, result: { kind: "delivered", status: 204 }, to: "succeeded" },
    { name: "a failure with retries left is tried again", attempt: 1, result: rejected, to: "retrying", waitMs: 5_000 },
    { name: "the last failure fails", attempt: 2, result: rejected, to: "failed" },
    {
      name: "a 410 is not tried again",
      attempt: 1,
      result: { ...rejected, status: 410, permanent: true },
      to: "failed",
    },
    {
      name: "Retry-After makes the wait longer",
      attempt: 1,
      result: { ...rejected, retryAfterMs: 60_000 },
      to: "retrying",
      waitMs: 60_000,
    },
    {
      name: "Retry-After makes the wait no longer than the cap",
      attempt: 1,
      result: { ...rejected, retryAfterMs: 86_400_000 },
      to: "retrying",
      waitMs: 3_600_000,
    },
    {
      name: "an instant that the receiver names takes the wait's place",
      attempt: 1,
      result: { ...rejected, retryAfterMs: 60_000, retryInMs: 1 },
      to: "retrying",
      waitMs: 1,
    },
    {
      name: "an instant that the receiver names gives no attempt more",
      attempt: 2,
      result: { ...rejected, retryInMs: 1 },
      to: "failed",
    },
    {
      name: "what a stopping server cut off is made again at once, though it was the last",
      attempt: 2,
      result: { kind: "failed", error: "cancelled" },
      to: "retrying",
      waitMs: 0,
    },
  ];
  test.each(cases)("$name", ({ attempt, result, to, waitMs }) => {
    const transition = settle(attempt, result, policy, middle);
    expect(transition.to).toBe(to);
    expect(transition.to === "retrying" ? transition.waitMs : undefined).toBe(waitMs);
  });

  test("follows a list of waits, and goes on with the last, to the last retry", () => {
    const list = { retries: 3, backoff: { waitsMs: [1_000, 2_000], jitter: "none" } } as const;
    const waits = [1, 2, 3, 4].map((attempt) => settle(attempt, rejected, list, middle));
    expect(waits).toMatchObject([{ waitMs: 1_000 }, { waitMs: 2_000 }, { waitMs: 2_000 }, { to: "failed" }]);
  });
});

test.each([
  { days: -1, seconds: null },
  { days: 0, seconds: 3_600 },
  { days: 2, seconds: 172_800 },
])("a retention of $days days keeps finished runs for $seconds seconds", ({ days, seconds }) => {
  expect(retentionSeconds(days)).toBe(seconds);
});

test.each([
  { grace: 5, before: 6_000 },
  { grace: 0, before: 1_000 },
  { grace: null, before: null },
])("a task with a grace of $grace s is to start less than $before ms after its time", ({ grace, before }) => {
  expect(startBy(new Date(10), grace)).toEqual(before === null ? null : new Date(10 + before));
});
