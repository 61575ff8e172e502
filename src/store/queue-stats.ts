import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { lineStats } from "./line.ts";

/** What a queue holds. */
export interface QueueStatsRow {
  readonly available: number;
  readonly delayed: number;
  readonly in_flight: number;
  readonly dead: number;
  /** Of the available messages that are outside the line, the first thousand are looked at. */
  readonly oldest_age_seconds: number | null;
  /** In the last 60 seconds. */
  readonly published: number;
  readonly acked: number;
}

/**
 * Counts what a queue holds, and what went through it in the last 60 seconds. Exact, and the cost does not grow with what
 * the queue holds.
 */
export async function queueStats(db: Db, queue: QueueRow): Promise<QueueStatsRow> {
  const line = await lineStats(db, queue);
  const pushed = await pushedStats(db, queue);
  const { rows } = await sql<QueueStatsRow>`
    select held.available, held.delayed, held.in_flight, held.dead, acks.acked,
           held.published + acks.published as published,
           extract(epoch from carillon_now() - held.oldest_published_at)::int as oldest_age_seconds
    from carillon_lane_stats(${queue.project_id}, ${queue.queue_id}) held, (
      select count(*)::int as acked,
             count(*) filter (where published_at > carillon_now() - interval '60 seconds')::int as published
      from acked_messages
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and acked_at > carillon_now() - interval '60 seconds'
    ) acks`.execute(db);
  const stats = rows[0];
  if (stats === undefined) throw new Error("an aggregate without a row");
  return {
    ...stats,
    available: stats.available + line.available,
    in_flight: stats.in_flight + line.in_flight + pushed.in_flight,
    oldest_age_seconds: greatest(
      greatest(stats.oldest_age_seconds, line.oldest_age_seconds),
      pushed.oldest_age_seconds,
    ),
    published: stats.published + line.published,
    acked: stats.acked + line.acked,
  };
}

/** What the queue's subscriptions have been given over, which is in flight until all of them are done. */
async function pushedStats(db: Db, queue: QueueRow) {
  const { rows } = await sql<{ in_flight: number; oldest_age_seconds: number | null }>`
    select (held.available + held.delayed + held.in_flight)::int as in_flight,
           extract(epoch from carillon_now() - held.oldest_published_at)::int as oldest_age_seconds
    from carillon_lane_stats(${queue.project_id}, ${queue.push_lane_id}) held`.execute(db);
  return rows[0] ?? { in_flight: 0, oldest_age_seconds: null };
}

function greatest(a: number | null, b: number | null): number | null {
  return a === null ? b : b === null ? a : Math.max(a, b);
}

/** Changes that one call folds, so that its transaction stays short. */
const FOLD_STEP = 5_000;

/**
 * Takes up to 5,000 noted changes of messages into the counts of their lanes, and returns how many. Any number of nodes
 * may do so at once: each change is taken once.
 */
export async function foldLaneChanges(db: Db): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with taken as (
      delete from lane_changes where ctid = any(array(
        select ctid from lane_changes limit ${FOLD_STEP} for update skip locked))
      returning *
    ),
    counts as (
      insert into lane_counts as c (project_id, queue_id, waiting, leased, dead)
      select project_id, queue_id, sum(waiting), sum(leased), sum(dead) from taken
      group by project_id, queue_id order by project_id, queue_id
      on conflict (project_id, queue_id) do update
      set waiting = c.waiting + excluded.waiting, leased = c.leased + excluded.leased, dead = c.dead + excluded.dead
    ),
    dues as (
      insert into lane_dues as d (project_id, queue_id, due_at, waiting)
      select project_id, queue_id, due_at, sum(waiting) from taken where due_at is not null
      group by project_id, queue_id, due_at order by project_id, queue_id, due_at
      on conflict (project_id, queue_id, due_at) do update set waiting = d.waiting + excluded.waiting
    )
    select count(*)::int as count from taken`.execute(db);
  return rows[0]?.count ?? 0;
}

/** Deletes up to `limit` counts of lanes that hold nothing, and of minutes that are over, and returns how many. */
export async function pruneLaneCounts(db: Db, limit: number): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with empty as (
      delete from lane_counts where ctid = any(array(
        select ctid from lane_counts where waiting = 0 and leased = 0 and dead = 0 limit ${limit} for update skip locked))
      returning 1
    ),
    over as (
      delete from lane_dues where ctid = any(array(
        select ctid from lane_dues where due_at <= carillon_now() - interval '1 hour' limit ${limit} for update skip locked))
      returning 1
    )
    select ((select count(*) from empty) + (select count(*) from over))::int as count`.execute(db);
  return rows[0]?.count ?? 0;
}
