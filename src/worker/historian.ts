import type { Db } from "../db/schema.ts";
import { foldHistory, sampleQueues } from "../store/queue-history.ts";
import { foldLaneChanges } from "../store/queue-stats.ts";

/** Parts of the history that one tick folds. It bounds the time that a statement takes. */
const STEP = 5_000;

/**
 * Takes what has changed in queues into the counts that their statistics are read from, and writes their history. Returns
 * how much it did.
 */
export async function historianTick(db: Db, signal: AbortSignal): Promise<number> {
  let done = 0;
  for (const work of [foldLaneChanges, sampleQueues, () => foldHistory(db, STEP)]) {
    if (!signal.aborted) done += await work(db);
  }
  return done;
}
