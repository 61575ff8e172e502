import { describe, expect, test } from "vitest";
import { nextFireAt, parseSchedule } from "../../src/domain/schedule.ts";
import { bruteForceFires, offsetChanges, toWindow, type Wall, type Window } from "./schedule-oracle.ts";

const HOUR_MS = 3_600_000;

const ZONES = [
  "UTC",
  "America/New_York",
  "Europe/Rome",
  "Europe/Dublin",
  "Australia/Lord_Howe",
  "Africa/Casablanca",
  "Africa/Cairo",
  "Antarctica/Troll",
  "America/St_Johns",
  "America/Havana",
  "America/Santiago",
  "America/Nuuk",
  "Asia/Beirut",
  "Asia/Gaza",
  "Asia/Kolkata",
  "Pacific/Chatham",
];

interface Case {
  readonly expression: string;
  readonly matches: (wall: Wall) => boolean;
  readonly repeats?: true;
  readonly fillsGaps?: false;
}

const everyHour = { repeats: true, fillsGaps: false } as const;
const weekdayNearest15 = (w: Wall) => {
  const weekday15 = (w.weekday + 35 + 15 - w.day) % 7;
  return w.day === (weekday15 === 6 ? 14 : weekday15 === 0 ? 16 : 15);
};

const CASES: readonly Case[] = [
  { expression: "0 * * * *", matches: (w) => w.minute === 0, ...everyHour },
  { expression: "30 * * * *", matches: (w) => w.minute === 30, ...everyHour },
  { expression: "*/20 * * * *", matches: (w) => w.minute % 20 === 0, ...everyHour },
  { expression: "7 0-23 * * SUN", matches: (w) => w.minute === 7 && w.weekday === 0, ...everyHour },
  { expression: "0 */2 * * *", matches: (w) => w.minute === 0 && w.hour % 2 === 0, repeats: true },
  { expression: "30 1/2 * * *", matches: (w) => w.minute === 30 && w.hour % 2 === 1, repeats: true },
  { expression: "0 */12 * * *", matches: (w) => w.minute === 0 && w.hour % 12 === 0, repeats: true },
  { expression: "0 */24 * * *", matches: (w) => w.minute === 0 && w.hour === 0 },
  { expression: "0 0 * * *", matches: (w) => w.minute === 0 && w.hour === 0 },
  { expression: "@daily", matches: (w) => w.minute === 0 && w.hour === 0 },
  { expression: "30 0 * * *", matches: (w) => w.minute === 30 && w.hour === 0 },
  { expression: "45 1 * * *", matches: (w) => w.minute === 45 && w.hour === 1 },
  { expression: "15 2 * * *", matches: (w) => w.minute === 15 && w.hour === 2 },
  { expression: "30 2 * * SUN", matches: (w) => w.minute === 30 && w.hour === 2 && w.weekday === 0 },
  { expression: "0,30 1-3 * * *", matches: (w) => w.minute % 30 === 0 && w.hour >= 1 && w.hour <= 3 },
  { expression: "*/20 2 * * *", matches: (w) => w.minute % 20 === 0 && w.hour === 2 },
  { expression: "15 3 * * *", matches: (w) => w.minute === 15 && w.hour === 3 },
  { expression: "0 4 * * 0", matches: (w) => w.minute === 0 && w.hour === 4 && w.weekday === 0 },
  { expression: "59 23 * * *", matches: (w) => w.minute === 59 && w.hour === 23 },
  {
    expression: "0 22-2 * * *",
    matches: (w) => w.minute === 0 && (w.hour >= 22 || w.hour <= 2),
  },
  {
    expression: "10 5 * * FRI-MON",
    matches: (w) => w.minute === 10 && w.hour === 5 && (w.weekday >= 5 || w.weekday <= 1),
  },
  { expression: "0 0 L * *", matches: (w) => w.minute === 0 && w.hour === 0 && w.day === w.lastDay },
  {
    expression: "30 2 L * 0L",
    matches: (w) =>
      w.minute === 30 && w.hour === 2 && (w.day === w.lastDay || (w.weekday === 0 && w.day + 7 > w.lastDay)),
  },
  {
    expression: "30 2 * 3 0#2",
    matches: (w) => w.minute === 30 && w.hour === 2 && w.month === 3 && w.weekday === 0 && w.day >= 8 && w.day <= 14,
  },
  { expression: "0 1 15W * *", matches: (w) => w.minute === 0 && w.hour === 1 && weekdayNearest15(w) },
  {
    expression: "0 30 2 * * * 2026-2028",
    matches: (w) => w.minute === 30 && w.hour === 2 && w.year >= 2026 && w.year <= 2028,
  },
];

function windowsAround(timezone: string): Window[] {
  const changes = offsetChanges(timezone, Date.UTC(2024, 0, 1), Date.UTC(2031, 0, 1));
  const middles = changes.length > 0 ? changes : [Date.UTC(2026, 11, 31)];
  return middles.map((at) => toWindow(timezone, at - 30 * HOUR_MS, at + 30 * HOUR_MS, 60_000));
}

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

const iso = (instants: readonly number[]) => instants.map((at) => new Date(at).toISOString());

describe("around every change of the clock from 2024 to 2030", () => {
  test.each(ZONES)("a schedule in %s fires when a brute-force walk says so", (timezone) => {
    for (const window of windowsAround(timezone)) {
      for (const { expression, matches, repeats = false, fillsGaps = true } of CASES) {
        const expected = bruteForceFires(window, matches, { repeats, fillsGaps });
        expect(iso(firesWithin(expression, timezone, window)), expression).toEqual(iso(expected));
      }
    }
  });

  test("a schedule by the second follows the same rule in a gap and in an overlap of 30 minutes", () => {
    const timezone = "Australia/Lord_Howe";
    for (const change of offsetChanges(timezone, Date.UTC(2026, 0, 1), Date.UTC(2027, 0, 1))) {
      const window = toWindow(timezone, change - HOUR_MS, change + HOUR_MS, 1000);
      const expected = bruteForceFires(window, (w) => w.second % 25 === 0 && w.hour === 2 && w.minute >= 10, {
        repeats: false,
        fillsGaps: true,
      });
      expect(iso(firesWithin("*/25 10-59 2 * * *", timezone, window))).toEqual(iso(expected));
    }
  });

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
