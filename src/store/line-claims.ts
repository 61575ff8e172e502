import { randomBytes } from "node:crypto";
import { type RawBuilder, sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { pairToUuid, seqInLane, uuidToPair } from "../domain/line-ids.ts";
import { JSON_TYPE, lists, type PlacedRow, type PublishedInLine, toPublished } from "./line.ts";
import type { MessageRow, NewMessage } from "./messages.ts";

/** What one consumer asks for. */
export interface ClaimRequest {
  /** Most messages to hand out. */
  readonly limit: number;
  /** Length of the lease. Undefined: the queue's. */
  readonly visibilitySeconds?: number | undefined;
  /** The caller's name for this hand-out, by which it can be asked for again. Empty or undefined for none. */
  readonly requestId?: string | undefined;
}

/** What a look at a queue's line found. */
export interface LineClaim {
  /** Whether messages outside the line can be handed out. */
  readonly setAside: boolean;
  /** Whether the queue is plain no more and what stands in its line is to be moved out of it. */
  readonly draining: boolean;
  /** Whether leases ran out and wait to be taken back. */
  readonly expired: boolean;
  /** The database's time. */
  readonly askedAt: Date;
  /** The messages for each request, in the order of the requests. */
  readonly messages: readonly (readonly MessageRow[])[];
}

/** Before every instant that matters. */
const LONG_AGO = new Date(0);

interface ClaimedRow {
  readonly lane_id: string;
  readonly set_aside: boolean | null;
  readonly draining: boolean | null;
  readonly expired: boolean | null;
  readonly asked_at: Date | null;
  readonly request: number | null;
  readonly seq: string;
  readonly token: string;
  readonly published_at: Date;
  readonly lease_expires_at: Date;
  readonly priority: number;
  readonly group_id: string;
  readonly content_type: string | null;
  readonly headers: Record<string, string> | null;
  readonly payload: Buffer;
}

/**
 * Hands out the next messages of a queue's line, to each request up to its limit. Nothing while the queue is paused.
 * Undefined when there is no such queue. Claims that ended at `expiredSince` or before do not count as `expired`.
 */
export async function claimFromLine(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  expiredSince: Date = LONG_AGO,
): Promise<LineClaim | undefined> {
  const { rows } = await sql<ClaimedRow>`
    select * from carillon_line_claim(${projectId}, ${queueName}, ${asked(requests)}, ${expiredSince})`.execute(db);
  return toClaim(rows, requests.length);
}

/** What was published, and claimed in the same transaction. */
export interface PublishedAndClaimed {
  readonly placed: PublishedInLine;
  readonly claim: LineClaim;
}

/**
 * Puts plain messages at the end of a queue's line and hands out the next of the line, in one transaction. Undefined, and
 * nothing is done, when there is no such queue or it has no line.
 */
export async function publishAndClaim(
  db: Db,
  projectId: string,
  queueName: string,
  messages: readonly NewMessage[],
  requests: readonly ClaimRequest[],
  expiredSince: Date,
): Promise<PublishedAndClaimed | undefined> {
  const { rows } = await sql<ClaimedRow & PlacedRow>`
    select * from carillon_line_publish_and_claim(
      ${projectId}, ${queueName}, ${lists(messages)}, ${asked(requests)}, ${expiredSince})`.execute(db);
  const claim = toClaim(rows, requests.length);
  if (rows[0] === undefined || claim === undefined) return undefined;
  return { placed: toPublished(rows[0], messages.length), claim };
}

/** The arguments that describe requests, as carillon_line_claim takes them. */
function asked(requests: readonly ClaimRequest[]): RawBuilder<unknown> {
  return sql`${requests.map((r) => r.limit)}::int[], ${requests.map((r) => r.visibilitySeconds ?? null)}::int[],
    ${requests.map(() => randomBytes(8).readBigInt64BE())}::bigint[], ${requests.map((r) => r.requestId || null)}::text[]`;
}

function toClaim(rows: readonly ClaimedRow[], count: number): LineClaim | undefined {
  const [about, ...claimed] = rows;
  if (about === undefined) return undefined;
  const messages = Array.from({ length: count }, (): MessageRow[] => []);
  for (const row of claimed) messages[(row.request ?? 0) - 1]?.push(toMessageRow(row));
  return {
    setAside: about.set_aside ?? false,
    draining: about.draining ?? false,
    expired: about.expired ?? false,
    askedAt: about.asked_at ?? LONG_AGO,
    messages,
  };
}

function toMessageRow(
  row: Omit<ClaimedRow, "set_aside" | "draining" | "expired" | "asked_at" | "request">,
): MessageRow {
  const seq = BigInt(row.seq);
  return {
    message_id: pairToUuid(BigInt(row.lane_id), seq),
    payload: row.payload,
    content_type: row.content_type ?? JSON_TYPE,
    headers: row.headers ?? {},
    group_id: row.group_id,
    priority: row.priority,
    receive_count: 1,
    failure_count: 0,
    return_count: 0,
    expiry_count: 0,
    published_at: row.published_at,
    visible_at: row.published_at,
    lease_token: pairToUuid(BigInt(row.token), seq),
    lease_expires_at: row.lease_expires_at,
    error: null,
    dead_reason: null,
    dead_lettered_at: null,
    source_queue: null,
  };
}

/** The messages that an earlier hand-out with this request id claimed and that are still under that lease. */
export async function repeatClaims(db: Db, queue: QueueRow, requestId: string): Promise<MessageRow[]> {
  const { rows } = await sql<ClaimedRow>`
    select m.*, c.token, c.expires_at as lease_expires_at from line_claims c
    join line_messages m on m.lane_id = c.lane_id and m.seq > c.lo and m.seq <= c.hi and m.seq = any(c.open_seqs)
    where c.lane_id = ${queue.lane_id} and c.request = ${requestId} and not c.settled and c.expires_at > carillon_now()
    order by m.seq`.execute(db);
  return rows.map(toMessageRow);
}

/** A delivery of a message: its id and, where the caller has one, the receipt. */
export interface LineDelivery {
  readonly messageId: string;
  readonly receipt: string | undefined;
}

/**
 * Removes those of the messages that are open in a claim, by the receipts given, and returns for each receipt (or for the
 * message id, where none was given) whether the lease had ended before. What it does not return is untouched and may be
 * anywhere.
 */
export async function ackInLine(
  db: Db,
  queue: Pick<QueueRow, "project_id" | "name">,
  laneId: string,
  deliveries: readonly LineDelivery[],
): Promise<Map<string, { readonly late: boolean }>> {
  const { seqs, tokens } = numbers(laneId, deliveries);
  if (seqs.length === 0) return new Map();
  const { rows } = await sql<{ seq: string; token: string | null; late: boolean }>`
    select done.* from queues q, carillon_line_settle(q.lane_id, ${seqs}::bigint[], ${tokens}::bigint[]) done
    where q.project_id = ${queue.project_id} and q.name = ${queue.name} and q.lane_id = ${laneId}`.execute(db);
  return new Map(rows.map(({ seq, token, late }) => [pairToUuid(BigInt(token ?? laneId), BigInt(seq)), { late }]));
}

/** Numbers and tokens of those deliveries that can be in the lane. */
function numbers(laneId: string, deliveries: readonly LineDelivery[]) {
  const seqs: bigint[] = [];
  const tokens: (bigint | null)[] = [];
  for (const { messageId, receipt } of deliveries) {
    const seq = seqInLane(laneId, messageId);
    const proof = receipt === undefined ? undefined : uuidToPair(receipt);
    if (seq === undefined || (proof !== undefined && proof.low !== seq)) continue;
    seqs.push(seq);
    tokens.push(proof?.high ?? null);
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
  await setAside(
    trx,
    queue,
    seqs.map((seq) => pairToUuid(BigInt(queue.lane_id), BigInt(seq))),
  );
  return rows.length;
}

/** How a message that may have stood in the line stands now, as far as the line knows. */
export type LineStanding = "waiting" | "claimed" | "acked" | "unknown";

/**
 * How a message stands: waiting in the line, claimed by somebody, acked, or unknown: it never was there, was set aside or
 * purged, or left it long ago.
 */
export async function lineStanding(db: Db, queue: QueueRow, messageId: string): Promise<LineStanding> {
  const seq = seqInLane(queue.lane_id, messageId);
  if (seq === undefined) return "unknown";
  const { rows } = await sql<{ standing: LineStanding }>`
    select case
      when c.hi is null then
        case when exists (select from line_messages where lane_id = ${queue.lane_id} and seq = ${seq}) then 'waiting' else 'unknown' end
      when c.lo >= ${seq} or c.purged or ${seq} = any(c.aside_seqs) then 'unknown'
      when ${seq} = any(c.open_seqs) then 'claimed'
      else 'acked'
    end as standing
    from (select) one left join lateral (
      select * from line_claims where lane_id = ${queue.lane_id} and hi >= ${seq} order by hi limit 1) c on true`.execute(
    db,
  );
  return rows[0]?.standing ?? "unknown";
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
  return new Set(rows.map(({ seq }) => pairToUuid(BigInt(queue.lane_id), BigInt(seq))));
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
 * Makes the lease of one message end `visibilitySeconds` from now and returns the new end; undefined when it is not open
 * in a claim by itself. One that shares its claim is to be set aside first.
 */
export async function extendClaim(
  db: Db,
  queue: QueueRow,
  delivery: LineDelivery,
  visibilitySeconds: number,
): Promise<Date | undefined> {
  const { seqs, tokens } = numbers(queue.lane_id, [delivery]);
  const [seq] = seqs;
  if (seq === undefined) return undefined;
  const { rows } = await sql<{ expires_at: Date }>`
    update line_claims set expires_at = carillon_now() + make_interval(secs => ${visibilitySeconds})
    where lane_id = ${queue.lane_id} and open_seqs = array[${seq}::bigint] and expires_at > carillon_now()
      and hi = (select hi from line_claims where lane_id = ${queue.lane_id} and hi >= ${seq} order by hi limit 1)
      and (${tokens[0] ?? null}::bigint is null or token = ${tokens[0] ?? null}::bigint)
    returning expires_at`.execute(db);
  return rows[0]?.expires_at;
}
