import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { lookForDueWork } from "../store/due-work.ts";
import type { Tick } from "./loop.ts";

/**
 * Wakes the workers of this node for which something is due. It is the poll behind their wake-ups and timers, one
 * statement for all of them, so that a node which has nothing to do asks for little.
 */
export function createLookout(db: Db, wakeups: Wakeups): Tick {
  return async () => {
    const due = await lookForDueWork(db);
    for (const topic of ["crons", "runs", "redrives", "replays", "backfills", "pushes"] as const) {
      if (due[topic]) wakeups.wakeHere(topic);
    }
    return { done: 0 };
  };
}
