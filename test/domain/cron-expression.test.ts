import { describe, expect, test } from "vitest";
import { nextFireAt, parseSchedule } from "../../src/domain/schedule.ts";
import { Refusal } from "../../src/errors.ts";

const parse = (expression: string) => parseSchedule({ expression, timezone: "", seed: "cron_1", field: "cron_expr" });

/** The days of the next fires, or day and time where the time is not midnight. */
function firesOf(expression: string, after: string, count: number): string[] {
  const schedule = parse(expression);
  const result: string[] = [];
  let at = nextFireAt(schedule, new Date(after));
  while (at !== undefined && result.length < count) {
    result.push(at.toISOString().replace(".000Z", "").replace("T00:00:00", ""));
    at = nextFireAt(schedule, at);
  }
  return result;
}

function refusalOf(expression: string): Refusal {
  try {
    parse(expression);
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error(`${JSON.stringify(expression)} was not refused`);
}

describe("an expression that is refused names the field and the rule", () => {
  test.each([
    ["", "empty"],
    ["   ", "empty"],
    ["* * * *", "4 fields"],
    ["*", "1 field;"],
    ["* * * * * * * *", "8 fields"],
    ["0 9 * * extra", 'day of week: "EXTRA" is not a number'],
    ["0 0 30 2 *", "never fires"],
    ["0 0 31 4 *", "never fires"],
    ["0 0 31 2,4,6,9,11 *", "never fires"],
    ["0 0 31W 2 *", "never fires"],
    ["0 0 0 29 2 ? 2027", "never fires"],
    ["60 * * * *", "minute: 60"],
    ["60 * * * * *", "second: 60"],
    ["0 24 * * *", "hour: 24"],
    ["0 0 0 * *", "day of month: 0"],
    ["0 0 32 * *", "day of month: 32"],
    ["0 0 * 0 *", "month: 0"],
    ["0 0 * 13 *", "month: 13"],
    ["0 0 * * 8", "day of week: 8"],
    ["0 0 0 1 1 * 1969", "year: 1969"],
    ["0 0 0 1 1 * 2100", "year: 2100"],
    ["0 0 0 1 1 * 2030-2026", "year: "],
    ["0 0 0 1 1 * H", "year: "],
    ["*/0 * * * *", "minute: 0"],
    ["*/ * * * *", "minute: a number is missing"],
    ["*/5/5 * * * *", "minute: "],
    ["*5 * * * *", "minute: "],
    ["**  * * * *", "minute: "],
    ["1,2,, * * * *", "minute: a list"],
    [", * * * *", "minute: a list"],
    ["-1 * * * *", "minute: a number is missing"],
    ["1- * * * *", "minute: a number is missing"],
    ["1-2-3 * * * *", "minute: "],
    ["1.5 * * * *", "minute: "],
    ["1e1 * * * *", "minute: "],
    ["0x1 * * * *", "minute: "],
    ["00000000001 * * * *", "minute: "],
    ["a b c d e", "minute: "],
    ["L * * * *", "minute: "],
    ["MON * * * *", "minute: "],
    ["0 0 * MON *", "month: "],
    ["0 0 * * JAN", "day of week: "],
    ["0 0 * * MONDAY", "day of week: "],
    ["0 0 * * L", "day of week: L needs a day"],
    ["0 0 * * 1#0", "day of week: 0"],
    ["0 0 * * 1#6", "day of week: 6"],
    ["0 0 * * 1#", "day of week: a number is missing"],
    ["0 0 * * #1", "day of week: a number is missing"],
    ["0 0 * * 8L", "day of week: 8"],
    ["0 0 * * 1-5L", "day of week: "],
    ["0 0 * * 15W", "day of week: "],
    ["0 0 W * *", "day of month: a number is missing"],
    ["0 0 32W * *", "day of month: 32"],
    ["0 0 1-5W * *", "day of month: "],
    ["0 0 L-31 * *", "day of month: 31"],
    ["0 0 L-0 * *", "day of month: 0"],
    ["0 0 L-3W * *", "day of month: "],
    ["0 0 5L * *", "day of month: "],
    ["0 0 1#2 * *", "day of month: "],
    ["H(0-60) * * * *", "minute: 60"],
    ["H(5-1) * * * *", "minute: "],
    ["H(1-5 * * * *", "minute: "],
    ["HH * * * *", "minute: "],
    ["H/0 * * * *", "minute: 0"],
    ["@reboot", "@reboot is not offered"],
    ["@fortnightly", "@fortnightly is not one of"],
    ["@daily 5", "nothing may follow @daily"],
    ["@", "is not one of"],
    ["0 0 * * *\n", "U+000A"],
    ["0 0\n* * *", "U+000A"],
    ["0 0 * * *\r\n", "U+000D"],
    ["0 0 * * *\u0000", "U+0000"],
    ["0\u00a00 * * *", "U+00A0"],
    ["٥ * * * *", "U+0665"],
    ["\uff15 * * * *", "U+FF15"],
    ["0 0 * * 😀", "U+1F600"],
    ["\ufeff0 0 * * *", "U+FEFF"],
    ["0 0 * * * # every night", "8 fields"],
    ["# comment", "2 fields"],
    ["0 0 * * * #", "day of week: "],
    [`${"1,".repeat(20_000)}1 * * * *`, "longer than 256"],
    [`${" ".repeat(300)}`, "longer than 256"],
    [`${"0".repeat(240)} * * * *`, "minute: "],
    ["__proto__ * * * *", "minute: "],
    ["@constructor", "is not one of"],
  ])("%j", (expression, words) => {
    const refusal = refusalOf(expression);
    expect(refusal.reason).toBe("CRON_EXPR_INVALID");
    expect(refusal.violations[0]?.field).toBe("cron_expr");
    expect(refusal.message).toContain(words);
  });
});

describe("the fields", () => {
  test.each([
    ["5 fields start with the minute", "5 * * * *", ["2026-01-01T00:05:00", "2026-01-01T01:05:00"]],
    ["6 fields start with the second", "30 5 * * * *", ["2026-01-01T00:05:30", "2026-01-01T01:05:30"]],
    [
      "7 fields end with the year",
      "0 0 0 1 1 ? 2028,2030-2040/5",
      ["2028-01-01", "2030-01-01", "2035-01-01", "2040-01-01"],
    ],
    ["a year may be any", "0 0 0 1 1 ? *", ["2027-01-01", "2028-01-01"]],
    ["a step in the year", "0 0 0 1 1 ? */50", ["2070-01-01"]],
    [
      "a step from a value runs to the end",
      "5/20 * * * *",
      ["2026-01-01T00:05:00", "2026-01-01T00:25:00", "2026-01-01T00:45:00", "2026-01-01T01:05:00"],
    ],
    ["a value may stand twice", "0 0 1,1,1-2 * *", ["2026-01-02", "2026-02-01"]],
    [
      "hours may wrap past midnight",
      "0 22-2 * * *",
      ["2026-01-01T01:00:00", "2026-01-01T02:00:00", "2026-01-01T22:00:00"],
    ],
    [
      "a wrapping range may have a step",
      "0 22-4/3 * * *",
      ["2026-01-01T01:00:00", "2026-01-01T04:00:00", "2026-01-01T22:00:00"],
    ],
    ["minutes 1-0 are the whole hour", "1-0 5 * * *", ["2026-01-01T05:00:00", "2026-01-01T05:01:00"]],
    [
      "days of the week may wrap",
      "0 0 * * FRI-MON",
      ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-09"],
    ],
    ["5-0 is Friday to Sunday", "0 0 * * 5-0", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-09"]],
    ["7 is Sunday", "0 0 * * 7", ["2026-01-04", "2026-01-11"]],
    ["7-2 is Sunday to Tuesday", "0 0 * * 7-2", ["2026-01-04", "2026-01-05", "2026-01-06", "2026-01-11"]],
    ["6-7 is the weekend", "0 0 * * 6-7", ["2026-01-03", "2026-01-04", "2026-01-10"]],
    ["months may wrap", "0 0 1 NOV-FEB *", ["2026-02-01", "2026-11-01", "2026-12-01", "2027-01-01"]],
    ["days may wrap", "0 0 30-2 * *", ["2026-01-02", "2026-01-30", "2026-01-31", "2026-02-01"]],
    ["names in any case, in lists", "0 0 * * mon,Wed", ["2026-01-05", "2026-01-07"]],
    ["a question mark is any day", "0 0 ? * MON", ["2026-01-05", "2026-01-12"]],
    ["February 29 is for leap years", "0 0 29 2 *", ["2028-02-29", "2032-02-29"]],
    ["day 31 leaves out short months", "0 0 31 * *", ["2026-01-31", "2026-03-31", "2026-05-31"]],
  ])("%s: %s", (_, expression, expected) => {
    expect(firesOf(expression, "2026-01-01T00:00:00Z", expected.length)).toEqual(expected);
  });
});

describe("special days", () => {
  test.each([
    ["L", "0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]],
    ["L in a leap year", "0 0 L 2 *", ["2026-02-28", "2027-02-28", "2028-02-29"]],
    ["L-3", "0 0 L-3 * *", ["2026-01-28", "2026-02-25", "2026-03-28"]],
    ["L-29, which February does not have", "0 0 L-29 * *", ["2026-01-02", "2026-03-02", "2026-04-01"]],
    ["L and 15", "0 0 15,L * *", ["2026-01-15", "2026-01-31", "2026-02-15"]],
    ["LW", "0 0 LW * *", ["2026-01-30", "2026-02-27", "2026-03-31", "2026-04-30", "2026-05-29"]],
    [
      "15W",
      "0 0 15W * *",
      ["2026-01-15", "2026-02-16", "2026-03-16", "2026-04-15", "2026-05-15", "2026-06-15", "2026-07-15", "2026-08-14"],
    ],
    [
      "1W stays in its month",
      "0 0 1W * *",
      ["2026-02-02", "2026-03-02", "2026-04-01", "2026-05-01", "2026-06-01", "2026-07-01", "2026-08-03"],
    ],
    ["31W stays in its month and leaves out short ones", "0 0 31W * *", ["2026-01-30", "2026-03-31", "2026-05-29"]],
    ["5L, the last Friday", "0 0 * * 5L", ["2026-01-30", "2026-02-27", "2026-03-27"]],
    ["FRIL", "0 0 ? * friL", ["2026-01-30", "2026-02-27"]],
    ["7L is the last Sunday", "0 0 * * 7L", ["2026-01-25", "2026-02-22"]],
    ["1#2, the second Monday", "0 0 * * 1#2", ["2026-01-12", "2026-02-09", "2026-03-09"]],
    ["MON#1 and FRI#3", "0 0 * * MON#1,FRI#3", ["2026-01-05", "2026-01-16", "2026-02-02"]],
    ["5#5, only in months that have it", "0 0 * * 5#5", ["2026-01-30", "2026-05-29", "2026-07-31"]],
    ["either day matches", "0 0 13 * FRI", ["2026-01-02", "2026-01-09", "2026-01-13", "2026-01-16"]],
    ["either day matches even when one cannot", "0 0 30 2 MON", ["2026-02-02", "2026-02-09", "2026-02-16"]],
    ["a step in one day field restricts it", "0 0 */10 * MON", ["2026-01-05", "2026-01-11", "2026-01-12"]],
    ["special days in both fields", "0 0 L * 1#1", ["2026-01-05", "2026-01-31", "2026-02-02"]],
  ])("%s: %s", (_, expression, expected) => {
    expect(firesOf(expression, "2026-01-01T00:00:00Z", expected.length)).toEqual(expected);
  });
});

describe("macros", () => {
  test.each([
    ["@yearly", ["2027-01-01", "2028-01-01"]],
    ["@annually", ["2027-01-01"]],
    ["@monthly", ["2026-02-01", "2026-03-01"]],
    ["@weekly", ["2026-01-04", "2026-01-11"]],
    ["@daily", ["2026-01-02", "2026-01-03"]],
    ["@Midnight", ["2026-01-02"]],
    ["@hourly", ["2026-01-01T01:00:00"]],
    ["@minutely", ["2026-01-01T00:01:00", "2026-01-01T00:02:00"]],
  ])("%s", (expression, expected) => {
    expect(firesOf(expression, "2026-01-01T00:00:00Z", expected.length)).toEqual(expected);
    expect(parse(expression).expression).toBe(expression.toLowerCase());
  });
});

describe("what may surprise is said in a warning", () => {
  test.each([
    ["0 0 13 * FRI", "either matches"],
    ["0 0 */2 * MON", "either matches"],
    ["*/90 * * * *", "*/90 in the minute field fires once an hour"],
    ["0 */36 * * *", "*/36 in the hour field fires once a day"],
    ["H/90 * * * *", "H/90 in the minute field fires once an hour"],
    ["50/30 * * * *", "50/30 in the minute field fires once an hour"],
    ["0 0 9 * * *", "the first is the second"],
    ["*/45 * * * *", "*/45 in the minute field starts anew each hour"],
    ["0 */5 * * *", "*/5 in the hour field starts anew each day"],
    ["0 0 31 * *", "months without a day 31 are left out"],
    ["0 0 30,31 2-6 *", "months without a day 30 are left out"],
    ["0 0 29 2 *", "leap years only"],
  ])("%s: %s", (expression, words) => {
    expect(parse(expression).warnings.join("; ")).toContain(words);
  });

  test.each([
    "0 9 * * *",
    "*/15 * * * *",
    "0 9 * * MON-FRI",
    "0 9 ? * MON",
    "0 9 1 * ?",
    "0 9 */1 * MON",
    "0 9 L * *",
    "0 0 28,31 * *",
    "0 0 31 1,3 *",
    "0 0 L,31 * *",
    "@daily",
  ])("%s has none", (expression) => expect(parse(expression).warnings).toEqual([]));
});

test("the longest expressions are parsed and refused without delay", () => {
  const started = performance.now();
  for (let i = 0; i < 50; i++) {
    const list = Array.from({ length: 60 }, (_, k) => (k + i) % 60).join(",");
    expect(parse(`${list} ${i % 24} * * *`).rule.kind).toBe("calendar");
    expect(refusalOf(`${"0-59/1,".repeat(34)}${i + 60} * * * *`).reason).toBe("CRON_EXPR_INVALID");
    expect(refusalOf(`0 0 31 2,4,6,9,11 ? ${"0".repeat(i)}`).reason).toBe("CRON_EXPR_INVALID");
  }
  expect(performance.now() - started).toBeLessThan(2000);
});
