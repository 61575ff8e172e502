import { Refusal } from "../errors.ts";
import { type Calendar, firstMatchAt } from "./calendar.ts";
import { type CronExpression, type FireRule, MAX_EXPRESSION_LENGTH, parseCronExpression } from "./cron-expression.ts";
import { CronSyntaxError } from "./cron-field.ts";
import { nextOfInterval } from "./fixed-interval.ts";
import { LruCache } from "./lru-cache.ts";
import { canonicalZoneName, type OffsetPeriod, offsetPeriodAt, parseTimeZone } from "./time-zone.ts";

const SECOND_MS = 1000;
const HOUR_MS = 3_600_000;
/** No zone was ever further from UTC than 15 h 13 min (America/Juneau and Asia/Manila before 1900). */
const MAX_OFFSET_MS = 16 * HOUR_MS;
/** More than any clock was ever set back. */
const MAX_OVERLAP_MS = 26 * HOUR_MS;
/**
 * How far ahead a fire is looked for: the rarest day, February 29 on a given weekday, comes at least every 40 years.
 */
const HORIZON_YEARS = 100;
const MAX_YEAR = 9999;

/** What becomes of a time that the clock skips: it fires later by the length of the gap, or not at all. */
export type DstGap = "run_after" | "skip";

/**
 * How often a time that the clock shows twice fires. `auto`: once, or both times where the hour field is a wildcard or a
 * step.
 */
export type DstOverlap = "auto" | "once" | "twice";

/** The rules of a schedule that its expression does not say. */
export interface ScheduleRules {
  readonly dstGap: DstGap;
  readonly dstOverlap: DstOverlap;
  /** No fire is before this instant; null for no bound. */
  readonly startAt: Date | null;
  /** No fire is after this instant; null for no bound. */
  readonly endAt: Date | null;
}

/** The rules of a schedule for which nobody named any. */
export const DEFAULT_RULES: ScheduleRules = Object.freeze({
  dstGap: "run_after",
  dstOverlap: "auto",
  startAt: null,
  endAt: null,
});

/** A parsed schedule. Immutable. */
export interface Schedule extends ScheduleRules {
  /**
   * The normalised text: single blanks, upper case fields, no time zone prefix. Parsing it again gives the same
   * schedule.
   */
  readonly expression: string;
  /** IANA name in the case of the tz database. */
  readonly timezone: string;
  /** What is legal but may surprise, in plain words. */
  readonly warnings: readonly string[];
  readonly rule: FireRule;
}

/** What a caller gives for a schedule. */
export interface ScheduleInput {
  /** At most 256 characters. A `TZ=<zone>` or `CRON_TZ=<zone>` word may lead it. */
  readonly expression: string;
  /** IANA name; empty means not given: the prefix of the expression, else UTC. */
  readonly timezone: string;
  /** Decides `H`: the job's id. */
  readonly seed: string;
  /** The contract's name of the expression in refusals; `cron_expr` when absent. */
  readonly field?: string;
  /** The contract's name of the zone in refusals; `timezone` when absent. */
  readonly timezoneField?: string;
  /** When given, a schedule that has no fire after it is refused too, such as one for a past year. */
  readonly now?: Date;
  /** `DEFAULT_RULES` when absent. */
  readonly rules?: ScheduleRules;
}

const schedules = new LruCache<Schedule>(4096);

/**
 * The schedule of an expression in a time zone.
 *
 * @throws Refusal CRON_EXPR_INVALID for the expression, TIMEZONE_INVALID for the zone.
 */
export function parseSchedule(input: ScheduleInput): Schedule {
  const field = input.field ?? "cron_expr";
  const timezone = input.timezone === "" ? "" : parseTimeZone(input.timezone, input.timezoneField);
  try {
    if (input.expression.length > MAX_EXPRESSION_LENGTH) {
      throw new CronSyntaxError(`it is longer than ${MAX_EXPRESSION_LENGTH} characters`);
    }
    // Only H reads the seed: without one, all jobs with the same text share an entry.
    const seed = /h/i.test(input.expression) ? input.seed : "";
    const schedule = schedules.getOrBuild(JSON.stringify([input.expression, timezone, seed]), () => {
      const expression = parseCronExpression(input.expression, seed);
      return toSchedule(expression, timezone);
    });
    if (input.now !== undefined && nextFireAt(schedule, input.now) === undefined) {
      throw new CronSyntaxError("it never fires again: its last time is past");
    }
    return input.rules === undefined ? schedule : Object.freeze({ ...schedule, ...input.rules });
  } catch (error) {
    if (error instanceof CronSyntaxError) throw Refusal.field(field, error.message, "CRON_EXPR_INVALID");
    throw error;
  }
}

function toSchedule(expression: CronExpression, timezone: string): Schedule {
  const prefix = expression.timezonePrefix;
  const prefixZone = prefix === undefined ? undefined : canonicalZoneName(prefix);
  if (prefix !== undefined && prefixZone === undefined) {
    throw new CronSyntaxError("its time zone prefix is not an IANA time zone such as Europe/Berlin or UTC");
  }
  if (prefixZone !== undefined && timezone !== "" && prefixZone !== timezone) {
    throw new CronSyntaxError(`its prefix says ${prefixZone} and the time zone given beside it is ${timezone}`);
  }
  return Object.freeze({
    expression: expression.text,
    timezone: prefixZone ?? (timezone === "" ? "UTC" : timezone),
    warnings: Object.freeze([...expression.warnings]),
    rule: expression.rule,
    ...DEFAULT_RULES,
  });
}

/**
 * The first instant strictly after `after` at which the schedule fires, or undefined when it never fires again.
 *
 * A fixed interval fires by elapsed time. Every other schedule fires whenever the wall clock of its zone shows a time
 * that matches, and where the clock is changed:
 * - Gap (set forward): a matching time that the clock skips fires later by the length of the gap, so 02:30 in a gap of
 *   one hour fires when the clock shows 03:30 (the rule of RFC 5545, section 3.3.5). Where that instant matches by
 *   itself it is still one fire. A schedule for every hour of the day is not made up for: the next hour has its own
 *   fire. With `dstGap` `skip` nothing is made up for.
 * - Overlap (set back): a matching time that the clock shows twice fires the first time only. Where the hour field is a
 *   wildcard or a step with several values (`*`, `*\/2`, `8-18/2`, `H/6`) it fires both times. `dstOverlap` `once` and
 *   `twice` say the same of any fields.
 *
 * `startAt` and `endAt` are within the bounds. The work is bounded: a fire is looked for in the 100 years after `after`,
 * to the year 9999 at most. Nothing fires before 1970.
 */
export function nextFireAt(schedule: Schedule, after: Date): Date | undefined {
  const afterMs = after.getTime();
  if (Number.isNaN(afterMs)) throw new RangeError("after is not a date");
  const { rule, startAt, endAt } = schedule;
  const boundMs = Math.max(afterMs, startAt === null ? -1 : startAt.getTime() - 1, -1);
  const lastMs = Math.min(endAt?.getTime() ?? Number.POSITIVE_INFINITY, Date.UTC(MAX_YEAR + 1) - 1);
  if (boundMs >= lastMs) return undefined;
  const nextMs =
    rule.kind === "interval"
      ? nextOfInterval(rule.interval, boundMs)
      : nextOfCalendar(rule.calendar, schedule, boundMs);
  return nextMs === undefined || nextMs > lastMs ? undefined : new Date(nextMs);
}

/** Whether a time that the clock skips fires after the gap. */
function fillsGaps(calendar: Calendar, { dstGap }: Pick<Schedule, "dstGap">): boolean {
  return dstGap === "run_after" && !calendar.everyHour;
}

/** Whether a time that the clock shows twice fires both times. */
function repeatsInOverlap(calendar: Calendar, { dstOverlap }: Pick<Schedule, "dstOverlap">): boolean {
  return dstOverlap === "auto" ? calendar.repeatsInOverlap : dstOverlap === "twice";
}

function nextOfCalendar(calendar: Calendar, schedule: Schedule, afterMs: number): number | undefined {
  const fills = fillsGaps(calendar, schedule);
  const repeats = repeatsInOverlap(calendar, schedule);
  let fromMs = (Math.floor(afterMs / SECOND_MS) + 1) * SECOND_MS;
  const startYear = new Date(fromMs).getUTCFullYear();
  const lastYear = Math.min(calendar.years?.at(-1) ?? startYear + HORIZON_YEARS, MAX_YEAR);
  // The first day of `lastYear + 1` in UTC may still be in `lastYear` on the wall.
  const endMs = Math.min(Date.UTC(lastYear + 1, 0, 2), Date.UTC(MAX_YEAR + 1));

  // Every turn moves to a later period of constant offset, so `fromMs` reaches `endMs`.
  while (fromMs < endMs) {
    const period = offsetPeriodAt(schedule.timezone, fromMs);
    const gapMs = fills ? firstFromGap(calendar, period, fromMs, lastYear) : Number.POSITIVE_INFINITY;
    const wallMs = firstMatchAt(calendar, firstWallTime(period, fromMs, repeats), lastYear);
    const plainMs = wallMs === undefined ? Number.POSITIVE_INFINITY : wallMs - period.offsetMs;
    const nextMs = Math.min(gapMs, plainMs);
    if (nextMs < period.endMs) return nextMs;

    // Close to the end of the period the clock may be about to be set back, to times before `wallMs`.
    const isNearEnd = fromMs > period.endMs - MAX_OVERLAP_MS;
    if (wallMs === undefined && !isNearEnd) return undefined;
    fromMs = isNearEnd || wallMs === undefined ? period.endMs : Math.max(period.endMs, wallMs - MAX_OFFSET_MS);
  }
  return undefined;
}

/** The wall time at `fromMs`, or the end of the overlap for schedules that fire only the first time. */
function firstWallTime(period: OffsetPeriod, fromMs: number, repeats: boolean): number {
  const wallMs = fromMs + period.offsetMs;
  if (repeats || period.offsetBeforeMs <= period.offsetMs) return wallMs;
  return Math.max(wallMs, period.startMs + period.offsetBeforeMs);
}

/** The first instant from `fromMs` on that stands for a time inside the gap at the start of the period, or infinity. */
function firstFromGap(calendar: Calendar, period: OffsetPeriod, fromMs: number, lastYear: number): number {
  const gapEndWallMs = period.startMs + period.offsetMs;
  const wallMs = fromMs + period.offsetBeforeMs;
  if (wallMs >= gapEndWallMs) return Number.POSITIVE_INFINITY;
  const skippedMs = firstMatchAt(calendar, wallMs, lastYear);
  return skippedMs !== undefined && skippedMs < gapEndWallMs
    ? skippedMs - period.offsetBeforeMs
    : Number.POSITIVE_INFINITY;
}
