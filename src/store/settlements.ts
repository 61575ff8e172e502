import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { buryMessages, type Death } from "./dead-letters.ts";
import { ackInLine, extendClaimsSingly } from "./line-leases.ts";
import { type PlacedMessage, removeAcked } from "./messages.ts";
import { type Absence, type Delivery, type DeliveryKey, lockDeliveries } from "./standings.ts";

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

/** As ackMessages, of one. */
export async function ackMessage(trx: Db, queue: QueueRow, key: DeliveryKey): Promise<AckOutcome> {
  return only(await ackMessages(trx, queue, [key]));
}

/**
 * Removes messages for good, and says what came of each, in their order. An ack after the end of the lease still counts
 * while nobody else has been given the message. Without a receipt it acks the current lease; in a FIFO queue, where that
 * lease may be another's because an earlier one ran out, the group then stays closed until the lease ends.
 */
export async function ackMessages(trx: Db, queue: QueueRow, keys: readonly DeliveryKey[]): Promise<AckOutcome[]> {
  return inRounds(queue, keys, { acked: false, reason: "receipt_required" }, async (round) => {
    const inLine = await ackInLine(trx, queue, queue.lane_id, round);
    const deliveries = await lockEach(
      trx,
      queue,
      round.filter((_, i) => inLine[i] === undefined),
    );
    const removed: PlacedMessage[] = [];
    const marked: PlacedMessage[] = [];
    const outcomes = round.map((key, i): AckOutcome => {
      const there = inLine[i];
      if (there !== undefined) return { acked: true, late: there.late, already: false };
      const { standing, expiryCount, row } = deliveries.get(key) ?? UNKNOWN;
      switch (standing) {
        case "live":
        case "expired": {
          const mayBeAnothers = standing === "live" && key.receipt === undefined && expiryCount > 0;
          if (row !== undefined) (queue.type === "fifo" && mayBeAnothers ? marked : removed).push(row);
          return { acked: true, late: standing === "expired", already: false };
        }
        case "already_acked":
          return { acked: true, late: false, already: true };
        default:
          return { acked: false, reason: standing };
      }
    });
    await removeAcked(trx, queue, removed);
    await markAcked(trx, marked);
    return outcomes;
  });
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

/** As nackMessages, of one. */
export async function nackMessage(trx: Db, queue: QueueRow, nack: NackMessage): Promise<NackOutcome> {
  return only(await nackMessages(trx, queue, [nack]));
}

/**
 * Gives messages back, or makes those dead letters that are not to be requeued or have failed too often. Says what came of
 * each, in their order.
 */
export async function nackMessages(trx: Db, queue: QueueRow, nacks: readonly NackMessage[]): Promise<NackOutcome[]> {
  return inRounds(queue, nacks, { nacked: false, reason: "receipt_required" }, async (round) => {
    const deliveries = await lockEach(trx, queue, round);
    const returned: (NackMessage & PlacedMessage)[] = [];
    const deaths: (Death & { readonly deadLetterQueueId: string | undefined })[] = [];
    const outcomes = round.map((nack): NackOutcome => {
      const { standing, failureCount, row } = deliveries.get(nack) ?? UNKNOWN;
      if (standing !== "live" || row === undefined) return { nacked: false, reason: refusalOf(standing) };
      const { messageId, penalty = true, maxRetries = queue.max_retries, deadLetterQueueId } = nack;
      if (!nack.requeue || (penalty && failureCount + 1 > maxRetries)) {
        const reason = nack.requeue ? "max_retries" : "rejected";
        deaths.push({ messageId, reason, error: nack.error === "" ? null : nack.error, deadLetterQueueId });
        return { nacked: true, requeued: false, reason };
      }
      returned.push({ ...nack, ...row });
      return { nacked: true, requeued: true };
    });
    await giveBack(trx, returned);
    for (const [chosen, some] of Map.groupBy(deaths, ({ deadLetterQueueId }) => deadLetterQueueId)) {
      await buryMessages(trx, queue, some, chosen);
    }
    return outcomes;
  });
}

/**
 * Takes back that messages were handed out under these live leases, and the failure before it, which whoever nacks them now
 * counts again: nothing was tried under the leases.
 */
export async function uncountHandOuts(trx: Db, queue: QueueRow, keys: readonly DeliveryKey[]): Promise<void> {
  if (keys.length === 0) return;
  await sql`
    update messages m set receive_count = m.receive_count - 1, failure_count = m.failure_count - 1
    from unnest(${keys.map(({ messageId }) => messageId)}::uuid[], ${keys.map(({ receipt }) => receipt)}::uuid[]) as u (id, receipt)
    where m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id} and m.message_id = u.id
      and m.lease_token = u.receipt and m.lease_expires_at > carillon_now()`.execute(trx);
}

async function giveBack(trx: Db, nacks: readonly (NackMessage & PlacedMessage)[]): Promise<void> {
  if (nacks.length === 0) return;
  await sql`
    update messages m
    set lease_token = null, lease_expires_at = null, lease_request = null,
        failure_count = m.failure_count + u.penalty, return_count = m.return_count + 1 - u.penalty,
        visible_at = carillon_now() + make_interval(secs => u.delay),
        rank = m.rank + (carillon_now() + make_interval(secs => u.delay) - m.visible_at),
        error = coalesce(nullif(u.error, ''), m.error)
    from unnest(
      ${nacks.map(({ place }) => place)}::tid[], ${nacks.map(({ penalty = true }) => (penalty ? 1 : 0))}::int[],
      ${nacks.map(({ delaySeconds }) => delaySeconds)}::int[], ${nacks.map(({ error }) => error)}::text[]
    ) as u (place, penalty, delay, error)
    where m.ctid = u.place`.execute(trx);
}

export interface ExtendLease extends DeliveryKey {
  /** From now. 0 gives the message back, which counts as a return. */
  readonly visibilitySeconds: number;
}

/** As extendEach, of one. */
export async function extendLease(
  trx: Db,
  queue: QueueRow,
  key: DeliveryKey,
  visibilitySeconds: number,
): Promise<ExtendOutcome> {
  return only(await extendEach(trx, queue, [{ ...key, visibilitySeconds }]));
}

/** Makes each of the live leases end when it says, and says what came of each, in their order. */
export async function extendEach(
  trx: Db,
  queue: QueueRow,
  extensions: readonly ExtendLease[],
): Promise<ExtendOutcome[]> {
  return inRounds(queue, extensions, { extended: false, reason: "receipt_required" }, async (round) => {
    const inLine = await extendClaimsSingly(
      trx,
      queue,
      round.filter(({ visibilitySeconds }) => visibilitySeconds > 0),
    );
    const deliveries = await lockEach(
      trx,
      queue,
      round.filter(({ messageId }) => !inLine.has(messageId)),
    );
    const live = round.flatMap((extension) => {
      const { standing, row } = deliveries.get(extension) ?? UNKNOWN;
      return standing === "live" && row !== undefined ? [{ ...extension, ...row }] : [];
    });
    const ends = new Map([...inLine, ...(await moveEnds(trx, live))]);
    return round.map((extension): ExtendOutcome => {
      const leaseExpiresAt = ends.get(extension.messageId);
      if (leaseExpiresAt !== undefined) return { extended: true, leaseExpiresAt };
      return { extended: false, reason: refusalOf((deliveries.get(extension) ?? UNKNOWN).standing) };
    });
  });
}

/** The new end of each lease by message id; null where it was given back. */
async function moveEnds(
  trx: Db,
  live: readonly (ExtendLease & PlacedMessage)[],
): Promise<ReadonlyMap<string, Date | null>> {
  if (live.length === 0) return new Map();
  const { rows } = await sql<{ message_id: string; lease_expires_at: Date | null }>`
    update messages m
    set lease_expires_at = case when u.seconds > 0 then carillon_now() + make_interval(secs => u.seconds) end,
        lease_token = case when u.seconds > 0 then m.lease_token end,
        visible_at = case when u.seconds > 0 then m.visible_at else carillon_now() end,
        return_count = m.return_count + case when u.seconds > 0 then 0 else 1 end
    from unnest(
      ${live.map(({ place }) => place)}::tid[], ${live.map(({ visibilitySeconds }) => visibilitySeconds)}::int[]
    ) as u (place, seconds)
    where m.ctid = u.place
    returning m.message_id, m.lease_expires_at`.execute(trx);
  return new Map(rows.map((row) => [row.message_id, row.lease_expires_at]));
}

const UNKNOWN: Delivery = { standing: "not_found", failureCount: 0, expiryCount: 0, row: undefined };

/** Why a delivery that stands so, and is not live, cannot be given back or extended. */
function refusalOf(standing: Delivery["standing"]): NackFailure {
  return standing === "expired" || standing === "live" ? "lease_expired" : standing;
}

/** Locks the messages and says how each delivery stands. */
async function lockEach<Key extends DeliveryKey>(
  trx: Db,
  queue: QueueRow,
  keys: readonly Key[],
): Promise<ReadonlyMap<Key, Delivery>> {
  const deliveries = await lockDeliveries(trx, queue, keys);
  return new Map(keys.map((key, i) => [key, deliveries[i] ?? UNKNOWN]));
}

/**
 * Does the work for all keys at once, and answers in their order. Where a message is named again, that is for a round of
 * its own after the one before, as if each had come by itself. Keys without the receipt that the queue requires are
 * refused.
 */
async function inRounds<Key extends DeliveryKey, Outcome>(
  queue: QueueRow,
  keys: readonly Key[],
  withoutReceipt: Outcome,
  work: (round: readonly Key[]) => Promise<readonly Outcome[]>,
): Promise<Outcome[]> {
  const outcomes = keys.map(() => withoutReceipt);
  let places = keys.flatMap((key, i) => (queue.require_receipt && key.receipt === undefined ? [] : [{ key, i }]));
  while (places.length > 0) {
    const named = new Set<string>();
    const again: typeof places = [];
    const round = places.filter((place) => {
      if (named.has(place.key.messageId)) return again.push(place) < 0;
      named.add(place.key.messageId);
      return true;
    });
    const done = await work(round.map(({ key }) => key));
    for (const [n, { i }] of round.entries()) outcomes[i] = done[n] ?? withoutReceipt;
    places = again;
  }
  return outcomes;
}

function only<T>([outcome]: readonly T[]): T {
  if (outcome === undefined) throw new Error("an outcome for each delivery was promised");
  return outcome;
}

async function markAcked(trx: Db, found: readonly PlacedMessage[]): Promise<void> {
  if (found.length === 0) return;
  await sql`
    update messages set acked = true where ctid = any(${found.map(({ place }) => place)}::tid[])`.execute(trx);
}
