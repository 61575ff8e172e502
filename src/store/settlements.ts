import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { buryMessages } from "./dead-letters.ts";
import { ackInLine, extendClaim, lineStanding, setAside } from "./line-claims.ts";
import { removeAcked } from "./messages.ts";

/** Which delivery is meant: a message and, where the caller has one, the receipt of its hand-out. */
export interface DeliveryKey {
  readonly messageId: string;
  /** Lease token. Undefined: the current lease, whoever holds it. */
  readonly receipt: string | undefined;
}

type Absence = "not_found" | "dead_lettered" | "already_acked";

/** How a delivery stands to the message's newest lease. */
type Standing = "live" | "expired" | "lease_lost" | "not_leased" | Absence;

export type AckOutcome =
  | { readonly acked: true; readonly late: boolean; readonly already: boolean }
  | {
      readonly acked: false;
      readonly reason: "lease_lost" | "not_leased" | "dead_lettered" | "not_found" | "receipt_required";
    };

export type NackFailure = "lease_lost" | "lease_expired" | "not_leased" | "receipt_required" | Absence;

export type NackOutcome =
  | { readonly nacked: true; readonly requeued: true }
  | { readonly nacked: true; readonly requeued: false; readonly reason: "max_retries" | "rejected" }
  | { readonly nacked: false; readonly reason: NackFailure };

export type ExtendOutcome =
  | { readonly extended: true; readonly leaseExpiresAt: Date | null }
  | { readonly extended: false; readonly reason: NackFailure };

interface Delivery {
  readonly standing: Standing;
  readonly failureCount: number;
  readonly expiryCount: number;
}

/**
 * Removes a message for good. An ack after the end of the lease still counts while nobody else has been given the
 * message. Without a receipt it acks the current lease; in a FIFO queue, where that lease may be another's because an
 * earlier one ran out, the group then stays closed until the lease ends.
 */
export async function ackMessage(trx: Db, queue: QueueRow, key: DeliveryKey): Promise<AckOutcome> {
  if (lacksReceipt(queue, key)) return { acked: false, reason: "receipt_required" };
  const inLine = (await ackInLine(trx, queue, queue.lane_id, [key])).get(key.receipt ?? key.messageId);
  if (inLine !== undefined) return { acked: true, late: inLine.late, already: false };
  const { standing, expiryCount } = await lockDelivery(trx, queue, key);
  switch (standing) {
    case "live":
      if (queue.type === "fifo" && key.receipt === undefined && expiryCount > 0)
        await markAcked(trx, queue, key.messageId);
      else await removeAcked(trx, queue, [key.messageId]);
      return { acked: true, late: false, already: false };
    case "expired":
      await removeAcked(trx, queue, [key.messageId]);
      return { acked: true, late: true, already: false };
    case "already_acked":
      return { acked: true, late: false, already: true };
    default:
      return { acked: false, reason: standing };
  }
}

export interface NackMessage extends DeliveryKey {
  /** False makes it a dead letter at once. */
  readonly requeue: boolean;
  /** False counts it as a return and not as a failure. Default true. */
  readonly penalty?: boolean;
  /** Until it is available again. */
  readonly delaySeconds: number;
  /** What went wrong. Empty: nothing was said. */
  readonly error: string;
  /** Failures allowed, where a subscription has its own figure. */
  readonly maxRetries?: number | undefined;
  /** Where it goes when it dies, where a subscription has its own. */
  readonly deadLetterQueueId?: string | undefined;
}

/** Gives a message back, or makes it a dead letter when it is not to be requeued or has failed too often. */
export async function nackMessage(trx: Db, queue: QueueRow, nack: NackMessage): Promise<NackOutcome> {
  if (lacksReceipt(queue, nack)) return { nacked: false, reason: "receipt_required" };
  const { standing, failureCount } = await lockDelivery(trx, queue, nack);
  if (standing !== "live") return { nacked: false, reason: standing === "expired" ? "lease_expired" : standing };

  const error = nack.error === "" ? null : nack.error;
  const penalty = nack.penalty ?? true;
  if (!nack.requeue || (penalty && failureCount + 1 > (nack.maxRetries ?? queue.max_retries))) {
    const reason = nack.requeue ? "max_retries" : "rejected";
    await buryMessages(trx, queue, [nack.messageId], { reason, error, deadLetterQueueId: nack.deadLetterQueueId });
    return { nacked: true, requeued: false, reason };
  }
  await sql`
    update messages
    set lease_token = null, lease_expires_at = null, lease_request = null,
        failure_count = failure_count + ${penalty ? 1 : 0}::int, return_count = return_count + ${penalty ? 0 : 1}::int,
        visible_at = carillon_now() + make_interval(secs => ${nack.delaySeconds}),
        rank = rank + (carillon_now() + make_interval(secs => ${nack.delaySeconds}) - visible_at),
        error = coalesce(${error}::text, error)
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = ${nack.messageId}`.execute(
    trx,
  );
  return { nacked: true, requeued: true };
}

/** Makes a live lease end `visibilitySeconds` from now; 0 gives the message back, which counts as a return. */
export async function extendLease(
  trx: Db,
  queue: QueueRow,
  key: DeliveryKey,
  visibilitySeconds: number,
): Promise<ExtendOutcome> {
  if (lacksReceipt(queue, key)) return { extended: false, reason: "receipt_required" };
  if (visibilitySeconds > 0) {
    const leaseExpiresAt = await extendClaim(trx, queue, key, visibilitySeconds);
    if (leaseExpiresAt !== undefined) return { extended: true, leaseExpiresAt };
  }
  const { standing } = await lockDelivery(trx, queue, key);
  if (standing !== "live") return { extended: false, reason: standing === "expired" ? "lease_expired" : standing };
  const { rows } = await sql<{ lease_expires_at: Date | null }>`
    update messages
    set lease_expires_at = case when ${visibilitySeconds}::int > 0 then carillon_now() + make_interval(secs => ${visibilitySeconds}) end,
        lease_token = case when ${visibilitySeconds}::int > 0 then lease_token end,
        visible_at = case when ${visibilitySeconds}::int > 0 then visible_at else carillon_now() end,
        return_count = return_count + case when ${visibilitySeconds}::int > 0 then 0 else 1 end
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = ${key.messageId}
    returning lease_expires_at`.execute(trx);
  return { extended: true, leaseExpiresAt: rows[0]?.lease_expires_at ?? null };
}

/** Whether the queue has it that a delivery is named by its receipt, and this one is not. */
function lacksReceipt(queue: QueueRow, key: DeliveryKey): boolean {
  return queue.require_receipt && key.receipt === undefined;
}

/**
 * Locks the message and says how the delivery stands. The fence: every end of a lease goes through it, but for acks in the
 * line. A message that is claimed there is set aside first.
 */
async function lockDelivery(trx: Db, queue: QueueRow, key: DeliveryKey): Promise<Delivery> {
  const { messageId, receipt } = key;
  await setAside(trx, queue, [messageId]);
  const { rows } = await sql<{
    lease_token: string | null;
    live: boolean;
    acked: boolean;
    failure_count: number;
    expiry_count: number;
  }>`
    select lease_token, coalesce(lease_expires_at > carillon_now(), false) as live, acked, failure_count, expiry_count
    from messages
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = ${messageId}
    for update`.execute(trx);
  const row = rows[0];
  const delivery = { failureCount: row?.failure_count ?? 0, expiryCount: row?.expiry_count ?? 0 };
  if (row === undefined) return { ...delivery, standing: await whereabouts(trx, queue, messageId) };
  if (row.acked) return { ...delivery, standing: "already_acked" };
  if (receipt !== undefined && row.lease_token !== receipt) return { ...delivery, standing: "lease_lost" };
  if (row.lease_token === null) return { ...delivery, standing: "not_leased" };
  return { ...delivery, standing: row.live ? "live" : "expired" };
}

/** How a message stands that is not kept singly in the queue. */
async function whereabouts(db: Db, queue: QueueRow, messageId: string): Promise<Absence | "not_leased"> {
  const { rows } = await sql<{ absence: Absence }>`
    select case
      when exists (select from acked_messages
                   where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = ${messageId})
        then 'already_acked'
      when exists (select from messages
                   where project_id = ${queue.project_id} and source_queue_id = ${queue.queue_id} and message_id = ${messageId})
        then 'dead_lettered'
      else 'not_found'
    end as absence`.execute(db);
  const absence = rows[0]?.absence ?? "not_found";
  if (absence !== "not_found") return absence;
  const standing = await lineStanding(db, queue, messageId);
  if (standing === "acked") return "already_acked";
  return standing === "unknown" ? "not_found" : "not_leased";
}

async function markAcked(trx: Db, queue: QueueRow, messageId: string): Promise<void> {
  await trx
    .updateTable("messages")
    .set({ acked: true })
    .where("project_id", "=", queue.project_id)
    .where("queue_id", "=", queue.queue_id)
    .where("message_id", "=", messageId)
    .execute();
}
