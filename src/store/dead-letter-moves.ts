import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { NIL_UUID } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { type DeadLetterFilter, fromDied, IS_FREE, isSelective, isWanted, walkByIndex } from "./dead-letter-filter.ts";
import type { DeathPosition } from "./dead-letters.ts";
import { DELETE_PICKED, headStart, lockLane, TURN_SEQ } from "./messages.ts";

/** How many dead letters one statement looks at or removes. It bounds the memory and the time that a statement takes. */
const STEP = 5_000;

/**
 * Parts what has died so far from what will: dead letters with a lower seq died before. Unlike an instant it is exact,
 * whatever deaths are under way.
 */
export async function drawCut(db: Db): Promise<string> {
  const { rows } = await sql<{ seq: string }>`select ${TURN_SEQ} as seq`.execute(db);
  if (rows[0] === undefined) throw new Error("a sequence without a number");
  return rows[0].seq;
}

const before = (cut: string | undefined) => (cut === undefined ? sql`` : sql`and m.seq < ${cut}::bigint`);

/** The row of `found`, looked up by its whole key: any condition more may make the planner walk through the lane. */
const byKey = (queue: QueueRow) => sql`
  select m.* from messages m
  where m.project_id = ${queue.project_id} and m.queue_id = found.queue_id and m.message_id = found.message_id limit 1`;

/** Dead letters to move: the lanes that keep them, their ids, and the seqs of the deaths that are meant. */
export interface FoundDeadLetters {
  readonly laneIds: readonly string[];
  readonly messageIds: readonly string[];
  readonly seqs: readonly string[];
  /** Where to look on. Undefined: there is nothing to look at any more. */
  readonly next: DeathPosition | undefined;
}

/** Looks for up to `limit` free dead letters of a queue, oldest first, from the one after `after`, in a bounded number. */
export async function findFreeDeadLetters(
  trx: Db,
  queue: QueueRow,
  filter: DeadLetterFilter,
  { after, cut, limit }: { readonly after?: DeathPosition | undefined; readonly cut?: string; readonly limit: number },
): Promise<FoundDeadLetters> {
  const page =
    after === undefined
      ? sql``
      : sql`and (m.dead_lettered_at, m.seq) > (${after.deadLetteredAt}::timestamptz, ${after.seq}::bigint)`;
  const step = isSelective(filter) ? Math.max(limit, STEP) : limit;
  await walkByIndex(trx);
  const { rows } = await sql<{
    lane_ids: string[];
    message_ids: string[];
    seqs: string[];
    found_at: Date | null;
    walked: number;
    walked_at: Date | null;
    walked_seq: string | null;
  }>`
    with walk as materialized (
      select m.* ${fromDied(queue, filter)} ${before(cut)} ${page}
      order by m.dead_lettered_at, m.seq limit ${step}
    ),
    found as materialized (
      select m.queue_id, m.message_id, m.dead_lettered_at, m.seq from walk m where ${IS_FREE} and ${isWanted(filter)}
      order by m.dead_lettered_at, m.seq limit ${limit}
    ),
    edge as (select dead_lettered_at, seq from walk order by dead_lettered_at desc, seq desc limit 1)
    select array(select queue_id from found order by dead_lettered_at, seq) as lane_ids,
           array(select message_id from found order by dead_lettered_at, seq) as message_ids,
           array(select seq from found order by dead_lettered_at, seq) as seqs,
           (select max(dead_lettered_at) from found) as found_at,
           (select count(*)::int from walk) as walked,
           (select dead_lettered_at from edge) as walked_at, (select seq from edge) as walked_seq`.execute(trx);
  const row = rows[0];
  if (row === undefined) throw new Error("an aggregate without a row");
  const { lane_ids: laneIds, message_ids: messageIds, seqs } = row;
  const found = { laneIds, messageIds, seqs };
  const lastSeq = seqs.at(-1);
  if (messageIds.length === limit && row.found_at !== null && lastSeq !== undefined) {
    return { ...found, next: { deadLetteredAt: row.found_at, seq: lastSeq } };
  }
  if (row.walked < step || row.walked_at === null || row.walked_seq === null) return { ...found, next: undefined };
  return { ...found, next: { deadLetteredAt: row.walked_at, seq: row.walked_seq } };
}

/**
 * Moves dead letters of `queue` into the queue `to`, in the order of their deaths, with their failures forgotten and
 * their deaths remembered, and returns how many. One that is leased or locked by somebody else is left where it is. `to`
 * is to be held against deletion.
 */
export async function moveDeadLetters(
  trx: Db,
  queue: QueueRow,
  to: QueueRow,
  { laneIds, messageIds, seqs }: Omit<FoundDeadLetters, "next">,
): Promise<number> {
  if (messageIds.length === 0) return 0;
  await lockLane(trx, to.project_id, to.queue_id);
  const { rows } = await sql<{ count: number }>`
    with turn as (select ${TURN_SEQ} as seq),
    picked as materialized (
      select m.project_id, m.queue_id, m.message_id
      from unnest(${laneIds}::uuid[], ${messageIds}::uuid[], ${seqs}::bigint[]) as found (queue_id, message_id, seq)
      cross join lateral (${byKey(queue)} for update skip locked) m
      where m.seq = found.seq and m.source_queue_id = ${queue.queue_id} and not m.acked and ${IS_FREE}
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
      select project_id, ${to.queue_id}::uuid, message_id, turn.seq + row_number() over (order by dead_lettered_at, risen.seq),
             group_id, carillon_now() - ${headStart(to)}, priority, carillon_now(), receive_count, published_at,
             carillon_now() + make_interval(days => ${to.message_retention_days})
      from risen, turn
      returning message_id
    ),
    bodies_back as (
      insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
      select project_id, ${to.queue_id}::uuid, message_id, payload, content_type, headers, deaths from bodies
    )
    select count(*)::int as count from back`.execute(trx);
  return rows[0]?.count ?? 0;
}

/**
 * Puts up to `limit` free dead letters that the filter finds into the queue `to`, oldest first, and returns how many. `to`
 * is to be held against deletion.
 */
export async function redriveDeadLetters(
  trx: Db,
  queue: QueueRow,
  to: QueueRow,
  filter: DeadLetterFilter,
  limit: number,
  within?: AbortSignal,
): Promise<number> {
  let moved = 0;
  let after: DeathPosition | undefined;
  do {
    checkTime(within);
    const found = await findFreeDeadLetters(trx, queue, filter, { after, limit: Math.min(limit - moved, STEP) });
    moved += await moveDeadLetters(trx, queue, to, found);
    after = found.next;
  } while (after !== undefined && moved < limit);
  return moved;
}

/** @throws Refusal DEAD_LETTERS_TOO_MANY when the time of a walk is over, so that what it did is undone */
function checkTime(within: AbortSignal | undefined): void {
  if (within?.aborted) throw new Refusal("DEAD_LETTERS_TOO_MANY");
}

interface CountOptions {
  /** Also those that somebody holds. Default false. */
  readonly leased?: boolean;
  /** Only what died before it. */
  readonly cut?: string;
  /** Aborted when the count is to end. */
  readonly within?: AbortSignal | undefined;
}

/**
 * How many dead letters the filter finds.
 *
 * @throws Refusal DEAD_LETTERS_TOO_MANY
 */
export async function countDeadLetters(
  db: Db,
  queue: QueueRow,
  filter: DeadLetterFilter,
  { leased = false, cut, within }: CountOptions = {},
): Promise<number> {
  await walkByIndex(db);
  let count = 0;
  for (let after = NIL_UUID; ; ) {
    checkTime(within);
    const { rows } = await sql<{ found: number; last: string | null }>`
      with walk as materialized (
        select m.* ${fromDied(queue, filter)} ${before(cut)} and m.message_id > ${after}
        order by m.message_id limit ${STEP}
      )
      select (select count(*)::int from walk m where ${leased ? sql`true` : IS_FREE} and ${isWanted(filter)}) as found,
             (select message_id from walk order by message_id desc limit 1) as last`.execute(db);
    count += rows[0]?.found ?? 0;
    const last = rows[0]?.last ?? null;
    if (last === null) return count;
    after = last;
  }
}

/**
 * Removes the dead letters that the filter finds and that died before the cut, leased or not, and returns how many.
 *
 * @throws Refusal DEAD_LETTERS_TOO_MANY when `within` is aborted first
 */
export async function purgeDeadLetters(
  trx: Db,
  queue: QueueRow,
  filter: DeadLetterFilter,
  cut: string,
  within?: AbortSignal,
): Promise<number> {
  await walkByIndex(trx);
  let purged = 0;
  for (let after = NIL_UUID; ; ) {
    checkTime(within);
    // In the order of ids, as all that wait for many messages.
    const { rows } = await sql<{ purged: number; last: string | null }>`
      with walk as materialized (
        select m.* ${fromDied(queue, filter)} ${before(cut)} and m.message_id > ${after}
        order by m.message_id limit ${STEP}
      ),
      wanted as materialized (
        select m.queue_id, m.message_id from walk m where ${isWanted(filter)} order by m.message_id
      ),
      picked as materialized (
        select m.project_id, m.queue_id, m.message_id from wanted found cross join lateral (${byKey(queue)} for update) m
        where m.source_queue_id = ${queue.queue_id} and not m.acked ${before(cut)}
      ),
      ${DELETE_PICKED}
      select (select count(*)::int from gone) as purged,
             (select message_id from walk order by message_id desc limit 1) as last`.execute(trx);
    purged += rows[0]?.purged ?? 0;
    const last = rows[0]?.last ?? null;
    if (last === null) return purged;
    after = last;
  }
}
