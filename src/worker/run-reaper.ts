import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { RUN_ERRORS, settle } from "../domain/run.ts";
import { lapsedRuns } from "../store/runs-leasing.ts";
import { settleRun } from "../store/runs-settling.ts";
import type { Tick } from "./loop.ts";
import { retryPolicyOf } from "./outbound-run.ts";

export interface RunReaperOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
  /** Most runs of one tick. */
  readonly batchSize?: number;
  /** Jitter of retries: numbers from 0 up to 1. */
  readonly random?: () => number;
}

/**
 * One pass over the runs whose lease has run out, because their node died or could not record the outcome. Each counts
 * as a failed attempt: the target may have got the request or not. The run of a monitor whose end nobody told of has failed.
 */
export function createRunReaper({ db, wakeups, batchSize = 100, random = Math.random }: RunReaperOptions): Tick {
  return async (signal) => {
    const lapsed = await lapsedRuns(db, batchSize);
    let done = 0;
    for (const run of lapsed) {
      if (signal.aborted) break;
      const lost = {
        kind: "failed",
        error: RUN_ERRORS.leaseExpired,
        detail: "the node that made it was lost",
      } as const;
      const transition = run.isPinged
        ? ({ to: "failed", error: RUN_ERRORS.noEnd } as const)
        : settle(run.attempt, lost, retryPolicyOf(run), random);
      const outcome = await settleRun(db, run, transition, undefined);
      if (outcome !== "stale") done++;
      if (outcome === "due") wakeups?.wake("runs");
    }
    return { done };
  };
}
