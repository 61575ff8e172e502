import { CronExpressionParser } from "cron-parser";

/** What is wrong with an expression, in words that name the field and the rule. `parseSchedule` makes it a refusal. */
export class CronSyntaxError extends Error {
  override readonly name = "CronSyntaxError";
}

/** One of the seven fields. */
export interface FieldSpec {
  readonly name: "second" | "minute" | "hour" | "day of month" | "month" | "day of week" | "year";
  readonly min: number;
  /** Largest value that may be written. */
  readonly max: number;
  /** Largest value of the cycle: 6 for the day of week, where 7 is another name of 0. */
  readonly cycleMax: number;
  /** Range of `H`: the days 29 to 31 are left out, so that a hashed day exists in every month. */
  readonly hashMax: number;
  /** Names for the values from `min` on. */
  readonly names: readonly string[];
  /** How often a field with one value fires. */
  readonly cycle: string;
  /** What the values are counted within. */
  readonly whole: string;
}

const MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const spec = (name: FieldSpec["name"], min: number, max: number, cycle: string, whole: string): FieldSpec => ({
  name,
  min,
  max,
  cycleMax: max,
  hashMax: max,
  names: [],
  cycle,
  whole,
});

/** The years that may be written, as in Quartz. */
export const YEAR_FIELD: FieldSpec = spec("year", 1970, 2099, "in one year only", "cycle of years");

/** The six fields of a repeating calendar, in the order of the text. */
export const SECOND_FIELD: FieldSpec = spec("second", 0, 59, "once a minute", "minute");
export const MINUTE_FIELD: FieldSpec = spec("minute", 0, 59, "once an hour", "hour");
export const HOUR_FIELD: FieldSpec = spec("hour", 0, 23, "once a day", "day");
export const DAY_OF_MONTH_FIELD: FieldSpec = { ...spec("day of month", 1, 31, "once a month", "month"), hashMax: 28 };
export const MONTH_FIELD: FieldSpec = { ...spec("month", 1, 12, "once a year", "year"), names: MONTHS };
export const DAY_OF_WEEK_FIELD: FieldSpec = {
  ...spec("day of week", 0, 7, "once a week", "week"),
  cycleMax: 6,
  hashMax: 6,
  names: WEEKDAYS,
};

const REPEATING_FIELDS: readonly FieldSpec["name"][] = [
  "second",
  "minute",
  "hour",
  "day of month",
  "month",
  "day of week",
];

/** A field taken apart: the days that only we understand, and the rest in the words of cron-parser. */
export interface CronField {
  readonly spec: FieldSpec;
  /** The other items, each as a number, a range with a step, or a hash that cron-parser reads. */
  readonly plain: readonly string[];
  /** Some item is a bare `*` or `?`: the field takes every value. */
  readonly any: boolean;
  /** Some item is a wildcard or has a step. */
  readonly stepped: boolean;
  readonly daysBeforeLast: readonly number[];
  readonly nearestWeekdays: readonly number[];
  readonly lastWeekday: boolean;
  readonly nthWeekdays: readonly { readonly weekday: number; readonly nth: number }[];
  readonly lastOfWeekdays: readonly number[];
  readonly warnings: readonly string[];
}

/**
 * Checks one field and takes it apart. `text` is upper case, without blanks, at most 256 characters.
 *
 * @throws CronSyntaxError
 */
export function parseField(spec: FieldSpec, text: string): CronField {
  const plain: string[] = [];
  const warnings: string[] = [];
  const daysBeforeLast: number[] = [];
  const nearestWeekdays: number[] = [];
  const nthWeekdays: { weekday: number; nth: number }[] = [];
  const lastOfWeekdays: number[] = [];
  let lastWeekday = false;
  let any = false;
  let stepped = false;

  for (const item of text.split(",")) {
    if (item === "") fail(spec, "a list has an empty item");
    if (spec.name === "day of month" && item === "LW") lastWeekday = true;
    else if (spec.name === "day of month" && item === "L") daysBeforeLast.push(0);
    else if (spec.name === "day of month" && item.startsWith("L-")) {
      daysBeforeLast.push(number(spec, item.slice(2), 1, 30));
    } else if (spec.name === "day of month" && item.endsWith("W")) {
      nearestWeekdays.push(value(spec, item.slice(0, -1)));
    } else if (spec.name === "day of week" && item.includes("#")) {
      const hash = item.indexOf("#");
      const weekday = value(spec, item.slice(0, hash)) % 7;
      nthWeekdays.push({ weekday, nth: number(spec, item.slice(hash + 1), 1, 5) });
    } else if (spec.name === "day of week" && item === "L") {
      fail(spec, "L needs a day in front, as in 5L for the last Friday of the month");
    } else if (spec.name === "day of week" && item.endsWith("L")) {
      lastOfWeekdays.push(value(spec, item.slice(0, -1)) % 7);
    } else {
      const parsed = parseItem(spec, item);
      plain.push(parsed.text);
      any ||= parsed.any;
      stepped ||= parsed.stepped;
      if (parsed.warning !== undefined) warnings.push(parsed.warning);
    }
  }
  return {
    spec,
    plain,
    any,
    stepped,
    daysBeforeLast,
    nearestWeekdays,
    lastWeekday,
    nthWeekdays,
    lastOfWeekdays,
    warnings,
  };
}

/**
 * The values of the plain items of a field. `H` is drawn from `seed` and the field's name, so `H H` are two draws.
 * cron-parser reads one item at a time: it refuses lists that name a value twice, and it checks days against months by
 * rules that do not know of "either day matches".
 */
export function fieldValues(field: CronField, seed: string): readonly number[] {
  const { spec } = field;
  const values = new Set<number>();
  for (const item of new Set(field.plain)) {
    const itemValues = spec.name === "year" ? yearValues(item) : repeatingValues(spec, item, seed);
    for (const value of itemValues) values.add(value > spec.cycleMax ? spec.min : value);
  }
  return [...values].sort((a, b) => a - b);
}

function repeatingValues(spec: FieldSpec, item: string, seed: string): readonly number[] {
  const column = REPEATING_FIELDS.indexOf(spec.name);
  const columns = REPEATING_FIELDS.map((_, index) => (index === column ? item : "*"));
  const { fields } = CronExpressionParser.parse(columns.join(" "), { hashSeed: `${seed}:${spec.name}` });
  const inOrder = [fields.second, fields.minute, fields.hour, fields.dayOfMonth, fields.month, fields.dayOfWeek];
  return (inOrder[column]?.values ?? []).map(Number);
}

/** cron-parser knows no years. `item` is a year or a range with a step. */
function yearValues(item: string): readonly number[] {
  const years: number[] = [];
  const [range = "", step = "1"] = item.split("/");
  const [first = "", last = first] = range.split("-");
  for (let year = Number(first); year <= Number(last); year += Number(step)) years.push(year);
  return years;
}

interface ParsedItem {
  readonly text: string;
  readonly any: boolean;
  readonly stepped: boolean;
  readonly warning?: string;
}

function parseItem(spec: FieldSpec, item: string): ParsedItem {
  const slash = item.indexOf("/");
  const base = slash < 0 ? item : item.slice(0, slash);
  const step = slash < 0 ? undefined : number(spec, item.slice(slash + 1), 1, 9999);

  if (base === "*" || base === "?") {
    if (step === undefined || step === 1) return { text: `${spec.min}-${spec.cycleMax}`, any: true, stepped: true };
    return { ...rangeItem(spec, item, spec.min, spec.cycleMax, step), ...unevenStep(spec, item, step) };
  }
  if (base.startsWith("H")) return hashedItem(spec, item, base, step);

  const dash = base.indexOf("-");
  if (dash < 0) {
    const first = value(spec, base);
    if (step === undefined) return { text: String(first), any: false, stepped: false };
    return rangeItem(spec, item, first > spec.cycleMax ? spec.min : first, spec.cycleMax, step);
  }
  const first = value(spec, base.slice(0, dash));
  const last = value(spec, base.slice(dash + 1));
  return rangeItem(spec, item, first, last, step);
}

function rangeItem(spec: FieldSpec, item: string, first: number, last: number, step: number | undefined): ParsedItem {
  const stepped = step !== undefined;
  if (first <= last) {
    return {
      text: `${first}-${last}/${step ?? 1}`,
      any: false,
      stepped,
      ...wideStep(spec, item, last - first + 1, step),
    };
  }
  if (spec.name === "year") fail(spec, `the range ${item} ends before it starts`);
  // A range that wraps (22-2) becomes a list, because cron-parser refuses it.
  const size = spec.cycleMax - spec.min + 1;
  const length = last - first + 1 + size;
  const values: number[] = [];
  for (let i = 0; i < length; i += step ?? 1) values.push(spec.min + ((first - spec.min + i) % size));
  return { text: values.join(","), any: false, stepped, ...wideStep(spec, item, length, step) };
}

function hashedItem(spec: FieldSpec, item: string, base: string, step: number | undefined): ParsedItem {
  if (spec.name === "year") fail(spec, "H is not offered here");
  let first = spec.min;
  let last = spec.hashMax;
  if (base !== "H") {
    const dash = base.indexOf("-");
    if (!base.startsWith("H(") || !base.endsWith(")") || dash < 0) fail(spec, `${base} must read H or H(from-to)`);
    first = number(spec, base.slice(2, dash), spec.min, spec.cycleMax);
    last = number(spec, base.slice(dash + 1, -1), spec.min, spec.cycleMax);
    if (first > last) fail(spec, `the range of ${base} ends before it starts`);
  }
  const text = `H(${first}-${last})`;
  if (step === undefined) return { text, any: false, stepped: false };
  return { text: `${text}/${step}`, any: false, stepped: true, ...wideStep(spec, item, last - first + 1, step) };
}

function wideStep(spec: FieldSpec, item: string, length: number, step: number | undefined): { warning?: string } {
  if (step === undefined || step < length || length === 1) return {};
  return { warning: `${item} in the ${spec.name} field fires ${spec.cycle}: the step is not smaller than the range` };
}

/** A wildcard's step that does not divide the whole: the count starts anew, so one interval is shorter. */
function unevenStep(spec: FieldSpec, item: string, step: number): { warning?: string } {
  const size = spec.cycleMax - spec.min + 1;
  if (spec.name === "year" || step >= size || size % step === 0) return {};
  return { warning: `${item} in the ${spec.name} field starts anew each ${spec.whole}: its last interval is shorter` };
}

function value(spec: FieldSpec, text: string): number {
  const index = spec.names.indexOf(text);
  if (index >= 0) return spec.min + index;
  return number(spec, text, spec.min, spec.max);
}

function number(spec: FieldSpec, text: string, min: number, max: number): number {
  // At most four digits, so the pattern cannot run long and the number is exact.
  if (!/^[0-9]{1,4}$/.test(text)) {
    const names = spec.names.length > 0 ? ` or a name such as ${spec.names[1]}` : "";
    fail(spec, text === "" ? "a number is missing" : `"${text}" is not a number${names}`);
  }
  const parsed = Number(text);
  if (parsed < min || parsed > max) fail(spec, `${text} is not within ${min} to ${max}`);
  return parsed;
}

function fail(spec: FieldSpec, detail: string): never {
  throw new CronSyntaxError(`${spec.name}: ${detail}`);
}
