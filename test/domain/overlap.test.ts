import { describe, expect, test } from "vitest";
import { decideOverlap, MAX_QUEUED_RUNS, type OverlapDecision, type OverlapPolicy } from "../../src/domain/overlap.ts";

describe("a new run beside live and waiting ones", () => {
  test.each<[OverlapPolicy, number, number, OverlapDecision]>([
    ["allow", 0, 0, { kind: "start" }],
    ["allow", 50, 0, { kind: "start" }],
    ["skip", 0, 0, { kind: "start" }],
    ["skip", 1, 0, { kind: "skip" }],
    ["queue", 0, 0, { kind: "start" }],
    ["queue", 1, 0, { kind: "enqueue", dropOldest: false }],
    ["queue", 0, 1, { kind: "enqueue", dropOldest: false }],
    ["queue", 1, MAX_QUEUED_RUNS - 1, { kind: "enqueue", dropOldest: false }],
    ["queue", 1, MAX_QUEUED_RUNS, { kind: "enqueue", dropOldest: true }],
    ["cancel_previous", 0, 0, { kind: "start" }],
    ["cancel_previous", 2, 0, { kind: "cancel_previous" }],
  ])("%s with %i live and %i waiting: %o", (policy, liveCount, queuedCount, expected) => {
    expect(decideOverlap(policy, liveCount, queuedCount)).toEqual(expected);
  });
});
