import { type MisfirePolicy, type MissedFires, planFires } from "./misfire.ts";
import { decideOverlap, type OverlapPolicy } from "./overlap.ts";
import { RUN_ERRORS } from "./run.ts";
import type { Schedule } from "./schedule.ts";

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
  readonly schedule: Schedule;
  readonly nextRunAt: Date;
  readonly misfirePolicy: MisfirePolicy;
  readonly misfireWindowSeconds: number;
  readonly overlapPolicy: OverlapPolicy;
  readonly live: LiveRuns;
  /** Scheduled runs that may still start; undefined for no end. */
  readonly runsLeft: number | undefined;
}

/** A run to record. */
export interface PlannedRun {
  readonly fireAt: Date;
  readonly trigger: "schedule" | "catch_up";
  readonly state: "pending" | "skipped" | "missed" | "canceled";
  readonly waiting: boolean;
  readonly error: string | null;
  readonly fireCount: number;
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
}

/** Decides all that a due cron job needs at `now`: which fire times run, which are missed, and how they overlap. */
export function planJob(job: DueJob, now: Date): JobPlan {
  const plan = planFires(job.schedule, job.nextRunAt, now, job.misfirePolicy, job.misfireWindowSeconds);
  const runs: PlannedRun[] = plan.missed === undefined ? [] : [missedRun(plan.missed)];
  const live = { ...job.live };
  let runsLeft = job.runsLeft ?? Number.POSITIVE_INFINITY;
  let giveWay = false;
  let cancelPrevious = false;
  let dropWaiting = 0;

  for (const { fireAt, caughtUp } of plan.fire) {
    if (runsLeft <= 0) break;
    const trigger = caughtUp ? "catch_up" : "schedule";
    const admission = admit(job.overlapPolicy, live);
    if (admission.kind === "skip") {
      runs.push({ fireAt, trigger, state: "skipped", waiting: false, error: RUN_ERRORS.skipped, fireCount: 1 });
      continue;
    }
    runsLeft--;
    runs.push({ fireAt, trigger, state: "pending", waiting: admission.kind === "wait", error: null, fireCount: 1 });
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
  return { runs, giveWay, cancelPrevious, dropWaiting, next: runsLeft <= 0 ? undefined : plan.next };
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
  return { fireAt: missed.from, trigger: "schedule", state: "missed", waiting: false, error, fireCount: missed.count };
}
