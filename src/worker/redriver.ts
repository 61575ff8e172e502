import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { dueRedrives, msUntilNextStep, stepRedrive } from "../store/redrives.ts";
import type { Tick } from "./loop.ts";

export interface RedriverOptions {
  readonly db: Db;
  readonly wakeups?: Wakeups;
}

/** Redrives looked at in one tick. */
const REDRIVES = 100;
/** Wait while other nodes make the steps that are due, in milliseconds. */
const OTHERS_MS = 250;

/**
 * One step of each redrive that is due. A step is a transaction that holds the redrive's row: no two nodes make the same
 * one, and one whose node dies never happened, so any node goes on where the last whole step ended. What fails does not
 * keep the other redrives from going on.
 *
 * @throws the first error, when all else was seen to.
 */
export function createRedriver({ db, wakeups }: RedriverOptions): Tick {
  return async (signal) => {
    let done = 0;
    const errors: unknown[] = [];
    for (const key of await dueRedrives(db, REDRIVES)) {
      if (signal.aborted) break;
      try {
        const step = await db.transaction().execute((trx) => stepRedrive(trx, key));
        if (step === undefined) continue;
        done++;
        if (step.moved === 0) continue;
        wakeups?.wake(queueTopic(key.project_id, step.toQueue));
        wakeups?.wake("pushes");
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
    if (done > 0) return { done };
    const dueInMs = await msUntilNextStep(db);
    return { done, nextDueInMs: dueInMs === undefined || dueInMs > 0 ? dueInMs : OTHERS_MS };
  };
}
