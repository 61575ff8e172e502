import type { Calendar, DayRules, StepTable } from "./calendar.ts";
import type { FixedInterval } from "./fixed-interval.ts";
import type { Schedule } from "./schedule.ts";

const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const WEEKDAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const ORDINALS = ["", "first", "second", "third", "fourth", "fifth"];
/** Times of the day that are named one by one. */
const MAX_NAMED_TIMES = 6;

/**
 * When a schedule fires, in plain words. It is said of what was understood, not of what was written: an `H` shows as the
 * value that was drawn, and a step that reaches over its range as the one value that it leaves.
 */
export function describeSchedule({ rule }: Schedule): string {
  if (rule.kind === "interval") return describeInterval(rule.interval);
  const { calendar } = rule;
  const parts = [timesOf(calendar), daysOf(calendar.days), monthsOf(calendar), yearsOf(calendar)];
  return parts.filter((part) => part !== "").join(" ");
}

function describeInterval({ intervalMs, phaseMs }: FixedInterval): string {
  return `every ${durationOf(intervalMs)}${phaseMs === 0 ? "" : `, ${durationOf(phaseMs)} after each multiple of it`}`;
}

function durationOf(ms: number): string {
  let rest = ms / 1000;
  const words: string[] = [];
  for (const [unit, seconds] of [["day", 86_400] as const, ["hour", 3600] as const, ["minute", 60] as const]) {
    const count = Math.floor(rest / seconds);
    if (count > 0) words.push(counted(count, unit));
    rest -= count * seconds;
  }
  if (rest > 0) words.push(counted(rest, "second"));
  const [only = ""] = words;
  // "every day" rather than "every 1 day".
  return words.length === 1 ? only.replace(/^1 /, "") : words.join(" ");
}

function timesOf({ seconds, minutes, hours }: Calendar): string {
  const second = valuesOf(seconds);
  const minute = valuesOf(minutes);
  const hour = valuesOf(hours);
  if (second.length * minute.length * hour.length <= MAX_NAMED_TIMES) {
    const times = hour.flatMap((h) => minute.flatMap((m) => second.map((s) => clock(h, m, s === 0 ? [] : [s]))));
    return `at ${listed(times)}`;
  }
  const isOnTheMinute = second.length === 1 && second[0] === 0;
  const bySecond = isOnTheMinute ? "" : paceOf(second, 60, "second");
  const isEveryMinute = minute.length === 60;
  const byMinute = isEveryMinute && !isOnTheMinute ? "" : paceOf(minute, 60, "minute");
  const everyHour = hour.length === 24;
  if (everyHour && minute.length === 1 && isOnTheMinute) {
    return minute[0] === 0 ? "every hour" : `at minute ${minute[0]} of every hour`;
  }
  const pace =
    bySecond === "" || byMinute === "" ? bySecond + byMinute : `${bySecond} of ${byMinute.replace(/^at /, "")}`;
  const ofEveryHour = everyHour && minute.length < 60 && !byMinute.startsWith("every") ? " of every hour" : "";
  return everyHour ? `${pace}${ofEveryHour}` : `${pace} of ${hoursOf(hour)}`;
}

function hoursOf(hour: readonly number[]): string {
  const pace = paceOf(hour, 24, "hour");
  return pace.startsWith("every")
    ? pace
        .replace(/^every (\d+) hours/, "each $1th hour")
        .replace("2th", "2nd")
        .replace("3th", "3rd")
    : pace.replace(/^at /, "");
}

/** "every 15 minutes", "minute 5", "minutes 0 to 9 and 30". */
function paceOf(values: readonly number[], size: number, unit: string): string {
  const [first = 0, second = 0] = values;
  if (values.length === size) return `every ${unit}`;
  const step = second - first;
  const isEven = values.length > 1 && step > 1 && values.length === size / step;
  if (isEven && values.every((value, index) => value === first + index * step)) {
    return `every ${step} ${unit}s${first === 0 ? "" : ` from ${unit} ${first} on`}`;
  }
  return `at ${nounFor(values, unit)} ${ranges(values, String)}`;
}

function daysOf(days: DayRules): string {
  const inMonth: string[] = [];
  const numbers = bitsOf(days.dayBits, 31);
  if (numbers.length > 0 && numbers.length < 31) inMonth.push(`${nounFor(numbers, "day")} ${ranges(numbers, String)}`);
  for (const distance of days.daysBeforeLast) {
    inMonth.push(distance === 0 ? "the last day" : `the day ${counted(distance, "day")} before the last`);
  }
  for (const day of days.nearestWeekdays) inMonth.push(`the Monday to Friday nearest to day ${day}`);
  if (days.lastWeekday) inMonth.push("the last Monday to Friday");
  const inWeek: string[] = [];
  const weekdays = bitsOf(days.weekdayBits, 6);
  if (weekdays.length === 7) return "";
  // Monday to Sunday, so that a weekend is one range.
  const fromMonday = weekdays.map((weekday) => (weekday + 6) % 7).sort((a, b) => a - b);
  if (weekdays.length > 0) inWeek.push(ranges(fromMonday, (value) => WEEKDAYS[(value + 1) % 7] ?? ""));
  for (const { weekday, nth } of days.nthWeekdays) inWeek.push(`the ${ORDINALS[nth]} ${WEEKDAYS[weekday]}`);
  for (const weekday of days.lastOfWeekdays) inWeek.push(`the last ${WEEKDAYS[weekday]}`);
  if (numbers.length === 31 || (inMonth.length === 0 && inWeek.length === 0)) return "";
  const ofMonth = inMonth.length === 0 ? "" : `${listed(inMonth)} of the month`;
  return `on ${[ofMonth, listed(inWeek)].filter((part) => part !== "").join(", or on ")}`;
}

function monthsOf({ months }: Calendar): string {
  const taken = valuesOf(months);
  return taken.length === 12 ? "" : `in ${ranges(taken, (month) => MONTHS[month - 1] ?? "")}`;
}

function yearsOf({ years }: Calendar): string {
  return years === undefined ? "" : `in ${ranges(years, String)}`;
}

function valuesOf(table: StepTable): number[] {
  const values: number[] = [];
  for (let value = table[0] ?? -1; value >= 0; value = table[value + 1] ?? -1) values.push(value);
  return values;
}

function bitsOf(bits: number, last: number): number[] {
  return Array.from({ length: last + 1 }, (_, value) => value).filter((value) => (bits & (1 << value)) !== 0);
}

/** "1 to 5, 9 and 12". Runs of three and more are written as ranges. */
function ranges(values: readonly number[], name: (value: number) => string): string {
  const words: string[] = [];
  for (let start = 0; start < values.length; ) {
    let end = start;
    while (values[end + 1] === (values[end] ?? 0) + 1) end++;
    const [first = 0, last = 0] = [values[start], values[end]];
    if (end - start >= 2) words.push(`${name(first)} to ${name(last)}`);
    else words.push(...values.slice(start, end + 1).map(name));
    start = end + 1;
  }
  return listed(words);
}

function listed(words: readonly string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

function clock(...[hour, minute, rest]: [number, number, readonly number[]]): string {
  return [hour, minute, ...rest].map((value) => String(value).padStart(2, "0")).join(":");
}

function nounFor(values: readonly number[], unit: string): string {
  return values.length === 1 ? unit : `${unit}s`;
}

function counted(count: number, unit: string): string {
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}
