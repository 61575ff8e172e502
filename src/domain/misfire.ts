import { nextOfInterval } from "./fixed-interval.ts";
import { nextFireAt, type Schedule } from "./schedule.ts";

/**
 * What happens to fire times that passed while nobody fired them:
 * none runs, only the latest runs, or every one runs.
 */
export type MisfirePolicy = "skip" | "once" | "all";

/** The policy of a job that names none. */
const DEFAULT_MISFIRE_POLICY: MisfirePolicy = "once";
/** How late a fire may be caught up, in seconds. */
const DEFAULT_MISFIRE_WINDOW_SECONDS = 3600;
/** A fire at most this late is on time: schedulers poll, restart and lose a connection for a moment. */
export const ON_TIME_MS = 10_000;
/** Most fires that one call hands out. */
export const MAX_FIRES_PER_CALL = 100;
/** Missed fires are counted one by one up to here. */
export const MAX_COUNTED_MISSES = 1000;

/** A fire to make now. */
export interface PlannedFire {
  /** The instant it stands for. */
  readonly fireAt: Date;
  /** It is more than 10 s late. */
  readonly caughtUp: boolean;
}

/** Fire times that passed and will not run. */
export interface MissedFires {
  /** The first of them. */
  readonly from: Date;
  /** The last of them. */
  readonly to: Date;
  /** How many, at least 1. */
  readonly count: number;
  /** There are more than `count`: counting ended at its bound. */
  readonly countIsCapped: boolean;
}

/** What a scheduler has to do about one cron job. */
export interface FirePlan {
  /** Oldest first, at most 100. */
  readonly fire: readonly PlannedFire[];
  readonly missed: MissedFires | undefined;
  /**
   * The next value of `next_run_at`. It is still due when `all` has more to hand out. Undefined: the schedule has
   * ended.
   */
  readonly next: Date | undefined;
}

/**
 * Decides which of the fire times from `dueAt` to `now` run. Those at most 10 s late are on time. If none is later than
 * that, each of them runs under any policy. Otherwise:
 * - `skip`: those on time run, the late ones are missed.
 * - `once`: only the latest runs, if it is within the window; the earlier ones are missed, on time or not.
 * - `all`: those within the window run, those before it are missed.
 *
 * The work is bounded however long the outage was.
 *
 * @param dueAt the stored fire time. It counts as one even if the schedule has changed since.
 * @param windowSeconds 10 to 31,536,000.
 */
export function planFires(
  schedule: Schedule,
  dueAt: Date,
  now: Date,
  policy: MisfirePolicy = DEFAULT_MISFIRE_POLICY,
  windowSeconds: number = DEFAULT_MISFIRE_WINDOW_SECONDS,
): FirePlan {
  if (dueAt > now) return { fire: [], missed: undefined, next: dueAt };
  const isLate = (fireAt: Date) => now.getTime() - fireAt.getTime() > ON_TIME_MS;
  const isLatestOnly = policy === "once" && isLate(dueAt);

  const first = isLatestOnly
    ? latestFireAt(schedule, dueAt, now)
    : firstFireFrom(schedule, dueAt, now.getTime() - (policy === "all" ? windowSeconds * 1000 : ON_TIME_MS));
  const isFirstInWindow = first !== undefined && now.getTime() - first.getTime() <= windowSeconds * 1000;

  const fire: PlannedFire[] = [];
  let next = first;
  if (isLatestOnly && !isFirstInWindow) next = nextFireAt(schedule, now);
  else {
    while (next !== undefined && next <= now && fire.length < MAX_FIRES_PER_CALL) {
      fire.push({ fireAt: next, caughtUp: isLate(next) });
      next = nextFireAt(schedule, next);
    }
  }
  const missedBefore = fire[0]?.fireAt.getTime() ?? now.getTime() + 1;
  return { fire, missed: missedFires(schedule, dueAt, new Date(missedBefore - 1)), next };
}

/** The first fire time that is not before `fromMs`; `dueAt` is the earliest one. */
function firstFireFrom(schedule: Schedule, dueAt: Date, fromMs: number): Date | undefined {
  return dueAt.getTime() >= fromMs ? dueAt : nextFireAt(schedule, new Date(Math.max(fromMs - 1, dueAt.getTime())));
}

/** The last fire time up to `until`, given that `dueAt` is one and is not after it. */
function latestFireAt(schedule: Schedule, dueAt: Date, until: Date): Date {
  // "The next fire after t is not after `until`" holds before the last fire and not from there on: it can be bisected.
  let latest = dueAt.getTime();
  let end = until.getTime();
  while (latest < end) {
    const middle = Math.floor((latest + end) / 2);
    const next = nextFireAt(schedule, new Date(middle));
    if (next !== undefined && next <= until) latest = next.getTime();
    else end = middle;
  }
  return new Date(latest);
}

/**
 * The fire times from `dueAt`, which is one, up to `until` as one stretch; undefined when `dueAt` is after it. Those of
 * expressions are counted one by one up to 1000, those of intervals are not.
 */
export function missedFires(schedule: Schedule, dueAt: Date, until: Date): MissedFires | undefined {
  if (dueAt > until) return undefined;
  const { rule } = schedule;
  if (rule.kind === "interval") {
    const { intervalMs } = rule.interval;
    const lastMs = nextOfInterval(rule.interval, until.getTime()) - intervalMs;
    const to = new Date(Math.max(lastMs, dueAt.getTime()));
    const count = 1 + Math.ceil((to.getTime() - dueAt.getTime()) / intervalMs);
    return { from: dueAt, to, count, countIsCapped: false };
  }
  let count = 1;
  let next = nextFireAt(schedule, dueAt);
  while (next !== undefined && next <= until && count < MAX_COUNTED_MISSES) {
    count++;
    next = nextFireAt(schedule, next);
  }
  const to = latestFireAt(schedule, dueAt, until);
  return { from: dueAt, to, count, countIsCapped: next !== undefined && next <= until };
}
