import { describe, expect, test } from "vitest";
import { nextFireAt, parseSchedule } from "../../src/domain/schedule.ts";
import { offsetChanges, toWindow, type Window } from "./schedule-oracle.ts";

const HOUR_MS = 3_600_000;

function firesWithin(expression: string, timezone: string, window: Window): number[] {
  const schedule = parseSchedule({ expression, timezone, seed: "" });
  const endMs = window.fromMs + window.wallMs.length * window.stepMs;
  const fires: number[] = [];
  let at = nextFireAt(schedule, new Date(window.fromMs - 1));
  while (at !== undefined && at.getTime() < endMs) {
    fires.push(at.getTime());
    at = nextFireAt(schedule, at);
  }
  return fires;
}

describe("around a change of the clock", () => {
  test("a start anywhere within an overlap or a gap gives the same next fire as walking through it", () => {
    for (const timezone of ["America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]) {
      for (const change of offsetChanges(timezone, Date.UTC(2026, 0, 1), Date.UTC(2027, 0, 1))) {
        const window = toWindow(timezone, change - 3 * HOUR_MS, change + 27 * HOUR_MS, 60_000);
        for (const expression of ["30 1 * * *", "15 2 * * *", "0 */2 * * *", "0 0 * * *", "*/7 * * * *"]) {
          const schedule = parseSchedule({ expression, timezone, seed: "" });
          const fires = firesWithin(expression, timezone, window);
          for (let at = window.fromMs; at < change + 3 * HOUR_MS; at += 61_001) {
            expect(nextFireAt(schedule, new Date(at))?.getTime()).toBe(fires.find((fire) => fire > at));
          }
        }
      }
    }
  });
});

describe("named examples of the clock rule", () => {
  test.each([
    ["a time in a one-hour gap", "30 2 * * *", "America/New_York", "2027-03-14T00:00:00Z", "2027-03-14T07:30:00.000Z"],
    [
      "a time in a 30-minute gap",
      "15 2 * * *",
      "Australia/Lord_Howe",
      "2026-10-03T10:00:00Z",
      "2026-10-03T15:45:00.000Z",
    ],
    ["the midnight that Cairo skips", "0 0 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", "2026-04-23T22:00:00.000Z"],
    ["the day that Samoa skipped", "0 9 30 * *", "Pacific/Apia", "2011-12-01T00:00:00Z", "2011-12-30T19:00:00.000Z"],
    [
      "the fold where cron-parser throws",
      "15 3 * * *",
      "Australia/Lord_Howe",
      "2026-04-04T10:00:00Z",
      "2026-04-04T16:45:00.000Z",
    ],
  ])("%s fires later by the length of the gap", (_, expression, timezone, after, expected) => {
    const schedule = parseSchedule({ expression, timezone, seed: "" });
    expect(nextFireAt(schedule, new Date(after))?.toISOString()).toBe(expected);
  });

  test("a time that is skipped in December fires in January when the gap reaches across the year", () => {
    const schedule = parseSchedule({ expression: "0 20 31 12 *", timezone: "Pacific/Kiritimati", seed: "" });
    const next = nextFireAt(schedule, new Date("1994-12-31T12:00:00Z"));
    expect(next?.toISOString()).toBe("1995-01-01T06:00:00.000Z");
  });

  test("a repeating time is not missed when the search starts in the overlap and the next other match is far away", () => {
    const schedule = parseSchedule({ expression: "30 1/22 * * *", timezone: "America/New_York", seed: "" });
    expect(nextFireAt(schedule, new Date("2026-11-01T05:50:00Z"))?.toISOString()).toBe("2026-11-01T06:30:00.000Z");
  });

  test("a fixed time in an overlap fires at its first occurrence and then on the next day", () => {
    const schedule = parseSchedule({ expression: "30 1 * * *", timezone: "America/New_York", seed: "" });
    const first = nextFireAt(schedule, new Date("2026-11-01T00:00:00-04:00"));
    expect(first?.toISOString()).toBe("2026-11-01T05:30:00.000Z");
    expect(nextFireAt(schedule, first ?? new Date())?.toISOString()).toBe("2026-11-02T06:30:00.000Z");
  });
});
