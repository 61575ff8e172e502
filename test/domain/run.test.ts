import { describe, expect, test } from "vitest";
import { type AttemptResult, isTooLate, retentionSeconds, settle } from "../../src/domain/run.ts";

const policy = { retries: 1, baseMs: 5_000, capMs: 3_600_000 };
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

  test("follows a list of waits to its end", () => {
    const list = { waitsMs: [1_000, 2_000] };
    const waits = [1, 2, 3].map((attempt) => settle(attempt, rejected, list, middle));
    expect(waits).toMatchObject([{ waitMs: 1_000 }, { waitMs: 2_000 }, { to: "failed" }]);
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
  { lateMs: 5_000, grace: 5, tooLate: false },
  { lateMs: 6_000, grace: 5, tooLate: true },
  { lateMs: 999, grace: 0, tooLate: false },
  { lateMs: 1e12, grace: null, tooLate: false },
])("a task that is $lateMs ms late with a grace of $grace s is too late: $tooLate", ({ lateMs, grace, tooLate }) => {
  expect(isTooLate(new Date(0), new Date(lateMs), grace)).toBe(tooLate);
});
