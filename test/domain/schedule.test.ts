import { CronExpressionParser } from "cron-parser";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { nextFireAt, parseSchedule, type Schedule } from "../../src/domain/schedule.ts";
import { Refusal } from "../../src/errors.ts";

const parse = (expression: string, timezone = "", seed = "cron_1") => parseSchedule({ expression, timezone, seed });

function fires(schedule: Schedule, after: string, count: number): string[] {
  const result: string[] = [];
  let at = nextFireAt(schedule, new Date(after));
  while (at !== undefined && result.length < count) {
    result.push(at.toISOString().replace(":00.000Z", "Z").replace("T00:00Z", ""));
    at = nextFireAt(schedule, at);
  }
  return result;
}

function refusalOf(action: () => unknown): Refusal {
  try {
    action();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("time zones", () => {
  test.each([
    ["", "UTC"],
    ["UTC", "UTC"],
    ["utc", "UTC"],
    ["europe/berlin", "Europe/Berlin"],
    ["AMERICA/PORT_OF_SPAIN", "America/Port_of_Spain"],
    ["asia/kolkata", "Asia/Kolkata"],
    ["Asia/Calcutta", "Asia/Calcutta"],
    ["Europe/Kyiv", "Europe/Kyiv"],
    ["us/pacific", "US/Pacific"],
    ["australia/act", "Australia/ACT"],
    ["america/port-au-prince", "America/Port-au-Prince"],
    ["est5edt", "EST5EDT"],
    ["etc/gmt+5", "Etc/GMT+5"],
    ["etc/utc", "Etc/UTC"],
  ])("%j is taken as %s", (given, expected) => {
    expect(parse("0 0 * * *", given).timezone).toBe(expected);
  });

  test.each([
    "Nope/Zone",
    "UTC+8",
    "GMT+8",
    "+08:00",
    "-03:00",
    "../etc",
    "../../etc/passwd",
    "/Europe/Rome",
    "Factory",
    "localtime",
    "PST",
    "IST",
    "SystemV/PST8",
    "Etc/Unknown",
    " Europe/Rome",
    "Europe/Rome\n",
    "Europe/Rome\u0000",
    "Еurope/Rome",
    "x".repeat(10_000),
    `Europe/${"x".repeat(10_000)}`,
  ])("%j is refused and names the field", (timezone) => {
    const refusal = refusalOf(() =>
      parseSchedule({ expression: "0 0 * * *", timezone, seed: "", timezoneField: "job.timezone" }),
    );
    expect(refusal).toMatchObject({ reason: "TIMEZONE_INVALID", violations: [{ field: "job.timezone" }] });
  });

  test("a TZ or CRON_TZ prefix sets the zone and is left out of the stored text", () => {
    expect(parse("TZ=Asia/Tokyo 0 9 * * *")).toMatchObject({ expression: "0 9 * * *", timezone: "Asia/Tokyo" });
    expect(parse("cron_tz=asia/tokyo @daily")).toMatchObject({ expression: "@daily", timezone: "Asia/Tokyo" });
    expect(parse("TZ=Asia/Tokyo 0 9 * * *", "Asia/Tokyo").timezone).toBe("Asia/Tokyo");
  });

  test.each([
    ["TZ=Asia/Tokyo 0 9 * * *", "Europe/Rome", "Asia/Tokyo"],
    ["TZ=UTC+8 0 9 * * *", "", "prefix"],
    ["TZ= 0 9 * * *", "", "prefix"],
    ["TZ=UTC TZ=UTC 0 9 * * *", "", "second"],
    ["TZ=UTC", "", "empty"],
  ])("the prefix in %j beside the zone %j is refused", (expression, timezone, word) => {
    const refusal = refusalOf(() => parse(expression, timezone));
    expect(refusal.reason).toBe("CRON_EXPR_INVALID");
    expect(refusal.message).toContain(word);
  });
});

describe("elapsed intervals", () => {
  test.each([
    ["@every 90s", "2026-01-01T00:00:00Z", ["2026-01-01T00:01:30.000Z", "2026-01-01T00:03Z"]],
    ["@every 1h30m", "2026-01-01T00:00:00Z", ["2026-01-01T01:30Z", "2026-01-01T03:00Z"]],
    ["@every 1h/15m", "2026-01-01T00:00:00Z", ["2026-01-01T00:15Z", "2026-01-01T01:15Z"]],
    ["@EVERY 1D", "2026-01-01T00:00:00Z", ["2026-01-02", "2026-01-03"]],
  ])("%s is aligned to the Unix epoch", (expression, after, expected) => {
    expect(fires(parse(expression, "America/New_York"), after, 2)).toEqual(expected);
  });

  test.each([
    "@every",
    "@every 0s",
    "@every 500ms",
    "@every -1h",
    "@every 1.5h",
    "@every 10",
    "@every h",
    "@every 1h1h",
    "@every 1s1h",
    "@every 367d",
    "@every 1h 30m",
    "@every 1h/1h",
    "@every 1h/",
    "@every /5m",
    "@every 99999999999s",
    "@every ٥m",
  ])("%s is refused", (expression) => {
    expect(refusalOf(() => parse(expression)).reason).toBe("CRON_EXPR_INVALID");
  });
});

describe("hashed values", () => {
  test("H depends on the seed only, and these values never change", () => {
    expect(fires(parse("H H * * *", "", "cron_a"), "2026-01-01T00:00:00Z", 1)).toEqual(["2026-01-01T20:34Z"]);
    expect(fires(parse("H H * * *", "", "cron_b"), "2026-01-01T00:00:00Z", 1)).toEqual(["2026-01-01T11:20Z"]);
  });

  test("H, its ranges and its steps stay in bounds for any seed, and a hashed day exists in every month", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 40 }), (seed) => {
        const schedule = parse("H H(9-16) H H/3 ?", "", seed);
        const at = nextFireAt(schedule, new Date("2026-01-01T00:00:00Z")) as Date;
        expect(at.getUTCHours()).toBeGreaterThanOrEqual(9);
        expect(at.getUTCHours()).toBeLessThanOrEqual(16);
        expect(fires(schedule, "2026-01-01T00:00:00Z", 8).length).toBe(8);
        const monthly = parse("0 0 H * *", "", seed);
        const months = fires(monthly, "2025-12-31T23:59:59Z", 12).map((day) => day.slice(0, 7));
        expect(months).toEqual(Array.from({ length: 12 }, (_, i) => `2026-${String(i + 1).padStart(2, "0")}`));
        const quarterly = fires(parse("H/15 * * * *", "", seed), "2026-01-01T00:00:00Z", 9);
        expect(Date.parse(`${quarterly[8]}`) - Date.parse(`${quarterly[4]}`)).toBe(3_600_000);
      }),
    );
  });

  test("hashed jobs spread over the hour", () => {
    const minutes = new Set<number>();
    for (let i = 0; i < 600; i++) {
      minutes.add(nextFireAt(parse("H * * * *", "", `cron_${i}`), new Date(0))?.getUTCMinutes() ?? -1);
    }
    expect(minutes.size).toBeGreaterThan(55);
  });
});

describe("the next fire", () => {
  test("is strictly after the given instant", () => {
    const schedule = parse("0 0 * * *");
    expect(fires(schedule, "2026-03-06T23:59:59.999Z", 1)).toEqual(["2026-03-07"]);
    expect(fires(schedule, "2026-03-07T00:00:00.000Z", 1)).toEqual(["2026-03-08"]);
    expect(fires(schedule, "2026-03-07T00:00:00.001Z", 1)).toEqual(["2026-03-08"]);
  });

  test("is undefined when the last year is over, and a schedule that is over is refused when the time is known", () => {
    const expression = "0 0 12 24 12 ? 2026";
    expect(fires(parse(expression), "2026-01-01T00:00:00Z", 5)).toEqual(["2026-12-24T12:00Z"]);
    const now = new Date("2027-01-01T00:00:00Z");
    const refusal = refusalOf(() => parseSchedule({ expression, timezone: "", seed: "", now }));
    expect(refusal).toMatchObject({ reason: "CRON_EXPR_INVALID", violations: [{ field: "cron_expr" }] });
    expect(refusal.message).toContain("never fires again");
  });

  test("exists on the last evening of the last year west of UTC", () => {
    const schedule = parse("0 0 23 31 12 ? 2026", "Pacific/Honolulu");
    expect(fires(schedule, "2026-12-31T23:00:00Z", 2)).toEqual(["2027-01-01T09:00Z"]);
  });

  test("is found across the 8 years without a leap day and the 40 years without a fifth Monday in February", () => {
    expect(fires(parse("0 0 29 2 *"), "2096-03-01T00:00:00Z", 1)).toEqual(["2104-02-29"]);
    expect(fires(parse("0 0 * 2 MON#5"), "2072-03-01T00:00:00Z", 1)).toEqual(["2112-02-29"]);
  });

  test("ends in bounded time for instants at the ends of what a Date can hold", () => {
    for (const expression of ["* * * * * *", "@every 1s", "0 0 29 2 *", "30 2 * 3 0#2"]) {
      const schedule = parse(expression, "America/New_York");
      expect(nextFireAt(schedule, new Date(8.64e15))).toBeUndefined();
      expect(nextFireAt(schedule, new Date(Date.UTC(9999, 11, 31, 23, 59, 59)))).toBeUndefined();
      expect(nextFireAt(schedule, new Date(-8.64e15))?.getTime()).toBeGreaterThanOrEqual(0);
      expect(() => nextFireAt(schedule, new Date(Number.NaN))).toThrow(RangeError);
    }
  });

  test("agrees with cron-parser in UTC, for random expressions", () => {
    const field = (min: number, max: number) => {
      const range = fc
        .tuple(fc.integer({ min, max }), fc.integer({ min, max }))
        .map(([a, b]) => `${Math.min(a, b)}-${Math.max(a, b)}`);
      return fc.oneof(
        { weight: 2, arbitrary: fc.constant("*") },
        fc.uniqueArray(fc.integer({ min, max }), { minLength: 1, maxLength: 4 }).map((values) => values.join(",")),
        range,
        fc.tuple(range, fc.integer({ min: 1, max: 9 })).map(([text, step]) => `${text}/${step}`),
      );
    };
    const expression = fc
      .tuple(field(0, 59), field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6))
      .map((fields) => fields.join(" "));
    fc.assert(
      fc.property(
        expression,
        fc.date({ min: new Date("2024-01-01"), max: new Date("2030-12-31"), noInvalidDate: true }),
        (text, after) => {
          const theirs = CronExpressionParser.parse(text, { tz: "UTC", currentDate: after });
          const schedule = parse(text);
          let at = after;
          for (let i = 0; i < 3; i++) {
            const next = nextFireAt(schedule, at);
            expect(next?.toISOString(), text).toBe(theirs.next().toDate().toISOString());
            at = next as Date;
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  test("never goes back and never depends on where in between the search starts, in any zone", () => {
    const zones = ["UTC", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "Asia/Gaza"];
    const expressions = ["30 2 * * *", "*/17 * * * *", "0 0 L * *", "H H * * *", "15 1/3 * * FRI#1", "0 9-17 15W * ?"];
    fc.assert(
      fc.property(
        fc.constantFrom(...zones),
        fc.constantFrom(...expressions),
        fc.integer({ min: Date.UTC(1990, 0, 1), max: Date.UTC(2040, 0, 1) }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (timezone, expression, afterMs, share) => {
          const schedule = parse(expression, timezone);
          const next = nextFireAt(schedule, new Date(afterMs)) as Date;
          expect(next.getTime()).toBeGreaterThan(afterMs);
          expect(next.getTime() % 1000).toBe(0);
          const between = afterMs + Math.floor((next.getTime() - 1 - afterMs) * share);
          expect(nextFireAt(schedule, new Date(between))).toEqual(next);
        },
      ),
      { numRuns: 400 },
    );
  });
});

test("a parsed schedule is shared, and is the same one after its normalised text is parsed again", () => {
  const schedule = parse("  0   9 *  jan,Feb\tmon-fri ", "europe/rome");
  expect(schedule.expression).toBe("0 9 * JAN,FEB MON-FRI");
  expect(parse("  0   9 *  jan,Feb\tmon-fri ", "Europe/Rome")).toBe(schedule);
  expect(parse(schedule.expression, schedule.timezone)).toEqual(schedule);
});
