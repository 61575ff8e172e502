import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { expireLeases, queuesWithExpiredLeases } from "../store/leases.ts";
import { expireClaims } from "../store/line-leases.ts";

/** Queues seen to in one tick. */
const QUEUES = 100;

/**
 * Takes back message leases that ran out. Consumers do so too for the queue that they ask, so this only matters for
 * queues that nobody consumes from at the moment. Returns how many leases it took back.
 */
export async function messageReaperTick(db: Db, wakeups: Wakeups, signal: AbortSignal): Promise<number> {
  let reaped = 0;
  for (const queue of await queuesWithExpiredLeases(db, QUEUES)) {
    if (signal.aborted) break;
    const count = await db.transaction().execute(async (trx) => {
      await expireClaims(trx, queue);
      return expireLeases(trx, queue);
    });
    if (count > 0) wakeups.wake(queueTopic(queue.project_id, queue.name));
    reaped += count;
  }
  return reaped;
}
