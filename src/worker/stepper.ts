import type { Db } from "../db/schema.ts";
import type { Tick } from "./loop.ts";

/** A long job that is made in steps, as the store offers it. */
export interface SteppedJobs<Key, Step> {
  /** Up to `limit` jobs whose next step is due. */
  due(db: Db, limit: number): Promise<Key[]>;
  /** Makes a job's next step under the lock of its row; undefined when it is not due, or another node makes it. */
  step(trx: Db, key: Key): Promise<Step | undefined>;
  /** In how many milliseconds the next step of any job is due, or undefined when none runs. */
  msUntilNext(db: Db): Promise<number | undefined>;
  /** Told of a step that has committed. */
  onStepped(key: Key, step: Step): void;
}

/** Jobs looked at in one tick. */
const JOBS = 100;
/** Wait while other nodes make the steps that are due, in milliseconds. */
const OTHERS_MS = 250;

/**
 * One step of each job that is due. A step is a transaction that holds the job's row: no two nodes make the same one, and
 * one whose node dies never happened, so any node goes on where the last whole step ended. What fails does not keep the
 * other jobs from going on.
 *
 * @throws the first error, when all else was seen to.
 */
export function createStepper<Key, Step>(db: Db, jobs: SteppedJobs<Key, Step>): Tick {
  return async (signal) => {
    let done = 0;
    const errors: unknown[] = [];
    for (const key of await jobs.due(db, JOBS)) {
      if (signal.aborted) break;
      try {
        const step = await db.transaction().execute((trx) => jobs.step(trx, key));
        if (step === undefined) continue;
        done++;
        jobs.onStepped(key, step);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
    if (done > 0) return { done };
    const dueInMs = await jobs.msUntilNext(db);
    return { done, nextDueInMs: dueInMs === undefined || dueInMs > 0 ? dueInMs : OTHERS_MS };
  };
}
