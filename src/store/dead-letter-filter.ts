import { type RawBuilder, sql } from "kysely";
import type { QueueRow } from "../db/schema.ts";

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

/** Those dead letters `m` that died in the queue, at the times and with the ids that the filter gives: what an index finds. */
export function diedIn(queue: QueueRow, filter: DeadLetterFilter): RawBuilder<boolean> {
  return sql`m.project_id = ${queue.project_id} and m.source_queue_id = ${queue.queue_id} and not m.acked ${within(filter)}`;
}

/** Those dead letters `m` that the queue keeps for others; else as diedIn. */
export function keptBy(queue: QueueRow, filter: DeadLetterFilter): RawBuilder<boolean> {
  return sql`m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id} and m.source_queue_id is not null
    and not m.acked ${within(filter)}`;
}

function within({ messageIds, since, until }: DeadLetterFilter): RawBuilder<unknown> {
  return sql`${messageIds === undefined ? sql`` : sql`and m.message_id = any(${messageIds}::uuid[])`}
    ${since === undefined ? sql`` : sql`and m.dead_lettered_at >= ${since}::timestamptz`}
    ${until === undefined ? sql`` : sql`and m.dead_lettered_at < ${until}::timestamptz`}`;
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
