import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { type DueCronJob, dueCronJobs, fireCronJobs, msUntilNextFire } from "../store/cron-jobs-firing.ts";
import { judgeOverdueJob, overdueJobs } from "../store/cron-overdue.ts";
import { expiredRuns, expireRun } from "../store/run-expiry.ts";
import type { Tick } from "./loop.ts";

export interface SchedulerOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
  /** Told of a project or a cron job that could not be fired, while the others were. */
  readonly onError: (error: unknown, context: { readonly projectId: string; readonly cronId?: string }) => void;
  /** Most cron jobs of one tick, and of one transaction. */
  readonly batchSize?: number;
}

/** Runs that one tick ends because nobody has started them in time. */
const MAX_EXPIRED = 100;
/** Fires that one tick judges because their time is up. */
const MAX_JUDGED = 100;

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
        for (const queue of fired.queues) wakeups?.wake(queueTopic(projectId, queue));
        if (fired.queues.length > 0) wakeups?.wake("pushes");
      } catch (error) {
        // One project's trouble is not to stop the others; if nothing works, the loop has to know.
        errors.push(error);
        onError(error, { projectId });
      }
    }
    const expired = await expireDueRuns(db, wakeups, signal);
    if (jobs === 0 && errors.length > 0) throw errors[0];
    const judged = await judgeDueFires(db, signal, onError);
    // There may be events of it to send.
    if (judged > 0) wakeups?.wake("runs");
    const done = jobs + expired + judged;
    return done > 0 ? { done } : { done, nextDueInMs: await msUntilNextFire(db) };
  };
}

/** Ends what has not started in time, and returns how many runs. */
async function expireDueRuns(db: Db, wakeups: Wakeups | undefined, signal: AbortSignal): Promise<number> {
  let ended = 0;
  for (const run of await expiredRuns(db, MAX_EXPIRED)) {
    if (signal.aborted) break;
    if (await expireRun(db, run)) ended++;
  }
  // Their end may be the turn of others.
  if (ended > 0) wakeups?.wake("runs");
  return ended;
}

/** Judges what has not started or succeeded in time, and returns of how many cron jobs. */
async function judgeDueFires(db: Db, signal: AbortSignal, onError: SchedulerOptions["onError"]): Promise<number> {
  let judged = 0;
  for (const job of await overdueJobs(db, MAX_JUDGED)) {
    if (signal.aborted) break;
    try {
      await judgeOverdueJob(db, job);
      judged++;
    } catch (error) {
      onError(error, job);
    }
  }
  return judged;
}
