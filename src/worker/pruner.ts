import type { Db } from "../db/schema.ts";
import { DEFAULT_RETENTION_DAYS } from "../domain/run.ts";
import { pruneBackfills } from "../store/backfills.ts";
import { pruneCronTombstones } from "../store/cron-jobs.ts";
import { pruneDeduplicationKeys } from "../store/deduplication.ts";
import { pruneDeliveries } from "../store/deliveries.ts";
import { pruneEndpointCounts, pruneEndpoints } from "../store/endpoints.ts";
import { pruneDroppedGroups, pruneEmptiedGroups, pruneRateSlices } from "../store/groups.ts";
import { pruneIdempotencyKeys } from "../store/idempotency.ts";
import { prunePingTokens } from "../store/ping-tokens.ts";
import { prunePushDeliveries } from "../store/push-deliveries.ts";
import { pruneDroppedSubscriptions } from "../store/push-subscriptions.ts";
import { endOrphanedPushes } from "../store/pushes.ts";
import { pruneHistory } from "../store/queue-history.ts";
import { pruneLaneCounts } from "../store/queue-stats.ts";
import { pruneRedrives } from "../store/redrives.ts";
import { pruneReplays } from "../store/replays.ts";
import { pruneAckedMessages, pruneDroppedLanes, pruneLines, pruneMessages } from "../store/retention.ts";
import { applyRetention, pruneRuns } from "../store/runs-pruning.ts";
import { pruneSigningKeys } from "../store/signing-keys.ts";
import { pruneThrottles } from "../store/task-keys.ts";

/** Rows that one statement deletes. It bounds the time that a statement takes and the locks that it holds. */
const STEP = 1_000;

/**
 * Deletes a little of everything whose time is over. Returns how much it deleted. What fails does not keep the others
 * from being deleted. `deliveryLogDays`: how long the records of requests are kept.
 *
 * @throws the first error, when all else was seen to.
 */
export async function prunerTick(
  db: Db,
  signal: AbortSignal,
  deliveryLogDays = DEFAULT_RETENTION_DAYS,
): Promise<number> {
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
    pruneEmptiedGroups,
    pruneRedrives,
    pruneReplays,
    pruneBackfills,
    (db: Db, limit: number) => pruneDeliveries(db, limit, deliveryLogDays),
    endOrphanedPushes,
    prunePushDeliveries,
    pruneDroppedSubscriptions,
    applyRetention,
    pruneRuns,
    pruneCronTombstones,
    pruneSigningKeys,
    pruneThrottles,
    prunePingTokens,
    pruneEndpointCounts,
    pruneEndpoints,
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
