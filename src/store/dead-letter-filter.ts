import { type RawBuilder, sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";

/** Which dead letters are meant: those that meet all that is given. */
export interface DeadLetterFilter {
  readonly messageIds?: readonly string[] | undefined;
  readonly reason?: string | undefined;
  /** Died at this instant or later. */
  readonly since?: Date | undefined;
  /** Died before this instant. */
  readonly until?: Date | undefined;
  /** Empty: without a group. */
  readonly groupId?: string | undefined;
  /** In a header's name or value. */
  readonly headerContains?: string | undefined;
  readonly errorContains?: string | undefined;
}

/**
 * Has the planner follow indexes until the transaction ends. As long as no statistics tell how many dead letters there
 * are, it would rather read and sort all of them for the first few.
 */
export async function walkByIndex(trx: Db): Promise<void> {
  await sql`select set_config('enable_bitmapscan', 'off', true)`.execute(trx);
}

/**
 * `from … where …` of the dead letters `m` that died in the queue, at the times and with the ids that the filter gives:
 * what an index finds.
 */
export function fromDied(queue: QueueRow, filter: DeadLetterFilter): RawBuilder<unknown> {
  return from(sql`m.project_id = ${queue.project_id} and m.source_queue_id = ${queue.queue_id}`, filter);
}

/** Of those that the queue keeps for others; else as fromDied. */
export function fromKept(queue: QueueRow, filter: DeadLetterFilter): RawBuilder<unknown> {
  const lane = sql`m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id} and m.source_queue_id is not null`;
  return from(lane, filter);
}

/** Ids are looked up one by one, because the planner may otherwise walk through the whole lane for them. */
function from(lane: RawBuilder<unknown>, { messageIds, since, until }: DeadLetterFilter): RawBuilder<unknown> {
  const times = sql`
    ${since === undefined ? sql`` : sql`and m.dead_lettered_at >= ${since}::timestamptz`}
    ${until === undefined ? sql`` : sql`and m.dead_lettered_at < ${until}::timestamptz`}`;
  if (messageIds === undefined) return sql`from messages m where ${lane} and not m.acked ${times}`;
  return sql`
    from (select distinct unnest(${messageIds}::uuid[]) as message_id) given
    cross join lateral (select m.* from messages m where ${lane} and m.message_id = given.message_id limit 1) m
    where not m.acked ${times}`;
}

/** Whether rows have to be looked at for what no index knows. */
export function isSelective({ reason, groupId, headerContains, errorContains }: DeadLetterFilter): boolean {
  return [reason, groupId, headerContains, errorContains].some((value) => value !== undefined);
}

/** The rest of the filter, for rows `m` of messages. The headers are looked at last, because they lie apart. */
export function isWanted({ reason, groupId, headerContains, errorContains }: DeadLetterFilter): RawBuilder<boolean> {
  return sql`true
    ${reason === undefined ? sql`` : sql`and m.dead_reason = ${reason}`}
    ${groupId === undefined ? sql`` : sql`and m.group_id = ${groupId}`}
    ${errorContains === undefined ? sql`` : sql`and strpos(coalesce(m.error, ''), ${errorContains}) > 0`}
    ${
      headerContains === undefined
        ? sql``
        : sql`and exists (
            select from message_bodies b, jsonb_each_text(b.headers) header
            where b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id
              and (strpos(header.key, ${headerContains}) > 0 or strpos(header.value, ${headerContains}) > 0))`
    }`;
}

/** That nobody holds the dead letter `m` who consumes the queue that keeps it. */
export const IS_FREE = sql<boolean>`(m.lease_expires_at is null or m.lease_expires_at <= carillon_now())`;
