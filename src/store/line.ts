import { type RawBuilder, sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { firstHalf, lineUuid } from "../domain/line-ids.ts";
import type { NewMessage } from "./messages.ts";

/** Whether a message is like every other of its queue but for its turn, so that it may stand in the queue's line. */
export function isPlain(message: NewMessage): boolean {
  return message.delaySeconds === 0 && message.ttlSeconds === undefined && message.deduplicationKey === undefined;
}

/** What the line leaves out because most messages have it. */
export const JSON_TYPE = "application/json";

/** What was put into a line. */
export interface PublishedInLine {
  /** In the order of the messages. */
  readonly ids: readonly string[];
  /** Whether the queue has push subscriptions. */
  readonly subscribed: boolean;
}

/**
 * Puts plain messages at the end of the queue's line, in the order given. Undefined, and nothing is stored, when there is
 * no such queue or it has no line.
 *
 * One statement, for any number of callers' messages together. Publishers of a queue take turns from here until the
 * transaction ends, so it is to be the last statement of one.
 */
export async function publishInLine(
  db: Db,
  projectId: string,
  queueName: string,
  messages: readonly NewMessage[],
): Promise<PublishedInLine | undefined> {
  const { rows } = await sql<PlacedRow>`
    select * from carillon_line_publish(${projectId}, ${queueName}, ${lists(messages)})`.execute(db);
  return rows[0] === undefined ? undefined : toPublished(rows[0], messages.length);
}

/** What a statement that publishes says of it. */
export interface PlacedRow {
  readonly lane_id: string;
  readonly first_seq: string;
  readonly subscribed: boolean;
}

export function toPublished({ lane_id, first_seq, subscribed }: PlacedRow, count: number): PublishedInLine {
  const half = firstHalf(BigInt(lane_id));
  const first = Number(first_seq);
  return { ids: Array.from({ length: count }, (_, i) => lineUuid(half, first + i)), subscribed };
}

/** The arguments that describe messages, as carillon_line_publish takes them. */
export function lists(messages: readonly NewMessage[]): RawBuilder<unknown> {
  return sql`${Buffer.concat(messages.map((m) => m.payload))}::bytea,
    ${messages.map((m) => m.payload.byteLength)}::int[],
    ${unlessAll(messages, (m) => m.priority, 0)}::smallint[],
    ${unlessAll(messages, (m) => m.groupId, "")}::text[],
    ${unlessAll(messages, (m) => (m.contentType === JSON_TYPE ? null : m.contentType), null)}::text[],
    ${unlessAll(messages, (m) => (Object.keys(m.headers).length === 0 ? null : JSON.stringify(m.headers)), null)}::text[]`;
}

/** The list of one property, or null where every message has its default: most lists then cost nothing. */
function unlessAll<T>(messages: readonly NewMessage[], of: (message: NewMessage) => T, usual: T): T[] | null {
  const values = messages.map(of);
  return values.every((value) => value === usual) ? null : values;
}

/** Most messages of a line that one step of a purge deletes. It bounds the time that a statement takes. */
const PURGE_STEP = 20_000;

/**
 * Removes every message that was in the line before the transaction began, handed out or not, and returns how many.
 * Claimers of the queue wait until the transaction ends.
 */
export async function purgeLine(trx: Db, queue: QueueRow): Promise<number> {
  await lockClaims(trx, queue);
  const { rows } = await sql<{ count: number }>`
    with dropped as (
      select hi, lo, cardinality(open_seqs) as count from line_claims
      where lane_id = ${queue.lane_id} and not settled order by hi for update
    ),
    claims as (
      update line_claims c set open_seqs = '{}', settled = true, purged = true from dropped d
      where c.lane_id = ${queue.lane_id} and c.hi = d.hi
    ),
    gone as (
      delete from line_messages m using dropped d
      where m.lane_id = ${queue.lane_id} and m.seq > d.lo and m.seq <= d.hi
    )
    select coalesce(sum(count), 0)::int as count from dropped`.execute(trx);
  return (rows[0]?.count ?? 0) + (await dropLine(trx, queue));
}

async function dropLine(trx: Db, queue: QueueRow): Promise<number> {
  for (let purged = 0; ; ) {
    const { rows } = await sql<{ count: number }>`
      select carillon_line_drop(${queue.lane_id}, carillon_now(), ${PURGE_STEP}) as count`.execute(trx);
    const count = rows[0]?.count ?? 0;
    purged += count;
    if (count === 0) return purged;
  }
}

/** Moves up to `limit` messages off the front of the line of a queue that is plain no more, and returns how many. */
export async function drainLine(trx: Db, queue: QueueRow, limit: number): Promise<number> {
  await lockClaims(trx, queue);
  const { rows } = await sql<{ count: number }>`
    select carillon_line_drain(${queue.project_id}, ${queue.queue_id}, ${queue.lane_id},
                               ${queue.message_retention_days}, ${limit}) as count`.execute(trx);
  return rows[0]?.count ?? 0;
}

/** Makes claimers of a queue's line wait until the transaction ends. */
async function lockClaims(trx: Db, queue: QueueRow): Promise<void> {
  await sql`select pg_advisory_xact_lock(${queue.lane_id}::bigint * 2 + 1)`.execute(trx);
}

/** What stands in a queue's line, and what went through it in the last 60 seconds. */
export interface LineStats {
  readonly available: number;
  readonly in_flight: number;
  readonly oldest_age_seconds: number | null;
  readonly published: number;
  readonly acked: number;
}

/** Tells of a line without a look at what stands in it: numbers are dense, so what waits is a difference. */
export async function lineStats(db: Db, queue: QueueRow): Promise<LineStats> {
  const { rows } = await sql<LineStats>`
    with lane as (select ${queue.lane_id}::bigint as lane_id, carillon_line_cursor(${queue.lane_id}) as cursor),
    minute as (
      select c.* from lane, line_claims c
      where c.lane_id = lane.lane_id and not c.purged and c.hi > coalesce((
        select o.hi from line_claims o
        where o.lane_id = lane.lane_id and o.claimed_at <= carillon_now() - interval '60 seconds'
        order by o.hi desc limit 1), 0)
    ),
    -- Both ends of the line by one look into its key each: a join would be sorted, and so read the whole line.
    waiting as (
      select coalesce((select m.seq from line_messages m where m.lane_id = lane.lane_id and m.seq > lane.cursor
                       order by m.seq desc limit 1) - lane.cursor, 0) as count,
             (select m.published_at from line_messages m where m.lane_id = lane.lane_id and m.seq > lane.cursor
              order by m.seq limit 1) as first_published_at
      from lane
    ),
    open as (
      select coalesce(sum(cardinality(c.open_seqs)) filter (where c.expires_at > carillon_now()), 0) as leased,
             coalesce(sum(cardinality(c.open_seqs)) filter (where c.expires_at <= carillon_now()), 0) as lapsed,
             min(c.first_published_at) filter (where c.expires_at <= carillon_now()) as first_lapsed_at
      from lane, line_claims c where c.lane_id = lane.lane_id and not c.settled
    )
    select (waiting.count + open.lapsed)::int as available, open.leased::int as in_flight,
      extract(epoch from carillon_now() - least(open.first_lapsed_at, waiting.first_published_at))::int as oldest_age_seconds,
      ((select carillon_line_published_since(lane.lane_id, carillon_now() - interval '60 seconds') from lane)
       + (select coalesce(sum(hi - lo), 0) from minute where first_published_at > carillon_now() - interval '60 seconds')
      )::int as published,
      (select coalesce(sum(hi - lo - cardinality(open_seqs)), 0) from minute)::int as acked
    from waiting, open`.execute(db);
  const stats = rows[0];
  if (stats === undefined) throw new Error("an aggregate without a row");
  return stats;
}
