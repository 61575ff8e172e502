import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { type DueCronJob, dueCronJobs, fireCronJobs, msUntilNextFire } from "../store/cron-jobs-firing.ts";
import type { Tick } from "./loop.ts";

export interface SchedulerOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
  /** Told of a project or a cron job that could not be fired, while the others were. */
  readonly onError: (error: unknown, context: { readonly projectId: string; readonly cronId?: string }) => void;
  /** Most cron jobs of one tick, and of one transaction. */
  readonly batchSize?: number;
}

/**
 * One pass over the cron jobs that are due. Any number of nodes do this at once: whoever locks a job first fires it,
 * and the others find its next_run_at moved.
 */
export function createScheduler({ db, wakeups, onError, batchSize = 200 }: SchedulerOptions): Tick {
  return async (signal) => {
    const due = await dueCronJobs(db, batchSize);
    let jobs = 0;
    const errors: unknown[] = [];
    for (const [projectId, dueOfProject] of Map.groupBy(due, (job) => job.projectId)) {
      if (signal.aborted) break;
      const onUnreadable = ({ cronId }: DueCronJob, error: unknown): void => onError(error, { projectId, cronId });
      try {
        const fired = await fireCronJobs(db, projectId, dueOfProject, onUnreadable);
        jobs += fired.jobs;
        if (fired.runs > 0) wakeups?.wake("runs");
      } catch (error) {
        // One project's trouble is not to stop the others; if nothing works, the loop has to know.
        errors.push(error);
        onError(error, { projectId });
      }
    }
    if (jobs === 0 && errors.length > 0) throw errors[0];
    return jobs > 0 ? { done: jobs } : { done: 0, nextDueInMs: await msUntilNextFire(db) };
  };
}
