import type { Db } from "../db/schema.ts";
import { foldLaneChanges } from "../store/queue-stats.ts";

/** Takes what has changed in queues into the counts that their statistics are read from. Returns how much it did. */
export async function historianTick(db: Db, signal: AbortSignal): Promise<number> {
  return signal.aborted ? 0 : foldLaneChanges(db);
}
