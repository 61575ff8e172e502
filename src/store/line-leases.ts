import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { areOfSame, firstHalf, isReceiptFor, lineUuid, seqInLane, tokenOf } from "../domain/line-ids.ts";

/** A delivery of a message: its id and, where the caller has one, the receipt. */
export interface LineDelivery {
  readonly messageId: string;
  readonly receipt: string | undefined;
}

/** What became of a delivery that was acked in the line. */
export interface AckedInLine {
  /** Whether its lease had ended before. */
  readonly late: boolean;
}

/**
 * Removes those of the messages that are open in a claim, and says for each delivery what became of it; undefined where it
 * is untouched, and may be anywhere.
 */
export async function ackInLine(
  db: Db,
  queue: Pick<QueueRow, "project_id" | "name">,
  laneId: string,
  deliveries: readonly LineDelivery[],
): Promise<(AckedInLine | undefined)[]> {
  const acked = deliveries.map((): AckedInLine | undefined => undefined);
  const ranges = rangesOf(laneId, deliveries);
  if (ranges.length === 0) return acked;
  const { rows } = await sql<{ place: number; late: boolean; seqs: string[] | null }>`
    select done.* from queues q, carillon_line_settle(
      q.lane_id, ${ranges.map(({ first }) => first)}::bigint[], ${ranges.map(({ last }) => last)}::bigint[],
      ${ranges.map(({ token }) => token)}::bigint[]) done
    where q.project_id = ${queue.project_id} and q.name = ${queue.name} and q.lane_id = ${laneId}`.execute(db);
  for (const { place, late, seqs } of rows) {
    const range = ranges[place - 1];
    if (range === undefined) continue;
    const taken = seqs && new Set(seqs.map(Number));
    for (const [i, delivery] of range.deliveries.entries()) {
      if (taken === null || taken.has(range.first + i)) acked[delivery] = { late };
    }
  }
  return acked;
}

/** Deliveries of one claim whose messages follow one another in the line. */
interface Range {
  readonly first: number;
  last: number;
  /** Null: of whatever claim has it. */
  readonly token: bigint | null;
  /** Their places among all deliveries, in the order of the line. */
  readonly deliveries: number[];
}

/** Those of the deliveries that can be in the lane, in the order of the line. What is acked as it was handed out is one. */
function rangesOf(laneId: string, deliveries: readonly LineDelivery[]): Range[] {
  const ranges: Range[] = [];
  let range: Range | undefined;
  let previous: LineDelivery | undefined;
  for (const [place, delivery] of deliveries.entries()) {
    const { messageId, receipt } = delivery;
    const seq = seqInLane(laneId, messageId);
    if (seq === undefined || (receipt !== undefined && !isReceiptFor(messageId, receipt))) continue;
    const follows = range !== undefined && seq === range.last + 1 && isOfSameClaim(receipt, previous?.receipt);
    if (range !== undefined && follows) {
      range.last = seq;
      range.deliveries.push(place);
    } else {
      range = { first: seq, last: seq, token: receipt === undefined ? null : tokenOf(receipt), deliveries: [place] };
      ranges.push(range);
    }
    previous = delivery;
  }
  return ranges.sort((a, b) => a.first - b.first);
}

function isOfSameClaim(receipt: string | undefined, other: string | undefined): boolean {
  return receipt !== undefined && other !== undefined && areOfSame(receipt, other);
}

/** Numbers and tokens of those deliveries that can be in the lane. */
function numbers(laneId: string, deliveries: readonly LineDelivery[]) {
  const seqs: number[] = [];
  const tokens: (bigint | null)[] = [];
  for (const { messageId, receipt } of deliveries) {
    const seq = seqInLane(laneId, messageId);
    if (seq === undefined || (receipt !== undefined && !isReceiptFor(messageId, receipt))) continue;
    seqs.push(seq);
    tokens.push(receipt === undefined ? null : tokenOf(receipt));
  }
  return { seqs, tokens };
}

/**
 * Moves those of the messages that are open in a claim to where messages are kept one by one, with the leases that they
 * have. What is not in a claim stays where it is.
 */
export async function setAside(trx: Db, queue: QueueRow, messageIds: readonly string[]): Promise<void> {
  const seqs = messageIds.flatMap((id) => seqInLane(queue.lane_id, id) ?? []);
  if (seqs.length === 0) return;
  await sql`
    select carillon_line_set_aside(${queue.project_id}, ${queue.queue_id}, ${queue.lane_id},
                                   ${queue.message_retention_days}, ${seqs}::bigint[])`.execute(trx);
}

/** How many claims one call takes back, so that its transaction stays short. */
const EXPIRE_STEP = 50;

/**
 * Sets aside what is open in claims of the queue that ran out; the leases that it has there have run out too, and are
 * taken back there. Returns how many claims there were.
 */
export async function expireClaims(trx: Db, queue: QueueRow): Promise<number> {
  const { rows } = await sql<{ open_seqs: string[] }>`
    select open_seqs from line_claims
    where lane_id = ${queue.lane_id} and not settled and expires_at <= carillon_now()
    order by expires_at limit ${EXPIRE_STEP}`.execute(trx);
  const seqs = rows.flatMap((row) => row.open_seqs);
  const half = firstHalf(BigInt(queue.lane_id));
  await setAside(
    trx,
    queue,
    seqs.map((seq) => lineUuid(half, Number(seq))),
  );
  return rows.length;
}

/** How a message that may have stood in the line stands now, as far as the line knows. */
export type LineStanding = "waiting" | "claimed" | "acked" | "unknown";

/**
 * How messages stand, by their ids: waiting in the line, claimed by somebody, acked, or unknown: it never was there, was
 * set aside or purged, or left it long ago. Those that cannot have been in the line are left out.
 */
export async function lineStandings(
  db: Db,
  queue: QueueRow,
  messageIds: readonly string[],
): Promise<ReadonlyMap<string, LineStanding>> {
  const seqs = messageIds.flatMap((id) => seqInLane(queue.lane_id, id) ?? []);
  if (seqs.length === 0) return new Map();
  const { rows } = await sql<{ seq: string; standing: LineStanding }>`
    select u.seq, case
      when c.hi is null then
        case when exists (select from line_messages where lane_id = ${queue.lane_id} and seq = u.seq) then 'waiting' else 'unknown' end
      when c.lo >= u.seq or c.purged or u.seq = any(c.aside_seqs) then 'unknown'
      when u.seq = any(c.open_seqs) then 'claimed'
      else 'acked'
    end as standing
    from unnest(${seqs}::bigint[]) as u (seq) left join lateral (
      select * from line_claims where lane_id = ${queue.lane_id} and hi >= u.seq order by hi limit 1) c on true`.execute(
    db,
  );
  const half = firstHalf(BigInt(queue.lane_id));
  return new Map(rows.map(({ seq, standing }) => [lineUuid(half, Number(seq)), standing]));
}

/** Those of the deliveries, receipts by message id, whose lease in the line still holds. */
export async function liveClaims(
  db: Db,
  queue: QueueRow,
  deliveries: readonly LineDelivery[],
): Promise<ReadonlySet<string>> {
  const { seqs, tokens } = numbers(queue.lane_id, deliveries);
  if (seqs.length === 0) return new Set();
  const { rows } = await sql<{ seq: string }>`
    select g.seq from unnest(${seqs}::bigint[], ${tokens}::bigint[]) as g (seq, token)
    cross join lateral (
      select * from line_claims where lane_id = ${queue.lane_id} and hi >= g.seq order by hi limit 1) c
    where c.token = g.token and g.seq = any(c.open_seqs) and c.expires_at > carillon_now()`.execute(db);
  const half = firstHalf(BigInt(queue.lane_id));
  return new Set(rows.map(({ seq }) => lineUuid(half, Number(seq))));
}

/** Makes the claims that have the deliveries open end `visibilitySeconds` from now, each as a whole. */
export async function extendClaims(
  db: Db,
  queue: QueueRow,
  deliveries: readonly LineDelivery[],
  visibilitySeconds: number,
): Promise<void> {
  const { seqs, tokens } = numbers(queue.lane_id, deliveries);
  if (seqs.length === 0) return;
  await sql`
    update line_claims set expires_at = carillon_now() + make_interval(secs => ${visibilitySeconds})
    where ctid = any(array(
      select c.ctid from unnest(${seqs}::bigint[], ${tokens}::bigint[]) as g (seq, token)
      cross join lateral (
        select ctid, * from line_claims where lane_id = ${queue.lane_id} and hi >= g.seq order by hi limit 1) c
      where c.token = g.token and not c.settled and c.expires_at > carillon_now()))`.execute(db);
}

/**
 * Makes the lease of each of the messages end so many seconds from now, and returns the new ends by message id, of those
 * that are open in a claim by themselves. One that shares its claim is to be set aside first.
 */
export async function extendClaimsSingly(
  db: Db,
  queue: QueueRow,
  deliveries: readonly (LineDelivery & { readonly visibilitySeconds: number })[],
): Promise<ReadonlyMap<string, Date>> {
  const inLane = deliveries.filter((delivery) => numbers(queue.lane_id, [delivery]).seqs.length > 0);
  if (inLane.length === 0) return new Map();
  const { seqs, tokens } = numbers(queue.lane_id, inLane);
  const { rows } = await sql<{ seq: string; expires_at: Date }>`
    update line_claims c set expires_at = carillon_now() + make_interval(secs => g.seconds)
    from (
      select u.*, (select hi from line_claims where lane_id = ${queue.lane_id} and hi >= u.seq order by hi limit 1) as hi
      from unnest(${seqs}::bigint[], ${tokens}::bigint[], ${inLane.map((d) => d.visibilitySeconds)}::int[])
        as u (seq, token, seconds)
    ) g
    where c.lane_id = ${queue.lane_id} and c.hi = g.hi and c.open_seqs = array[g.seq] and c.expires_at > carillon_now()
      and (g.token is null or c.token = g.token)
    returning g.seq, c.expires_at`.execute(db);
  const half = firstHalf(BigInt(queue.lane_id));
  return new Map(rows.map(({ seq, expires_at }) => [lineUuid(half, Number(seq)), expires_at]));
}
