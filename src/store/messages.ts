import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";

/** A message to store. */
export interface NewMessage {
  readonly payload: Uint8Array;
  readonly contentType: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly groupId: string;
  readonly priority: number;
  readonly delaySeconds: number;
  /** Seconds until it is dropped, from when it first becomes available. Undefined: the queue's retention says. */
  readonly ttlSeconds?: number | undefined;
  /** Another message with this key, published within the queue's window, stands for this one. Undefined for none. */
  readonly deduplicationKey?: string | undefined;
}

/** A message with its body. */
export interface MessageRow {
  readonly message_id: string;
  readonly payload: Buffer;
  readonly content_type: string;
  readonly headers: Record<string, string>;
  readonly group_id: string;
  readonly priority: number;
  readonly receive_count: number;
  readonly failure_count: number;
  readonly return_count: number;
  readonly expiry_count: number;
  readonly published_at: Date;
  readonly visible_at: Date;
  readonly lease_token: string | null;
  readonly lease_expires_at: Date | null;
  readonly error: string | null;
  readonly dead_reason: string | null;
  readonly dead_lettered_at: Date | null;
  readonly source_queue: string | null;
}

/** Minutes of waiting that one step of priority is worth. The whole of the ageing rule: nothing waits for ever. */
export const MINUTES_PER_PRIORITY = 1;

/** What came of publishing a message. */
export interface PublishedMessage {
  /** Its id or, where an earlier message stands for it, that one's. */
  readonly message_id: string;
  readonly deduplicated: boolean;
}

/**
 * Stores messages in the order given and says in that order what came of each.
 *
 * In a FIFO queue, transactions that publish take turns, so that the order of seq is the order of the commits. Those that
 * publish the same deduplication key at the same time wait for one another too.
 */
export async function publishMessages(
  trx: Db,
  queue: QueueRow,
  messages: readonly NewMessage[],
): Promise<PublishedMessage[]> {
  if (messages.length === 0) return [];
  const { rows } = await sql<PublishedMessage>`
    select message_id, deduplicated from carillon_put_messages(
      ${queue.project_id}, ${queue.queue_id}, ${queue.type === "fifo"},
      ${queue.enable_priority ? MINUTES_PER_PRIORITY : 0}, ${queue.message_retention_days},
      ${queue.content_deduplication}, ${queue.deduplication_window_seconds},
      ${messages.map((m) => m.groupId)}::text[],
      ${messages.map((m) => m.priority)}::int[],
      ${messages.map((m) => m.delaySeconds)}::int[],
      ${messages.map((m) => m.ttlSeconds ?? null)}::int[],
      ${messages.map((m) => m.deduplicationKey ?? "")}::text[],
      ${messages.map((m) => Buffer.from(m.payload.buffer, m.payload.byteOffset, m.payload.byteLength))}::bytea[],
      ${messages.map((m) => m.contentType)}::text[],
      ${messages.map((m) => JSON.stringify(m.headers))}::text[])`.execute(trx);
  return rows;
}

/** Makes transactions that need the order of one lane take turns until they end. carillon_put_messages does the same. */
export async function lockLane(trx: Db, projectId: string, queueId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`${projectId}/${queueId}`}, 0))`.execute(trx);
}

/**
 * What the seqs of one statement's messages are counted from: 100 000 for each turn, more than a statement stores. Drawn
 * under lockLane it is higher than every seq that the lane has, whatever has left the lane.
 */
export const TURN_SEQ = sql`nextval('lane_turns') * 100000`;

/** How much earlier a message stands in line for its priority, where the queue counts it. */
export function headStart(queue: Pick<QueueRow, "enable_priority">) {
  return sql`make_interval(mins => priority * ${queue.enable_priority ? MINUTES_PER_PRIORITY : 0}::int)`;
}

/** The CTEs `gone` and `bodies`: they delete the messages whose keys the CTE `picked` has, with their bodies. */
export const DELETE_PICKED = sql`
  gone as (
    delete from messages m using picked
    where m.project_id = picked.project_id and m.queue_id = picked.queue_id and m.message_id = picked.message_id
    returning m.project_id, m.queue_id, m.message_id
  ),
  bodies as (
    delete from message_bodies b using gone
    where b.project_id = gone.project_id and b.queue_id = gone.queue_id and b.message_id = gone.message_id
  )`;

/** A message that this transaction has locked. */
export interface PlacedMessage {
  readonly message_id: string;
  /** Where its row is. It stays there while it is locked. */
  readonly place: string;
}

/** Where the bodies of the messages are: found one by one, whatever the planner knows of the table. */
export function bodiesOf(queue: Pick<QueueRow, "project_id" | "queue_id">, found: readonly PlacedMessage[]) {
  return sql`array(
    select b.ctid from unnest(${found.map(({ message_id }) => message_id)}::uuid[]) as gone (message_id)
    cross join lateral (
      select ctid from message_bodies b
      where b.project_id = ${queue.project_id} and b.queue_id = ${queue.queue_id} and b.message_id = gone.message_id
      limit 1) b)`;
}

/** Removes locked messages of a queue for good and remembers that they were acked. */
export async function removeAcked(trx: Db, queue: QueueRow, found: readonly PlacedMessage[]): Promise<void> {
  if (found.length === 0) return;
  await sql`
    with gone as (
      delete from messages where ctid = any(${found.map(({ place }) => place)}::tid[])
      returning project_id, queue_id, message_id, published_at
    ),
    bodies as (delete from message_bodies where ctid = any(${bodiesOf(queue, found)}))
    insert into acked_messages (project_id, queue_id, message_id, published_at, acked_at)
    select project_id, queue_id, message_id, published_at, carillon_now() from gone
    on conflict do nothing`.execute(trx);
}
