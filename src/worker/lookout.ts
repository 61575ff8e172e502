import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { isDue, lookForDueWork } from "../store/due-work.ts";
import type { Tick } from "./loop.ts";

/**
 * Wakes the workers of this node for which something is due. It is the poll behind their wake-ups and timers, one
 * statement for all of them, so that a node which has nothing to do asks for little.
 */
export function createLookout(db: Db, wakeups: Wakeups): Tick {
  return async () => {
    const work = await lookForDueWork(db);
    for (const topic of ["crons", "runs", "redrives", "replays", "backfills"] as const) {
      if (isDue(work, topic)) wakeups.wakeHere(topic);
    }
    if (work.isPushing) wakeups.wakeHere("pushes");
    return { done: 0 };
  };
}
