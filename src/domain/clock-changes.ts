import { firstMatchAt } from "./calendar.ts";
import { nextFireAt, type Schedule } from "./schedule.ts";
import { offsetPeriodAt } from "./time-zone.ts";

/** Skipped times of one gap are counted one by one up to here. */
const MAX_COUNTED = 1000;

/** How a fire has to do with a change of the clock. Wall times are what UTC would show for the same date and time. */
export type ClockNote =
  /** It stands for a time that the clock skips. */
  | { readonly kind: "after_gap"; readonly skippedWallMs: number }
  /** The clock shows its time twice, and this is the first or the second. */
  | { readonly kind: "first_of_two" | "second_of_two" };

/** What a fire of the schedule has to do with a change of the clock, or undefined for nothing. */
export function clockNoteOf(schedule: Schedule, fireAt: Date): ClockNote | undefined {
  const { rule } = schedule;
  if (rule.kind === "interval") return undefined;
  const atMs = fireAt.getTime();
  const period = offsetPeriodAt(schedule.timezone, atMs);
  const wallMs = atMs + period.offsetMs;
  const year = new Date(wallMs).getUTCFullYear();
  if (firstMatchAt(rule.calendar, wallMs, year) !== wallMs) {
    return { kind: "after_gap", skippedWallMs: atMs + period.offsetBeforeMs };
  }
  if (wallMs < period.startMs + period.offsetBeforeMs) return { kind: "second_of_two" };
  const after = offsetPeriodAt(schedule.timezone, period.endMs === Number.POSITIVE_INFINITY ? atMs : period.endMs);
  return after !== period && wallMs >= after.startMs + after.offsetMs ? { kind: "first_of_two" } : undefined;
}

/** Times of one gap that do not fire, because the schedule lets them pass. */
export interface SkippedTimes {
  /** The instants at which the first and the last of them would fire after the gap. */
  readonly from: Date;
  readonly to: Date;
  /** How many, at least 1 and at most 1000. */
  readonly count: number;
}

/**
 * The times that `dstGap` `skip` lets pass after `after` and up to `until`, a gap at a time. A time whose instant fires by
 * itself is not one of them.
 */
export function skippedInGaps(schedule: Schedule, after: Date, until: Date): SkippedTimes[] {
  const { rule } = schedule;
  if (schedule.dstGap !== "skip" || rule.kind === "interval" || rule.calendar.everyHour) return [];
  const skipped: SkippedTimes[] = [];
  let atMs = after.getTime() + 1;
  const startMs = schedule.startAt?.getTime() ?? Number.NEGATIVE_INFINITY;
  const endMs = Math.min(until.getTime(), schedule.endAt?.getTime() ?? Number.POSITIVE_INFINITY);
  while (atMs <= endMs) {
    const period = offsetPeriodAt(schedule.timezone, atMs);
    const instants: number[] = [];
    const gapEndWallMs = period.startMs + period.offsetMs;
    const lastYear = new Date(gapEndWallMs).getUTCFullYear();
    let wallMs = Math.ceil((Math.max(atMs, startMs) + period.offsetBeforeMs) / 1000) * 1000;
    while (wallMs < gapEndWallMs && instants.length < MAX_COUNTED) {
      const matchMs = firstMatchAt(rule.calendar, wallMs, lastYear);
      if (matchMs === undefined || matchMs >= gapEndWallMs) break;
      const instantMs = matchMs - period.offsetBeforeMs;
      if (instantMs > endMs) break;
      if (nextFireAt(schedule, new Date(instantMs - 1))?.getTime() !== instantMs) instants.push(instantMs);
      wallMs = matchMs + 1000;
    }
    const [first] = instants;
    if (first !== undefined) {
      skipped.push({ from: new Date(first), to: new Date(instants.at(-1) ?? first), count: instants.length });
    }
    atMs = period.endMs;
  }
  return skipped;
}
