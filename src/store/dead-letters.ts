import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { headStart, lockLane, type MessageRow, TURN_SEQ } from "./messages.ts";

export interface Burial {
  readonly reason: "max_retries" | "rejected";
  readonly error: string | null;
  /** Where they go instead of the queue's own choice. */
  readonly deadLetterQueueId?: string | undefined;
}

/**
 * Makes messages dead letters: they move to the queue's dead letter queue, or to its graveyard when it has none or that
 * one is deleted, and remember where they died and why. Their retention starts anew, so that a late death does not shorten it. The time of
 * death is kept to the millisecond, which is all that the API shows, so that cursors and \`since\` can name it exactly.
 */
export async function buryMessages(
  trx: Db,
  queue: QueueRow,
  messageIds: readonly string[],
  burial: Burial,
): Promise<void> {
  const deadLetterQueue = await holdDeadLetterQueue(trx, queue, burial);
  const grave = deadLetterQueue?.queue_id ?? queue.graveyard_id;
  if (deadLetterQueue !== undefined) await lockLane(trx, queue.project_id, grave);
  await sql`
    with turn as (select ${TURN_SEQ} as seq),
    died as (
      delete from messages
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${messageIds}::uuid[])
      returning *
    ),
    bodies as (
      delete from message_bodies
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${messageIds}::uuid[])
      returning *
    ),
    buried as (
      insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                            error, published_at, expires_at, source_queue_id, dead_reason, dead_lettered_at)
      select project_id, ${grave}::uuid, message_id, turn.seq + row_number() over (order by died.seq), group_id,
             carillon_now() - ${headStart(deadLetterQueue ?? queue)}, priority, carillon_now(), receive_count, coalesce(${burial.error}::text, error), published_at,
             carillon_now() + make_interval(days => ${queue.message_retention_days}), queue_id, ${burial.reason}, date_trunc('milliseconds', carillon_now())
      from died, turn
    )
    insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
    select project_id, ${grave}::uuid, message_id, payload, content_type, headers from bodies`.execute(trx);
}

/**
 * The queue that is to take the dead letters, held against deletion until the transaction ends; undefined for the
 * graveyard. The row of the dying messages' queue may have been read long ago, before the other was deleted, and what is
 * put into a deleted queue is deleted with it.
 */
async function holdDeadLetterQueue(
  trx: Db,
  queue: QueueRow,
  burial: Burial,
): Promise<Pick<QueueRow, "queue_id" | "enable_priority"> | undefined> {
  const chosen = burial.deadLetterQueueId ?? queue.dead_letter_queue_id;
  if (chosen === null) return undefined;
  return trx
    .selectFrom("queues")
    .select(["queue_id", "enable_priority"])
    .where("project_id", "=", queue.project_id)
    .where("queue_id", "=", chosen)
    .forKeyShare()
    .executeTakeFirst();
}

export interface DeadLetterPosition {
  readonly deadLetteredAt: Date;
  readonly messageId: string;
}

/**
 * Up to `limit` dead letters, newest first, from the one after `after`. Scope `source`: those that died in this queue,
 * wherever they are kept; `self`: those that this queue keeps for others.
 */
export async function listDeadLetters(
  db: Db,
  queue: QueueRow,
  scope: "source" | "self",
  after: DeadLetterPosition | undefined,
  limit: number,
): Promise<MessageRow[]> {
  const which =
    scope === "source"
      ? sql`m.source_queue_id = ${queue.queue_id}`
      : sql`m.queue_id = ${queue.queue_id} and m.source_queue_id is not null`;
  const page =
    after === undefined
      ? sql``
      : sql`and (m.dead_lettered_at, m.message_id) < (${after.deadLetteredAt}::timestamptz, ${after.messageId}::uuid)`;
  const { rows } = await sql<MessageRow>`
    select m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
           m.return_count, m.expiry_count, m.published_at, m.visible_at, null as lease_token, null as lease_expires_at, m.error, m.dead_reason,
           m.dead_lettered_at, source.name as source_queue
    from messages m
    join message_bodies b using (project_id, queue_id, message_id)
    left join queues source on source.project_id = m.project_id and source.queue_id = m.source_queue_id
    where m.project_id = ${queue.project_id} and ${which} and not m.acked ${page}
    order by m.dead_lettered_at desc, m.message_id desc limit ${limit}`.execute(db);
  return rows;
}

/** Which dead letters of a queue to redrive. */
export interface DeadLetterChoice {
  readonly messageId?: string | undefined;
  /** Died at this instant or later. */
  readonly since?: Date | undefined;
}

/**
 * Puts up to `limit` dead letters back into the queue that they died in, oldest first, with their failures forgotten,
 * and returns how many. One that a consumer of the dead letter queue holds right now is left alone.
 */
export async function redriveDeadLetters(
  trx: Db,
  queue: QueueRow,
  choice: DeadLetterChoice,
  limit: number,
): Promise<number> {
  await lockLane(trx, queue.project_id, queue.queue_id);
  const { rows } = await sql<{ count: number }>`
    with turn as (select ${TURN_SEQ} as seq),
    picked as materialized (
      select m.project_id, m.queue_id, m.message_id from messages m
      where ${chosen(queue, choice)} order by m.dead_lettered_at, m.seq limit ${limit} for update skip locked
    ),
    risen as (
      delete from messages m using picked
      where m.project_id = picked.project_id and m.queue_id = picked.queue_id and m.message_id = picked.message_id
      returning m.*
    ),
    bodies as (
      delete from message_bodies b using risen
      where b.project_id = risen.project_id and b.queue_id = risen.queue_id and b.message_id = risen.message_id
      returning b.*
    ),
    back as (
      insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                            published_at, expires_at)
      select project_id, source_queue_id, message_id, turn.seq + row_number() over (order by dead_lettered_at, risen.seq),
             group_id, carillon_now() - ${headStart(queue)}, priority, carillon_now(), receive_count, published_at,
             carillon_now() + make_interval(days => ${queue.message_retention_days})
      from risen, turn
      returning message_id
    ),
    bodies_back as (
      insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
      select project_id, ${queue.queue_id}::uuid, message_id, payload, content_type, headers from bodies
    )
    select count(*)::int as count from back`.execute(trx);
  return rows[0]?.count ?? 0;
}

/** Whether any message died in this queue and is still kept, wherever that is. */
export async function hasDeadLetters(db: Db, queue: QueueRow): Promise<boolean> {
  const { rows } = await sql<{ any: boolean }>`
    select exists (select from messages
                   where project_id = ${queue.project_id} and source_queue_id = ${queue.queue_id} and not acked) as any`.execute(
    db,
  );
  return rows[0]?.any ?? false;
}

/** How many dead letters the choice finds. */
export async function countDeadLetters(db: Db, queue: QueueRow, choice: DeadLetterChoice): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from messages m where ${chosen(queue, choice)}`.execute(db);
  return rows[0]?.count ?? 0;
}

function chosen(queue: QueueRow, { messageId, since }: DeadLetterChoice) {
  return sql`m.project_id = ${queue.project_id} and m.source_queue_id = ${queue.queue_id} and not m.acked
    and (m.lease_expires_at is null or m.lease_expires_at <= carillon_now())
    ${messageId === undefined ? sql`` : sql`and m.message_id = ${messageId}`}
    ${since === undefined ? sql`` : sql`and m.dead_lettered_at >= ${since}::timestamptz`}`;
}
