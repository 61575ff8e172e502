import { type Calendar, firstMatchAt, toStepTable } from "./calendar.ts";
import {
  type CronField,
  CronSyntaxError,
  DAY_OF_MONTH_FIELD,
  DAY_OF_WEEK_FIELD,
  fieldValues,
  HOUR_FIELD,
  MINUTE_FIELD,
  MONTH_FIELD,
  parseField,
  SECOND_FIELD,
  YEAR_FIELD,
} from "./cron-field.ts";
import { type FixedInterval, parseFixedInterval } from "./fixed-interval.ts";

/** Longest expression that is read, in UTF-16 units. */
export const MAX_EXPRESSION_LENGTH = 256;

/** When an expression fires: by the wall clock of a time zone, or by elapsed time. */
export type FireRule =
  | { readonly kind: "calendar"; readonly calendar: Calendar }
  | { readonly kind: "interval"; readonly interval: FixedInterval };

/** A cron expression, checked and taken apart. */
export interface CronExpression {
  /** Single blanks, upper case fields, lower case macros, no time zone prefix. Reading it again gives the same rule. */
  readonly text: string;
  /** What stood in a `TZ=` or `CRON_TZ=` prefix, unchecked. */
  readonly timezonePrefix: string | undefined;
  readonly rule: FireRule;
  readonly warnings: readonly string[];
}

const MACROS: ReadonlyMap<string, string> = new Map([
  ["@yearly", "0 0 1 1 *"],
  ["@annually", "0 0 1 1 *"],
  ["@monthly", "0 0 1 * *"],
  ["@weekly", "0 0 * * 0"],
  ["@daily", "0 0 * * *"],
  ["@midnight", "0 0 * * *"],
  ["@hourly", "0 * * * *"],
  ["@minutely", "* * * * *"],
]);

/**
 * Days of a month and weekdays repeat together every 28 years, and every 40 years across a century without a leap day.
 */
const IMPOSSIBLE_AFTER_YEARS = 100;

/**
 * Reads 5 fields (minute, hour, day of month, month, day of week), 6 (a second in front), 7 (a year at the end), a
 * macro or `@every`.
 *
 * @param seed decides `H`; the same seed always gives the same values. May be empty.
 * @throws CronSyntaxError
 */
export function parseCronExpression(expression: string, seed: string): CronExpression {
  const words = splitWords(expression);
  const timezonePrefix = takeTimezonePrefix(words);
  const first = words[0];
  if (first === undefined) throw new CronSyntaxError("it is empty");
  if (!first.startsWith("@")) {
    return { text: words.join(" ").toUpperCase(), timezonePrefix, ...parseFields(words, seed) };
  }

  const macro = first.toLowerCase();
  if (macro === "@every") {
    const [, duration = "", ...rest] = words;
    if (rest.length > 0) throw new CronSyntaxError("@every: write the duration without blanks, as in @every 1h30m");
    const text = duration.toLowerCase();
    const rule = { kind: "interval", interval: parseFixedInterval(text) } as const;
    return { text: `@every ${text}`, timezonePrefix, rule, warnings: [] };
  }
  if (macro === "@reboot") throw new CronSyntaxError("@reboot is not offered: jobs fire by the clock, not at a start");
  const fields = MACROS.get(macro);
  if (fields === undefined) {
    throw new CronSyntaxError(`${first} is not one of ${[...MACROS.keys()].join(", ")}, @every <duration>`);
  }
  if (words.length > 1) throw new CronSyntaxError(`nothing may follow ${macro}`);
  return { text: macro, timezonePrefix, ...parseFields(fields.split(" "), seed) };
}

function splitWords(expression: string): string[] {
  if (expression.length > MAX_EXPRESSION_LENGTH) {
    throw new CronSyntaxError(`it is longer than ${MAX_EXPRESSION_LENGTH} characters`);
  }
  const words: string[] = [];
  let word = "";
  for (const char of expression) {
    if (char === " " || char === "\t") {
      if (word !== "") words.push(word);
      word = "";
    } else if (char > " " && char <= "~") {
      word += char;
    } else {
      const code = (char.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
      throw new CronSyntaxError(`the character U+${code} is not allowed: only ASCII letters, digits and signs are`);
    }
  }
  if (word !== "") words.push(word);
  return words;
}

/** Removes a leading `TZ=` or `CRON_TZ=` word and answers its value. */
function takeTimezonePrefix(words: string[]): string | undefined {
  const first = words[0] ?? "";
  const name = ["TZ=", "CRON_TZ="].find((prefix) => first.toUpperCase().startsWith(prefix));
  if (name === undefined) return undefined;
  words.shift();
  return first.slice(name.length);
}

function parseFields(words: readonly string[], seed: string): { rule: FireRule; warnings: readonly string[] } {
  if (words.length < 5 || words.length > 7) {
    throw new CronSyntaxError(
      `it has ${words.length} field${words.length === 1 ? "" : "s"}; write 5 (minute, hour, day of month, month, ` +
        "day of week), 6 (a second in front) or 7 (a year at the end)",
    );
  }
  const upper = words.map((word) => word.toUpperCase());
  const [secondText = "", minuteText = "", hourText = "", dayText = "", monthText = "", weekdayText = "", yearText] =
    upper.length === 5 ? ["0", ...upper] : upper;
  const second = parseField(SECOND_FIELD, secondText);
  const minute = parseField(MINUTE_FIELD, minuteText);
  const hour = parseField(HOUR_FIELD, hourText);
  const day = parseField(DAY_OF_MONTH_FIELD, dayText);
  const month = parseField(MONTH_FIELD, monthText);
  const weekday = parseField(DAY_OF_WEEK_FIELD, weekdayText);
  const year = yearText === undefined ? undefined : parseField(YEAR_FIELD, yearText);

  const hours = new Set(fieldValues(hour, seed));
  const calendar: Calendar = {
    seconds: toStepTable(fieldValues(second, seed), 59),
    minutes: toStepTable(fieldValues(minute, seed), 59),
    hours: toStepTable(hours, 23),
    months: toStepTable(fieldValues(month, seed), 12),
    days: dayRules(day, weekday, seed),
    years: year === undefined || year.any ? undefined : fieldValues(year, seed),
    everyHour: hours.size === 24,
    repeatsInOverlap: hours.size === 24 || (hour.stepped && hours.size > 1),
  };
  if (!canFire(calendar)) throw new CronSyntaxError("it never fires: no year has such a day");

  const warnings = [second, minute, hour, day, month, weekday, year].flatMap((field) => field?.warnings ?? []);
  if (words.length === 6) warnings.push("there are 6 fields: the first is the second");
  if (!day.any && !weekday.any) warnings.push("day of month and day of week are both set: either matches");
  else warnings.push(...rareDays(calendar));
  return { rule: { kind: "calendar", calendar }, warnings };
}

/** Says when the days that are asked for are missing from some of the months, or from most of the years. */
function rareDays({ days, months }: Calendar): string[] {
  const isOnlyByNumber =
    days.weekdayBits === 0 &&
    [days.daysBeforeLast, days.nearestWeekdays, days.nthWeekdays, days.lastOfWeekdays].every(
      ({ length }) => length === 0,
    );
  if (!isOnlyByNumber || days.lastWeekday || days.dayBits === 0) return [];
  const firstDay = 31 - Math.clz32(days.dayBits & -days.dayBits);
  const taken = Array.from({ length: 12 }, (_, index) => index + 1).filter((month) => months[month] === month);
  const short = taken.filter((month) => new Date(Date.UTC(2027, month, 0)).getUTCDate() < firstDay);
  if (short.length === 0) return [];
  if (taken.every((month) => month === 2)) return ["February 29 comes in leap years only"];
  return [`months without a day ${firstDay} are left out; L is the last day of every month`];
}

function dayRules(day: CronField, weekday: CronField, seed: string): Calendar["days"] {
  // Either field matches when both are set; a field that takes every day leaves the choice to the other one.
  const takesWeekdays = !weekday.any;
  const takesDays = !day.any || weekday.any;
  return {
    dayBits: takesDays ? toBits(fieldValues(day, seed)) : 0,
    daysBeforeLast: takesDays ? day.daysBeforeLast : [],
    nearestWeekdays: takesDays ? day.nearestWeekdays : [],
    lastWeekday: takesDays && day.lastWeekday,
    weekdayBits: takesWeekdays ? toBits(fieldValues(weekday, seed)) : 0,
    nthWeekdays: takesWeekdays ? weekday.nthWeekdays : [],
    lastOfWeekdays: takesWeekdays ? weekday.lastOfWeekdays : [],
  };
}

function toBits(values: readonly number[]): number {
  return values.reduce((bits, value) => bits | (1 << value), 0);
}

function canFire(calendar: Calendar): boolean {
  const firstYear = calendar.years?.[0] ?? YEAR_FIELD.min;
  const lastYear = calendar.years?.at(-1) ?? firstYear + IMPOSSIBLE_AFTER_YEARS;
  return firstMatchAt(calendar, Date.UTC(firstYear, 0, 1), lastYear) !== undefined;
}
