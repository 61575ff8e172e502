import type { QueueRow } from "../db/schema.ts";
import type { MessageRow } from "../store/messages.ts";
import type { PushTarget } from "../store/pushable.ts";
import type { Push } from "../store/pushes.ts";

/** The longest attempt, in seconds, however long the lease is. */
const MAX_TIMEOUT_SECONDS = 900;
/** How much longer the lease is than the attempt, in seconds, so that the outcome can be recorded under it. */
const LEASE_MARGIN_SECONDS = 10;

/** How long all leases of the messages hold from the record of their attempts on, in milliseconds. */
export function heldMs(messages: readonly MessageRow[], pushes: readonly Push[]): number {
  const ends = messages.map(({ lease_expires_at }) => lease_expires_at?.getTime() ?? 0);
  return Math.min(...ends) - (pushes[0]?.started_at.getTime() ?? 0);
}

/** The time limit of one attempt, in seconds, up to 900 where the subscription says none. */
export function attemptSeconds(queue: QueueRow, target: PushTarget): number {
  return target.timeout_seconds ?? Math.min(visibilitySeconds(queue, target), MAX_TIMEOUT_SECONDS);
}

/** Of the lease of a message, in seconds: long enough for the wait in a batch, the attempt, and the record of its outcome. */
export function leaseSeconds(queue: QueueRow, target: PushTarget): number {
  const lease = Math.max(visibilitySeconds(queue, target), attemptSeconds(queue, target));
  return lease + Math.ceil(target.batch_window_ms / 1_000) + LEASE_MARGIN_SECONDS;
}

function visibilitySeconds(queue: QueueRow, target: PushTarget): number {
  return target.visibility_timeout_seconds ?? queue.visibility_timeout_seconds;
}
