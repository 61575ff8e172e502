import type { Db } from "../db/schema.ts";
import { queuesWithGroupChanges, refreshGroups } from "../store/groups.ts";

/** Queues seen to in one tick. */
const QUEUES = 100;

/**
 * Takes changes of groups into the groups' rows where many have gathered. Hand-outs do so too, so this only matters for
 * queues that are published to and that nobody consumes from: the first consumer is not to pay for all of it. Returns how
 * many changes it took in.
 */
export async function groupKeeperTick(db: Db, signal: AbortSignal): Promise<number> {
  let folded = 0;
  for (const queue of await queuesWithGroupChanges(db, QUEUES)) {
    if (signal.aborted) break;
    folded += await db.transaction().execute((trx) => refreshGroups(trx, queue));
  }
  return folded;
}
