import { describe, expect, test } from "vitest";
import type { EndpointControl } from "../../src/domain/admission.ts";
import { CLOSED, DISABLED } from "../../src/domain/breaker.ts";
import { type HealthContext, type HealthNotes, judge } from "../../src/domain/endpoint-health.ts";

const CONTROL: EndpointControl = {
  breaker: CLOSED,
  maxConcurrency: null,
  maxRate: null,
  pace: null,
  pausedUntilMs: null,
  nextSlotMs: 0,
};
const NOTES: HealthNotes = {
  succeeded: 0,
  failed: 0,
  throttled: 0,
  askedWaitMs: undefined,
  probes: [],
  gone: undefined,
  spentPercent: 0,
  failure: undefined,
};
const CONTEXT: HealthContext = {
  window: { succeeded: 0, failed: 0 },
  recentRate: 0,
  backlog: 0,
  toldStage: 0,
  nowMs: 1_000_000,
};
const FAILED: HealthNotes = { ...NOTES, failed: 1, failure: "HTTP 500" };

describe("operators are told of spent attempts", () => {
  /** The stages that are told of while failures spend so much, one after the other; 0 for a success. */
  function told(percents: readonly number[]): number[] {
    let toldStage = 0;
    return percents.flatMap((spentPercent) => {
      const notes = spentPercent === 0 ? { ...NOTES, succeeded: 1 } : { ...FAILED, spentPercent };
      const change = judge(CONTROL, notes, { ...CONTEXT, toldStage });
      ({ toldStage } = change);
      return change.events.includes("endpoint.attempts_spent") ? [toldStage] : [];
    });
  }

  test("at 50, 70, 90 and 100 percent, once each", () => {
    expect(told([10, 20, 49, 50, 60, 69, 70, 80, 90, 99, 100, 100, 50])).toEqual([50, 70, 90, 100]);
  });

  test("by the highest stage alone where a failure passes several", () => {
    expect(told([75])).toEqual([70]);
    expect(told([25, 50, 75, 100])).toEqual([50, 70, 100]);
  });

  test("anew when a request has succeeded in between", () => {
    expect(told([50, 100, 0, 50, 100])).toEqual([50, 100, 50, 100]);
  });
});

describe("a breaker", () => {
  const open = { ...CLOSED, state: "half_open", nextProbeAtMs: 0, probesSucceeded: 2 } as const;

  test("that opens says how many failed and how the newest did", () => {
    const change = judge(CONTROL, FAILED, { ...CONTEXT, window: { succeeded: 3, failed: 7 } });
    expect(change).toMatchObject({
      breaker: { state: "open", nextProbeAtMs: CONTEXT.nowMs + 30_000 },
      reason: "7 of 10 requests in 5 minutes failed; the newest: HTTP 500",
      events: ["endpoint.breaker_opened"],
    });
  });

  test("that is closed by a probe is not opened again by the failures before, and lets the backlog out by a ramp", () => {
    const control = { ...CONTROL, breaker: open, pausedUntilMs: CONTEXT.nowMs + 60_000 };
    const notes = { ...NOTES, succeeded: 1, probes: [true] };
    const change = judge(control, notes, { ...CONTEXT, window: { succeeded: 3, failed: 97 }, backlog: 7_500 });
    expect(change).toMatchObject({
      breaker: { state: "closed" },
      pace: { startRate: 100, sinceMs: CONTEXT.nowMs },
      pausedUntilMs: null,
      events: ["endpoint.breaker_closed"],
    });
  });

  test("whose probes fail tells of nothing more than that it opened once", () => {
    const change = judge(
      { ...CONTROL, breaker: { ...open, probesSucceeded: 0 } },
      { ...FAILED, probes: [false] },
      CONTEXT,
    );
    expect(change).toMatchObject({ breaker: { state: "open" }, reason: "a probe failed: HTTP 500", events: [] });
  });

  test("is thrown for good by a receiver that wants nothing more, whatever its state, and told of once", () => {
    const notes = { ...NOTES, gone: "the receiver answered 410" };
    for (const breaker of [CLOSED, open]) {
      const change = judge({ ...CONTROL, breaker }, notes, CONTEXT);
      expect(change).toMatchObject({ breaker: DISABLED, reason: notes.gone, events: ["endpoint.disabled"] });
    }
    expect(judge({ ...CONTROL, breaker: DISABLED }, notes, CONTEXT).events).toEqual([]);
  });
});

describe("an endpoint that gets too much", () => {
  const slowed = (asked: Partial<HealthNotes>, control: Partial<EndpointControl> = {}, recentRate = 0) =>
    judge({ ...CONTROL, ...control }, { ...NOTES, throttled: 1, ...asked }, { ...CONTEXT, recentRate });

  test.each([
    [undefined, 1_000],
    [0, 1_000],
    [90_000, 90_000],
    [86_400_000, 3_600_000],
  ])("and asks for %s ms is left alone for %d ms", (askedWaitMs, waitMs) => {
    expect(slowed({ askedWaitMs }).pausedUntilMs).toBe(CONTEXT.nowMs + waitMs);
  });

  test("gets half of what last succeeded after that, or half of its pace where that is less, and never nothing", () => {
    const until = CONTEXT.nowMs + 1_000;
    expect(slowed({}, {}, 80).pace).toEqual({ startRate: 40, sinceMs: until });
    expect(slowed({}, { maxRate: 20 }, 80).pace).toEqual({ startRate: 10, sinceMs: until });
    expect(slowed({}, { pace: { startRate: 30, sinceMs: CONTEXT.nowMs } }, 80).pace?.startRate).toBe(15);
    expect(slowed({}).pace?.startRate).toBe(1);
  });

  test("says so about what was sent before its pause too, which makes the pause longer and the pace no slower", () => {
    const before = { pace: { startRate: 40, sinceMs: CONTEXT.nowMs }, pausedUntilMs: CONTEXT.nowMs + 2_000 };
    expect(slowed({ askedWaitMs: 1_000 }, before)).toMatchObject(before);
    expect(slowed({ askedWaitMs: 5_000 }, before)).toMatchObject({
      pace: before.pace,
      pausedUntilMs: CONTEXT.nowMs + 5_000,
    });
  });
});
