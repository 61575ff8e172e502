import { describe, expect, test } from "vitest";
import { receiverControl } from "../../src/webhook/receiver-control.ts";

const now = Date.parse("2026-10-21T07:28:00Z");
const asked = (status: number, headers: Record<string, string | string[]>) => {
  const { abort, disable, retryInMs, retryAfterMs } = receiverControl(status, headers, now);
  return { ...(abort && { abort }), ...(disable && { disable }), retryInMs, retryAfterMs };
};

describe("carillon-control", () => {
  test.each<[string | string[], object]>([
    ["abort", { abort: true }],
    ["disable", { disable: true }],
    [" Abort , disable", { abort: true, disable: true }],
    [["abort", "disable"], { abort: true, disable: true }],
    ["retry-at=2026-10-21T07:30:00Z", { retryInMs: 120_000 }],
    ["retry-at=2026-10-21T09:28:30+02:00", { retryInMs: 30_000 }],
    ["retry-at=1792567740", { retryInMs: 60_000 }],
    ["retry-at=2020-01-01T00:00:00Z", { retryInMs: 0 }],
    ["retry-at=2027-10-21T07:28:00Z", { retryInMs: 86_400_000 }],
    ["retry-at=soon", {}],
    ["retry-at=2026-99-21T07:30:00Z", {}],
    ["retry-at=", {}],
    ["abortion, disabled, nonsense", {}],
    ["", {}],
  ])("%j asks for %j", (header, expected) => {
    expect(asked(500, { "carillon-control": header })).toEqual(expected);
  });
});

test.each([
  ["abort-message", { abort: true }],
  ["disable", { disable: true }],
  ["abort", {}],
])("webhook-delivery: %s asks for %j", (header, expected) => {
  expect(asked(500, { "webhook-delivery": header })).toEqual(expected);
});

test("410 asks for no more requests, with whatever headers", () => {
  expect(asked(410, {})).toEqual({ disable: true });
});

describe("a wait", () => {
  test.each<[number, Record<string, string>, number | undefined]>([
    [500, { "retry-after": "7" }, 7_000],
    [429, { "retry-after": "7", "ratelimit-reset": "60" }, 7_000],
    [429, { "retry-after": "soon", "ratelimit-reset": "60" }, 60_000],
    [429, { "ratelimit-reset": "1.5" }, 1_500],
    [503, { "x-ratelimit-reset": "30" }, 30_000],
    [429, { "x-ratelimit-reset": "1792567740" }, 60_000],
    [429, { "x-ratelimit-reset": "1792567740.5" }, 60_500],
    [429, { "x-ratelimit-reset": "Wed, 21 Oct 2026 07:28:30 GMT" }, 30_000],
    [429, { "x-ratelimit-reset": "999999999" }, 86_400_000],
    [429, { "x-ratelimit-reset": "tomorrow" }, undefined],
    [500, { "ratelimit-reset": "60" }, undefined],
    [200, {}, undefined],
  ])("of a %i with %j is %s ms", (status, headers, expected) => {
    expect(asked(status, headers).retryAfterMs).toBe(expected);
  });
});
