import { describe, expect, test } from "vitest";
import { clockNoteOf, skippedInGaps } from "../../src/domain/clock-changes.ts";
import { DEFAULT_RULES, nextFireAt, parseSchedule, type ScheduleRules } from "../../src/domain/schedule.ts";

const NEW_YORK = "America/New_York";
const schedule = (expression: string, timezone: string, rules: Partial<ScheduleRules> = {}) =>
  parseSchedule({ expression, timezone, seed: "", rules: { ...DEFAULT_RULES, ...rules } });

describe("a fire says what it has to do with a change of the clock", () => {
  test.each([
    ["30 2 * * *", "2027-03-14T07:30:00Z", "after_gap"],
    ["30 2 * * *", "2027-03-15T06:30:00Z", undefined],
    ["30 1 * * *", "2026-11-01T05:30:00Z", "first_of_two"],
    ["30 * * * *", "2026-11-01T06:30:00Z", "second_of_two"],
    ["30 * * * *", "2026-11-01T07:30:00Z", undefined],
    ["30 * * * *", "2026-11-01T04:30:00Z", undefined],
    ["@every 1h", "2026-11-01T06:00:00Z", undefined],
  ])("%s at %s: %s", (expression, at, kind) => {
    expect(clockNoteOf(schedule(expression, NEW_YORK), new Date(at))?.kind).toBe(kind);
  });

  test("and which time was skipped", () => {
    const note = clockNoteOf(schedule("15 2 * * *", "Australia/Lord_Howe"), new Date("2026-10-03T15:45:00Z"));
    expect(note).toEqual({ kind: "after_gap", skippedWallMs: Date.UTC(2026, 9, 4, 2, 15) });
  });
});

describe("the rules for clock changes", () => {
  const firesOn = (day: string, expression: string, rules: Partial<ScheduleRules>) => {
    const fires: string[] = [];
    const of = schedule(expression, NEW_YORK, rules);
    let at = nextFireAt(of, new Date(`${day}T03:59:59Z`));
    while (at !== undefined && at.getTime() < Date.parse(`${day}T12:00:00Z`)) {
      fires.push(at.toISOString().slice(11, 16));
      at = nextFireAt(of, at);
    }
    return fires;
  };

  test.each([
    ["0,30 2 * * *", {}, ["07:00", "07:30"]],
    ["0,30 2 * * *", { dstGap: "skip" }, []],
    ["30 2,3 * * *", { dstGap: "skip" }, ["07:30"]],
    ["0 1-4 * * *", { dstGap: "skip" }, ["06:00", "07:00", "08:00"]],
  ] as const)("%s in a gap, %j", (expression, rules, fires) => {
    expect(firesOn("2027-03-14", expression, rules)).toEqual(fires);
  });

  test.each([
    ["30 1 * * *", {}, ["05:30"]],
    ["30 1 * * *", { dstOverlap: "twice" }, ["05:30", "06:30"]],
    ["30 0-3/1 * * *", { dstOverlap: "once" }, ["04:30", "05:30", "07:30", "08:30"]],
    ["30 * * * *", { dstOverlap: "once" }, ["04:30", "05:30", "07:30", "08:30", "09:30", "10:30", "11:30"]],
  ] as const)("%s in an overlap, %j", (expression, rules, fires) => {
    expect(firesOn("2026-11-01", expression, rules)).toEqual(fires);
  });
});

describe("what a schedule lets pass in gaps", () => {
  const skipped = (expression: string, rules: Partial<ScheduleRules>, after: string, until: string) =>
    skippedInGaps(schedule(expression, NEW_YORK, rules), new Date(after), new Date(until));

  test("is told gap by gap, with the instants and how many", () => {
    const found = skipped("0,30 2 * * *", { dstGap: "skip" }, "2026-01-01T00:00:00Z", "2027-12-31T00:00:00Z");
    expect(found).toEqual([
      { from: new Date("2026-03-08T07:00:00Z"), to: new Date("2026-03-08T07:30:00Z"), count: 2 },
      { from: new Date("2027-03-14T07:00:00Z"), to: new Date("2027-03-14T07:30:00Z"), count: 2 },
    ]);
  });

  test("is each told once when the time is looked at in parts", () => {
    const gap = (after: string, until: string) => skipped("0,30 2 * * *", { dstGap: "skip" }, after, until);
    expect(gap("2027-03-14T06:00:00Z", "2027-03-14T07:00:00Z")).toMatchObject([{ count: 1 }]);
    expect(gap("2027-03-14T07:00:00Z", "2027-03-14T07:29:59Z")).toEqual([]);
    expect(gap("2027-03-14T07:00:00Z", "2027-03-14T07:30:00Z")).toMatchObject([{ count: 1 }]);
  });

  test("is nothing where the instant fires by itself, where gaps are made up for, and for every hour", () => {
    const year = ["2027-01-01T00:00:00Z", "2027-12-31T00:00:00Z"] as const;
    expect(skipped("30 2,3 * * *", { dstGap: "skip" }, ...year)).toEqual([]);
    expect(skipped("30 2 * * *", {}, ...year)).toEqual([]);
    expect(skipped("30 * * * *", { dstGap: "skip" }, ...year)).toEqual([]);
    expect(skipped("@every 5m", { dstGap: "skip" }, ...year)).toEqual([]);
  });
});
