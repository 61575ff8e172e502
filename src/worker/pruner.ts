import type { Db } from "../db/schema.ts";
import { pruneCronTombstones } from "../store/cron-jobs.ts";
import { pruneDeduplicationKeys } from "../store/deduplication.ts";
import { pruneDroppedGroups, pruneRateSlices } from "../store/groups.ts";
import { pruneIdempotencyKeys } from "../store/idempotency.ts";
import { endOrphanedPushes } from "../store/pushes.ts";
import { pruneHistory } from "../store/queue-history.ts";
import { pruneLaneCounts } from "../store/queue-stats.ts";
import { pruneRedrives } from "../store/redrives.ts";
import { pruneAckedMessages, pruneDroppedLanes, pruneLines, pruneMessages } from "../store/retention.ts";
import { applyRetention, pruneRuns } from "../store/runs-pruning.ts";

/** Rows that one statement deletes. It bounds the time that a statement takes and the locks that it holds. */
const STEP = 1_000;

/**
 * Deletes a little of everything whose time is over. Returns how much it deleted. What fails does not keep the others
 * from being deleted.
 *
 * @throws the first error, when all else was seen to.
 */
export async function prunerTick(db: Db, signal: AbortSignal): Promise<number> {
  let pruned = 0;
  const errors: unknown[] = [];
  for (const prune of [
    pruneMessages,
    pruneLines,
    pruneDroppedLanes,
    pruneAckedMessages,
    pruneIdempotencyKeys,
    pruneDeduplicationKeys,
    pruneLaneCounts,
    pruneHistory,
    pruneRateSlices,
    pruneDroppedGroups,
    pruneRedrives,
    endOrphanedPushes,
    applyRetention,
    pruneRuns,
    pruneCronTombstones,
  ]) {
    if (signal.aborted) break;
    pruned += await prune(db, STEP).catch((error: unknown) => {
      errors.push(error);
      return 0;
    });
  }
  if (errors.length > 0) throw errors[0];
  return pruned;
}
