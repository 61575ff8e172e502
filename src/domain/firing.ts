import { skippedInGaps } from "./clock-changes.ts";
import { type MisfirePolicy, type MissedFires, missedFires, planFires } from "./misfire.ts";
import { decideOverlap, type OverlapPolicy } from "./overlap.ts";
import { RUN_ERRORS } from "./run.ts";
import { nextFireAt, type Schedule } from "./schedule.ts";
import { effectiveAt, type Spreading } from "./spreading.ts";

/** The live runs of one cron job. */
export interface LiveRuns {
  /** Pending or running. */
  readonly underWay: number;
  /** Failed, with another attempt to come. */
  readonly retrying: number;
  /** Held back by overlap policy queue. */
  readonly waiting: number;
}

/** What becomes of one new run under the overlap policy, and of the runs before it. */
export type Admission =
  | { readonly kind: "start" /** Runs between two attempts fail. */; readonly giveWay: boolean }
  | { readonly kind: "cancel_previous" }
  | { readonly kind: "wait"; readonly dropOldest: boolean }
  | { readonly kind: "skip" };

/**
 * Decides about a new run. Under `skip` a run that only waits for its next attempt gives way: retries end at the next
 * fire time rather than block it.
 */
export function admit(policy: OverlapPolicy, live: LiveRuns): Admission {
  const liveCount = policy === "skip" ? live.underWay : live.underWay + live.retrying;
  const decision = decideOverlap(policy, liveCount, live.waiting);
  switch (decision.kind) {
    case "start":
      return { kind: "start", giveWay: policy === "skip" && live.retrying > 0 };
    case "enqueue":
      return { kind: "wait", dropOldest: decision.dropOldest };
    default:
      return decision;
  }
}

/** A cron job whose fire time has come. */
export interface DueJob {
  readonly cronId: string;
  readonly schedule: Schedule;
  readonly spreading: Spreading;
  readonly nextRunAt: Date;
  readonly misfirePolicy: MisfirePolicy;
  readonly misfireWindowSeconds: number;
  readonly overlapPolicy: OverlapPolicy;
  readonly live: LiveRuns;
  /** Scheduled runs that may still start; undefined for no end. */
  readonly runsLeft: number | undefined;
  /** Up to here each fire has been recorded. */
  readonly accountedUntil: Date;
}

/** A run to record. */
export interface PlannedRun {
  readonly fireAt: Date;
  /** When the first attempt is due. */
  readonly effectiveAt: Date;
  readonly trigger: "schedule" | "catch_up";
  readonly state: "pending" | "skipped" | "missed" | "canceled";
  readonly waiting: boolean;
  readonly error: string | null;
  /** Why it does not run, where the state does not say. */
  readonly cause: "dst_gap" | "paused" | "max_runs" | null;
  readonly fireCount: number;
  /** The last fire time of the stretch that it stands for; null for the one at fireAt. */
  readonly fireUntil: Date | null;
}

/** What a scheduler does about one cron job. */
export interface JobPlan {
  readonly runs: readonly PlannedRun[];
  /** Runs between two attempts fail, for the next fire time has come. */
  readonly giveWay: boolean;
  /** What was live before is canceled. */
  readonly cancelPrevious: boolean;
  /** So many of the runs that have waited longest are skipped. */
  readonly dropWaiting: number;
  /** The next value of next_run_at. Undefined: the job is completed. */
  readonly next: Date | undefined;
  /** Up to here each fire is in `runs`, or was before. */
  readonly accountedUntil: Date;
}

/** Decides all that a due cron job needs at `now`: which fire times run, which are missed, and how they overlap. */
export function planJob(job: DueJob, now: Date): JobPlan {
  const plan = planFires(job.schedule, job.nextRunAt, now, job.misfirePolicy, job.misfireWindowSeconds);
  const runs = unrecordedFires(job.schedule, job.accountedUntil, now, undefined);
  if (plan.missed !== undefined) runs.push(missedRun(plan.missed));
  const live = { ...job.live };
  let runsLeft = job.runsLeft ?? Number.POSITIVE_INFINITY;
  let giveWay = false;
  let cancelPrevious = false;
  let dropWaiting = 0;
  let restFrom: Date | undefined;

  for (const { fireAt, caughtUp } of plan.fire) {
    if (runsLeft <= 0) {
      restFrom = fireAt;
      break;
    }
    const trigger = caughtUp ? "catch_up" : "schedule";
    const admission = admit(job.overlapPolicy, live);
    const run = { fireAt, effectiveAt: effectiveAtOf(job, fireAt), trigger, ...SINGLE } as const;
    if (admission.kind === "skip") {
      runs.push({ ...run, state: "skipped", waiting: false, error: RUN_ERRORS.skipped });
      continue;
    }
    runsLeft--;
    runs.push({ ...run, state: "pending", waiting: admission.kind === "wait", error: null });
    if (admission.kind === "wait") {
      live.waiting++;
      if (admission.dropOldest) {
        dropWaiting++;
        live.waiting--;
        runsLeft++;
      }
      continue;
    }
    if (admission.kind === "start" && admission.giveWay) {
      giveWay = true;
      live.retrying = 0;
    }
    if (admission.kind === "cancel_previous") {
      cancelPrevious = true;
      // Of several fire times at once only the last one stays; the ones before it never start, so they do not count.
      runsLeft += cancelPlanned(runs);
      live.underWay = 0;
      live.retrying = 0;
    }
    live.underWay++;
  }
  const next = runsLeft <= 0 ? undefined : plan.next;
  restFrom ??= runsLeft <= 0 ? plan.next : undefined;
  const rest = restFrom && missedFires(job.schedule, restFrom, now);
  if (rest !== undefined) runs.push(nonRun(rest, "max_runs", RUN_ERRORS.maxRuns));
  const accountedUntil = next !== undefined && next <= now ? new Date(next.getTime() - 1) : now;
  return { runs, giveWay, cancelPrevious, dropWaiting, next, accountedUntil };
}

/** A run of one fire time, about which its state says all. */
export const SINGLE = { cause: null, fireCount: 1, fireUntil: null } as const;

/**
 * The rows for what was due after `since` up to `until` and that nobody records as it comes: of a job that was paused or
 * completed then (`cause`) its fire times as one stretch, and of any job the local times that clock changes skip.
 */
export function unrecordedFires(
  schedule: Schedule,
  since: Date,
  until: Date,
  cause: "paused" | "max_runs" | undefined,
): PlannedRun[] {
  const rows = skippedInGaps(schedule, since, until).map((skipped) =>
    nonRun({ ...skipped, countIsCapped: false }, "dst_gap", RUN_ERRORS.dstGap),
  );
  const first = cause === undefined ? undefined : nextFireAt(schedule, since);
  const idle = first && missedFires(schedule, first, until);
  if (idle !== undefined) {
    rows.push(nonRun(idle, cause ?? null, cause === "paused" ? RUN_ERRORS.paused : RUN_ERRORS.maxRuns));
  }
  return rows;
}

function nonRun(fires: MissedFires, cause: PlannedRun["cause"], error: string): PlannedRun {
  const counted = fires.countIsCapped ? `: at least ${fires.count} fire times` : "";
  return {
    fireAt: fires.from,
    effectiveAt: fires.from,
    trigger: "schedule",
    state: "skipped",
    waiting: false,
    error: `${error}${counted}`,
    cause,
    fireCount: fires.count,
    fireUntil: fires.count > 1 ? fires.to : null,
  };
}

function effectiveAtOf({ cronId, schedule, spreading }: DueJob, fireAt: Date): Date {
  const isSpread = spreading.spreadSeconds > 0 || spreading.jitterSeconds > 0;
  return isSpread ? effectiveAt(spreading, cronId, fireAt, nextFireAt(schedule, fireAt)) : fireAt;
}

function cancelPlanned(runs: PlannedRun[]): number {
  let canceled = 0;
  for (const [index, run] of runs.entries()) {
    if (run.state !== "pending" || index === runs.length - 1) continue;
    runs[index] = { ...run, state: "canceled", error: RUN_ERRORS.replaced };
    canceled++;
  }
  return canceled;
}

function missedRun(missed: MissedFires): PlannedRun {
  const count = `${missed.countIsCapped ? "at least " : ""}${missed.count}`;
  const error =
    missed.count === 1
      ? "the fire time passed while no node could act"
      : `${count} fire times up to ${missed.to.toISOString()} passed while no node could act`;
  return { ...nonRun(missed, null, error), state: "missed", error };
}
