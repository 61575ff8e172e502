import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { NIL_UUID } from "../domain/ids.ts";

/** What a node did with a queue. */
export interface QueueActivity {
  readonly projectId: string;
  readonly queueName: string;
  published: number;
  delivered: number;
  acked: number;
  nacked: number;
}

/** The parts of a minute that are not one node's: the sample, and what a minute that is over is folded into. */
const FOLDED = NIL_UUID;
const SAMPLE = "ffffffff-ffff-ffff-ffff-ffffffffffff";

const THIS_MINUTE = sql`date_bin('1 minute', carillon_now(), 'epoch')`;

/** Adds to the part of this minute that is the node's. Queues that are not there any more are left out. */
export async function recordActivity(db: Db, part: string, activities: readonly QueueActivity[]): Promise<void> {
  await sql`
    insert into queue_history as h (project_id, queue_id, part, published, delivered, acked, nacked)
    select q.project_id, q.queue_id, ${part}::uuid, a.published, a.delivered, a.acked, a.nacked
    from unnest(
      ${activities.map((a) => a.projectId)}::uuid[], ${activities.map((a) => a.queueName)}::text[],
      ${activities.map((a) => a.published)}::int[], ${activities.map((a) => a.delivered)}::int[],
      ${activities.map((a) => a.acked)}::int[], ${activities.map((a) => a.nacked)}::int[]
    ) as a (project_id, name, published, delivered, acked, nacked)
    join queues q on q.project_id = a.project_id and q.name = a.name
    on conflict (project_id, queue_id, minute, part) do update
    set published = h.published + excluded.published, delivered = h.delivered + excluded.delivered,
        acked = h.acked + excluded.acked, nacked = h.nacked + excluded.nacked`.execute(db);
}

/** Counts with the transaction that does it: leases that ran out, or messages that died. A row each, so nobody waits. */
export async function recordWithTransaction(
  trx: Db,
  queue: Pick<QueueRow, "project_id" | "queue_id">,
  what: "expired" | "dead",
  count: number,
): Promise<void> {
  if (count === 0) return;
  await sql`
    insert into queue_history (project_id, queue_id, ${sql.ref(what)})
    values (${queue.project_id}, ${queue.queue_id}, ${count})`.execute(trx);
}

/**
 * Takes up to `limit` parts of minutes that are over into one for each minute, and returns how many. Any number of nodes
 * may do so at once. A part that comes late is folded later.
 */
export async function foldHistory(db: Db, limit: number): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with taken as (
      delete from queue_history where ctid = any(array(
        select ctid from queue_history
        where part <> ${sql.lit(FOLDED)} and part <> ${sql.lit(SAMPLE)} and minute < ${THIS_MINUTE} - interval '1 minute'
        limit ${limit} for update skip locked))
      returning *
    ),
    folded as (
      insert into queue_history as h (project_id, queue_id, minute, part, published, delivered, acked, nacked, expired, dead)
      select project_id, queue_id, minute, ${FOLDED}::uuid, sum(published), sum(delivered), sum(acked), sum(nacked),
             sum(expired), sum(dead)
      from taken group by project_id, queue_id, minute order by project_id, queue_id, minute
      on conflict (project_id, queue_id, minute, part) do update
      set published = h.published + excluded.published, delivered = h.delivered + excluded.delivered,
          acked = h.acked + excluded.acked, nacked = h.nacked + excluded.nacked,
          expired = h.expired + excluded.expired, dead = h.dead + excluded.dead
    )
    select count(*)::int as count from taken`.execute(db);
  return rows[0]?.count ?? 0;
}

/**
 * Writes down how many messages each queue holds and how old the first in line is, once a minute, whoever comes first.
 * Queues that hold nothing and have had nothing to do for two minutes are left out. Returns how many were sampled.
 */
export async function sampleQueues(db: Db): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with turn as (
      update history_samples set minute = ${THIS_MINUTE} where minute < ${THIS_MINUTE} returning minute
    ),
    outside as materialized (
      select project_id, queue_id, sum(held) as depth from (
        select project_id, queue_id, waiting + leased as held from lane_counts
        union all
        select project_id, queue_id, waiting + leased from lane_changes
      ) c group by project_id, queue_id
    ),
    claimed as materialized (
      select lane_id, sum(cardinality(open_seqs)) as depth from line_claims where not settled group by lane_id
    ),
    busy as materialized (
      select distinct project_id, queue_id from queue_history
      where minute >= ${THIS_MINUTE} - interval '2 minutes' and (part <> ${SAMPLE} or depth > 0)
    ),
    held as (
      select q.project_id, q.queue_id, turn.minute, b.queue_id is not null as busy,
             coalesce(o.depth, 0) + coalesce(c.depth, 0) + coalesce(last.seq - cursor.seq, 0) as depth,
             least(line_head.published_at, lane_head.published_at) as published_at
      from turn cross join queues q
      left join outside o on o.project_id = q.project_id and o.queue_id = q.queue_id
      left join claimed c on c.lane_id = q.lane_id
      left join busy b on b.project_id = q.project_id and b.queue_id = q.queue_id
      cross join lateral (select carillon_line_cursor(q.lane_id) as seq) cursor
      left join lateral (
        select m.seq from line_messages m where m.lane_id = q.lane_id and m.seq > cursor.seq order by m.seq desc limit 1
      ) last on true
      left join lateral (
        select m.published_at from line_messages m where m.lane_id = q.lane_id and m.seq > cursor.seq order by m.seq limit 1
      ) line_head on last.seq is not null
      left join lateral (
        select m.published_at from messages m
        where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
          and m.rank <= carillon_now() and m.visible_at <= carillon_now()
        order by m.rank, m.seq limit 1
      ) lane_head on o.depth > 0
    ),
    sampled as (
      insert into queue_history (project_id, queue_id, minute, part, depth, oldest_age_seconds)
      select project_id, queue_id, minute, ${SAMPLE}::uuid, depth,
             case when published_at is not null then greatest(extract(epoch from carillon_now() - published_at), 0)::int end
      from held where depth > 0 or busy
      on conflict (project_id, queue_id, minute, part) do nothing
      returning 1
    )
    select count(*)::int as count from sampled`.execute(db);
  return rows[0]?.count ?? 0;
}

/** What went through a queue in some time. */
export interface ActivityRow {
  readonly published: number;
  readonly delivered: number;
  readonly acked: number;
  readonly nacked: number;
  readonly expired: number;
  readonly dead: number;
}

/** What went through a queue in one span of time. */
export interface HistoryBucketRow extends ActivityRow {
  readonly starts_at: Date;
  /** At the last sample of the span. Null where there was none. */
  readonly depth: number | null;
  readonly oldest_age_seconds: number | null;
}

const sum = (column: string) => sql`least(coalesce(sum(${sql.ref(column)}), 0), 2147483647)::int as ${sql.ref(column)}`;
const ACTIVITY = sql.join(["published", "delivered", "acked", "nacked", "expired", "dead"].map(sum));

export interface HistorySpan {
  /** Default: an hour before until. */
  readonly since: Date | undefined;
  /** Default: now. */
  readonly until: Date | undefined;
  readonly bucketSeconds: number;
}

/**
 * What went through a queue from `since` on and before `until`, in spans of `bucketSeconds`, which begin at multiples of
 * it since 1970. Spans in which nothing happened and nothing was sampled are left out. The first span is whole.
 */
export async function queueHistory(
  db: Db,
  queue: QueueRow,
  { since, until, bucketSeconds }: HistorySpan,
): Promise<HistoryBucketRow[]> {
  const end = sql`coalesce(${until ?? null}::timestamptz, carillon_now())`;
  const begin = sql`coalesce(${since ?? null}::timestamptz, ${end} - interval '1 hour')`;
  const bucket = sql`make_interval(secs => ${bucketSeconds})`;
  const newest = (column: string) =>
    sql`(array_agg(${sql.ref(column)} order by minute desc) filter (where depth is not null))[1] as ${sql.ref(column)}`;
  const { rows } = await sql<HistoryBucketRow>`
    select date_bin(${bucket}, minute, 'epoch') as starts_at, ${ACTIVITY}, ${newest("depth")}, ${newest("oldest_age_seconds")}
    from queue_history
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id}
      and minute >= date_bin(${bucket}, ${begin}, 'epoch') and minute < ${end}
    group by 1 order by 1`.execute(db);
  return rows;
}

/** What went through a queue in the last 60 minutes and this one. */
export async function lastHour(db: Db, queue: QueueRow): Promise<ActivityRow> {
  const { rows } = await sql<ActivityRow>`
    select ${ACTIVITY} from queue_history
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id}
      and minute >= ${THIS_MINUTE} - interval '60 minutes'`.execute(db);
  const [activity] = rows;
  if (activity === undefined) throw new Error("an aggregate without a row");
  return activity;
}

/** Days for which minutes are kept. */
const HISTORY_DAYS = 7;

/** Deletes up to `limit` parts of minutes of more than a week ago and returns how many. */
export async function pruneHistory(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from queue_history where ctid = any(array(
      select ctid from queue_history where minute < carillon_now() - make_interval(days => ${HISTORY_DAYS})
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
