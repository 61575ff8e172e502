import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";

/** Why a group cannot be handed out now. */
export type GroupBlock = "in_flight" | "delayed" | "retrying" | "parked" | "rate_limited" | "concurrency_limited";

export interface BlockedGroupRow {
  readonly group_id: string;
  readonly reason: GroupBlock;
  /** The message that the group waits for: in flight, delayed or to be tried again. Null for a limit. */
  readonly message_id: string | null;
  /** When this ends by itself. Null where it takes an ack or the like. */
  readonly until: Date | null;
  /** Failures of the message so far. Null for a limit. */
  readonly failure_count: number | null;
  /** Messages of the group, those in flight included. */
  readonly depth: number;
  readonly in_flight: number;
  /** Since the publishing of its first message. */
  readonly oldest_age_seconds: number;
}

/** Steps in which a list brings the groups up to date first, at most. */
const REFRESH_STEPS = 20;

/**
 * Up to `limit` groups that cannot be handed out now, by their ids from the one after `after`. Undefined as `after` is the
 * start, the empty text is the messages without a group. A standard queue's group whose messages are all in flight is not
 * among them: it waits for nothing. Empty for a queue that is not handed out by group.
 */
export async function listBlockedGroups(
  trx: Db,
  queue: QueueRow,
  after: string | undefined,
  limit: number,
): Promise<BlockedGroupRow[]> {
  if (!queue.grouped) return [];
  for (let step = 0; step < REFRESH_STEPS && (await refreshGroups(trx, queue)) > 0; step++);
  const { rows } = await sql<BlockedGroupRow>`
    with q as (select * from queues where project_id = ${queue.project_id} and queue_id = ${queue.queue_id}),
    blocked as materialized (
      select g.group_id, g.depth, g.in_flight, g.ready_at from message_groups g
      where g.project_id = ${queue.project_id} and g.queue_id = ${queue.queue_id} and not g.ready
        and (g.ready_at is null or g.ready_at > carillon_now()) and g.depth > ${queue.type === "fifo" ? sql`0` : sql`g.in_flight`}
        ${after === undefined ? sql`` : sql`and g.group_id > ${after}`}
      order by g.group_id limit ${limit}
    )
    select b.group_id, w.reason, b.depth, b.in_flight,
      case when w.reason in ('in_flight', 'delayed', 'retrying', 'parked') then h.message_id end as message_id,
      case when w.reason in ('in_flight', 'delayed', 'retrying', 'parked') then h.failure_count end as failure_count,
      case w.reason when 'in_flight' then h.lease_expires_at when 'concurrency_limited' then null when 'parked' then null
                    when 'rate_limited' then r.free_at else h.visible_at end as until,
      greatest(extract(epoch from carillon_now() - h.published_at), 0)::int as oldest_age_seconds
    from blocked b cross join q
    cross join lateral (
      select m.message_id, m.lease_expires_at, m.visible_at, m.expires_at, m.failure_count, m.published_at from messages m
      where m.project_id = q.project_id and m.queue_id = q.queue_id and m.group_id = b.group_id
        and ${queue.type === "fifo" ? sql`(m.lease_expires_at is not null or m.expires_at > carillon_now())` : sql`m.lease_expires_at is null and m.expires_at > carillon_now()`}
      order by ${queue.type === "fifo" ? sql`m.seq` : sql`m.rank, m.seq`} limit 1
    ) h
    left join lateral carillon_rate_use(q, b.group_id, q.group_rate_period_seconds, carillon_now()) r on q.group_rate_limit > 0
    cross join lateral (select case
      when h.lease_expires_at is not null then 'in_flight'
      when q.group_max_in_flight > 0 and b.in_flight >= q.group_max_in_flight then 'concurrency_limited'
      when h.visible_at >= h.expires_at and h.failure_count > 0 then 'parked'
      when h.visible_at > carillon_now() and h.failure_count > 0 then 'retrying'
      when h.visible_at > carillon_now() then 'delayed'
      when r.used >= q.group_rate_limit then 'rate_limited' end as reason) w
    where w.reason is not null
    order by b.group_id`.execute(trx);
  return rows;
}

/** Why nothing at all can be handed out of a queue now, whatever its groups. */
export interface QueueBlock {
  readonly reason: "paused" | "concurrency_limited" | "rate_limited";
  /** When this ends by itself. Null where it does not. */
  readonly until: Date | null;
}

/** Why the queue as a whole is held up, or undefined when it is not. */
export async function queueBlock(db: Db, queue: QueueRow): Promise<QueueBlock | undefined> {
  const { rows } = await sql<QueueBlock>`
    select w.reason, case w.reason when 'rate_limited' then r.free_at end as until
    from queues q
    left join lateral carillon_rate_use(q, null, q.rate_period_seconds, carillon_now()) r on q.rate_limit > 0
    cross join lateral (select case
      when q.paused then 'paused'
      when q.max_in_flight > 0 and q.max_in_flight <= (
        select count(*) from (
          select from messages m where m.project_id = q.project_id and m.queue_id = q.queue_id
            and m.lease_expires_at > carillon_now()
          order by m.lease_expires_at limit q.max_in_flight) leases)
        then 'concurrency_limited'
      when r.used >= q.rate_limit then 'rate_limited' end as reason) w
    where q.project_id = ${queue.project_id} and q.queue_id = ${queue.queue_id} and w.reason is not null`.execute(db);
  return rows[0];
}

/**
 * Takes the oldest changes into the rows of a queue's groups, a step of them, and returns how many. Hand-outs do so too;
 * they wait until the transaction ends.
 */
export async function refreshGroups(trx: Db, queue: Pick<QueueRow, "project_id" | "queue_id">): Promise<number> {
  const { rows } = await sql<{ folded: number }>`
    select carillon_refresh_queue_groups(${queue.project_id}, ${queue.queue_id}) as folded`.execute(trx);
  return rows[0]?.folded ?? 0;
}

/** Changes of groups that may wait for the next hand-out. */
const CHANGES_LEFT = 1_000;
/** Changes that one look counts. */
const CHANGES_COUNTED = 100_000;

/** Queues whose groups have changed so much that the next hand-out should not be left alone with it. */
export async function queuesWithGroupChanges(
  db: Db,
  limit: number,
): Promise<Pick<QueueRow, "project_id" | "queue_id">[]> {
  const { rows } = await sql<Pick<QueueRow, "project_id" | "queue_id">>`
    select project_id, queue_id from (select project_id, queue_id from group_changes limit ${CHANGES_COUNTED}) changes
    group by project_id, queue_id having count(*) > ${CHANGES_LEFT} limit ${limit}`.execute(db);
  return rows;
}

/** Deletes up to `limit` records of hand-outs that count against no rate any more, and returns how many. */
export async function pruneRateSlices(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from rate_slices where ctid = any(array(
      select ctid from rate_slices where expires_at <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}

/**
 * Deletes up to `limit` rows of groups that have had no messages for a minute, and returns how many. Until then the row
 * stands in the way of none, and is found at once when the group has messages again.
 */
export async function pruneEmptiedGroups(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from message_groups where ctid = any(array(
      select ctid from message_groups where emptied_at <= carillon_now() - interval '1 minute'
      order by emptied_at limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}

/** Deletes up to `limit` rows each of what was kept of the groups of deleted queues, and returns how many. */
export async function pruneDroppedGroups(db: Db, limit: number): Promise<number> {
  let pruned = 0;
  for (const table of ["message_groups", "group_changes", "group_marks"] as const) {
    const { numAffectedRows } = await sql`
      delete from ${sql.table(table)} where ctid = any(array(
        select g.ctid from dropped_lanes l join ${sql.table(table)} g using (project_id, queue_id) limit ${limit}))`.execute(
      db,
    );
    pruned += Number(numAffectedRows ?? 0n);
  }
  return pruned;
}
