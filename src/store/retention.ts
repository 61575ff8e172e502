import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { DELETE_PICKED } from "./messages.ts";

/** Deletes up to `limit` messages whose retention ended, dead letters included, and returns how many. */
export async function pruneMessages(db: Db, limit: number): Promise<number> {
  return deleteMessages(
    db,
    sql`select project_id, queue_id, message_id from messages
        where expires_at <= carillon_now() and (lease_expires_at is null or lease_expires_at <= carillon_now())
        limit ${limit} for update skip locked`,
  );
}

/** How long after its deletion a queue's lane is looked at: calls that had read the queue before may still store messages. */
const LATE_MINUTES = 60;

/**
 * Deletes up to `limit` messages of a deleted queue, or as much of what its subscriptions had still to be given, and returns how
 * many; with none to delete, forgets empty lanes of queues deleted long enough ago. What was acked there is forgotten with age, as everywhere.
 */
export async function pruneDroppedLanes(db: Db, limit: number): Promise<number> {
  const holds = sql`exists (select from messages m where m.project_id = l.project_id and m.queue_id = l.queue_id)`;
  const inLine = await pruneDroppedLines(db, limit);
  if (inLine > 0) return inLine;
  const given = await pruneDroppedDeliveries(db, limit);
  if (given > 0) return given;
  const { rows } = await sql<{ project_id: string; queue_id: string }>`
    select project_id, queue_id from dropped_lanes l where ${holds} limit 1`.execute(db);
  const lane = rows[0];
  if (lane !== undefined) {
    return deleteMessages(
      db,
      sql`select project_id, queue_id, message_id from messages
          where project_id = ${lane.project_id} and queue_id = ${lane.queue_id}
          limit ${limit} for update skip locked`,
    );
  }
  const { numAffectedRows } = await sql`
    delete from dropped_lanes l
    where dropped_at <= carillon_now() - make_interval(mins => ${LATE_MINUTES}) and not ${holds}`.execute(db);
  return Number(numAffectedRows ?? 0n);
}

/** Deletes up to `limit` deliveries to subscriptions of deleted queues and returns how many. */
async function pruneDroppedDeliveries(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from push_deliveries where ctid = any(array(
      select d.ctid from dropped_lanes l join push_deliveries d using (project_id, queue_id) limit ${limit}))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}

/** Deletes up to `limit` messages and claims of the lines of deleted queues and returns how many. */
async function pruneDroppedLines(db: Db, limit: number): Promise<number> {
  let pruned = 0;
  for (const table of ["line_messages", "line_claims"] as const) {
    const { numAffectedRows } = await sql`
      delete from ${sql.table(table)} where ctid = any(array(
        select t.ctid from dropped_lanes l join ${sql.table(table)} t on t.lane_id = l.lane_id limit ${limit}))`.execute(
      db,
    );
    pruned += Number(numAffectedRows ?? 0n);
  }
  return pruned;
}

/** Days for which claims are kept: a lease of half a day, and a day in which an ack can be told from no message. */
const CLAIM_DAYS = 2;

/**
 * Takes messages whose retention ended off the front of their lines, up to `limit` of each line, and deletes up to
 * `limit` claims that are no longer needed. Returns how many it removed.
 */
export async function pruneLines(db: Db, limit: number): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select coalesce(sum(carillon_line_drop(old.lane_id, carillon_now() - make_interval(days => old.message_retention_days), ${limit})), 0)::int as count
    from (
      select q.lane_id, q.message_retention_days from queues q
      cross join lateral (
        select m.published_at from line_messages m
        where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) order by m.seq limit 1) head
      cross join lateral (select pg_try_advisory_xact_lock(q.lane_id * 2 + 1) as taken) turn
      where head.published_at <= carillon_now() - make_interval(days => q.message_retention_days) and turn.taken
    ) old`.execute(db);
  const { numAffectedRows } = await sql`
    delete from line_claims c where ctid = any(array(
      select c.ctid from line_claims c
      where c.claimed_at <= carillon_now() - make_interval(days => ${CLAIM_DAYS}) and c.settled
        and exists (select from line_claims n where n.lane_id = c.lane_id and n.hi > c.hi)
      limit ${limit}))`.execute(db);
  return (rows[0]?.count ?? 0) + Number(numAffectedRows ?? 0n);
}

/** Deletes up to `limit` records of messages acked more than a day ago and returns how many. */
export async function pruneAckedMessages(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from acked_messages where ctid = any(array(
      select ctid from acked_messages where acked_at <= carillon_now() - interval '1 day' limit ${limit}))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}

async function deleteMessages(db: Db, which: ReturnType<typeof sql>): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with picked as materialized (${which}), ${DELETE_PICKED}
    select count(*)::int as count from gone`.execute(db);
  return rows[0]?.count ?? 0;
}
