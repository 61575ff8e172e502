import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { LEASE_RAN_OUT } from "../domain/push-outcome.ts";
import { buryMessages } from "./dead-letters.ts";
import { type ClaimRequest, repeatClaims } from "./line-claims.ts";
import { extendClaims, type LineDelivery, liveClaims, setAside } from "./line-leases.ts";
import { type MessageRow, type PlacedMessage, removeAcked } from "./messages.ts";
import { recordWithTransaction } from "./queue-history.ts";

export interface LeaseMessages {
  /** Most messages to hand out. */
  readonly limit: number;
  readonly visibilitySeconds: number;
  /** The caller's name for this hand-out, by which it can be asked for again. Empty for none. */
  readonly requestId: string;
}

const lane = (queue: QueueRow) => sql`m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id}`;

/** What a hand-out shows of a message: the columns of MessageRow. */
const MESSAGE_COLUMNS = sql`
  m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
  m.return_count, m.expiry_count, m.published_at, m.visible_at, m.lease_token, m.lease_expires_at, m.error, m.dead_reason, m.dead_lettered_at,
  null as source_queue`;

/**
 * Leases up to `limit` available messages and starts a new receipt for each: first in line first or, where the queue is
 * handed out by group, group by group. None while the queue is paused, and no more than its limits allow.
 *
 * Safe under any number of concurrent consumers: they step over rows that another one is leasing or, where the queue has
 * groups or limits, take turns until they commit. Leases that ran out are to be taken back before, not after, in the same
 * transaction: others wait for this one's turn.
 */
export async function leaseMessages(trx: Db, queue: QueueRow, request: LeaseMessages): Promise<MessageRow[]> {
  if (queue.paused) return [];
  return queue.grouped || queue.metered ? leaseInTurn(trx, queue, request) : leaseNextInLine(trx, queue, request);
}

/**
 * Who sets limits waits for the lock, so that no hand-out which does not know of them ends after they hold.
 *
 * The ids go through an array because the planner may otherwise join with a scan of the whole table. The queue is looked
 * at again: its row may be older than the limits that it has now.
 *
 * rank never lies after visible_at, so the bound on it keeps the scan from walking over messages to come.
 */
async function leaseNextInLine(trx: Db, queue: QueueRow, request: LeaseMessages): Promise<MessageRow[]> {
  await sql`select pg_advisory_xact_lock_shared(carillon_plain_lock(${queue.queue_id}))`.execute(trx);
  const { rows } = await sql<MessageRow>`
    with m as (
      update messages m
      set lease_token = gen_random_uuid(),
          lease_expires_at = carillon_now() + make_interval(secs => ${request.visibilitySeconds}),
          lease_request = nullif(${request.requestId}, ''),
          receive_count = receive_count + 1
      where ${lane(queue)} and m.message_id = any(array(
        select m.message_id from messages m
        where ${lane(queue)} and m.lease_expires_at is null and m.visible_at <= carillon_now()
          and m.expires_at > carillon_now() and m.rank <= carillon_now()
          and not exists (select from queues q where q.project_id = ${queue.project_id} and q.queue_id = ${queue.queue_id}
                          and (q.grouped or q.metered))
        order by m.rank, m.seq limit ${request.limit} for update of m skip locked))
      returning m.*
    )
    select ${MESSAGE_COLUMNS} from m join message_bodies b using (project_id, queue_id, message_id)
    order by m.rank, m.seq`.execute(trx);
  return rows;
}

async function leaseInTurn(trx: Db, queue: QueueRow, request: LeaseMessages): Promise<MessageRow[]> {
  const { rows: leased } = await sql<{ ids: string[] }>`
    select carillon_hand_out(${queue.project_id}, ${queue.queue_id}, ${request.limit}, ${request.visibilitySeconds},
                             ${request.requestId}) as ids`.execute(trx);
  const ids = leased[0]?.ids ?? [];
  if (ids.length === 0) return [];
  const { rows } = await sql<MessageRow>`
    select ${MESSAGE_COLUMNS} from unnest(${ids}::uuid[]) with ordinality as leased (message_id, place)
    cross join lateral (select m.* from messages m where ${lane(queue)} and m.message_id = leased.message_id limit 1) m
    cross join lateral (
      select b.* from message_bodies b
      where b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id limit 1) b
    order by leased.place`.execute(trx);
  return rows;
}

/** What a hand-out of a queue with groups or limits came to. */
export interface TurnTaken {
  /** Whether the queue has groups or limits. Without them nothing is handed out here. */
  readonly ownTurn: boolean;
  /** Whether messages stand in a line that the queue had before; nothing is handed out before they are moved out of it. */
  readonly draining: boolean;
  /** Whether leases ran out; nothing is handed out before they are taken back. */
  readonly expired: boolean;
  /** The database's time. */
  readonly askedAt: Date;
  /** The messages for each request, in the order of the requests. */
  readonly messages: MessageRow[][];
}

type TurnRow = MessageRow & {
  readonly own_turn: boolean;
  readonly draining: boolean;
  readonly expired: boolean;
  readonly asked_at: Date;
  readonly request: number | null;
};

/**
 * Hands out messages of a queue that has groups or limits, to each request up to its limit, in one statement. Undefined
 * when there is no such queue. Leases that ended at `expiredSince` or before do not count as `expired`.
 */
export async function handOutInTurn(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  expiredSince: Date,
): Promise<TurnTaken | undefined> {
  const asked = merged(requests);
  const { rows } = await sql<TurnRow>`
    select * from carillon_hand_out_in_turn(
      ${projectId}, ${queueName}, ${asked.map(({ limit }) => limit)}::int[],
      ${asked.map(({ visibilitySeconds }) => visibilitySeconds ?? null)}::int[],
      ${asked.map(({ requestId }) => requestId ?? "")}::text[], ${expiredSince})`.execute(db);
  const [about, ...leased] = rows;
  if (about === undefined) return undefined;
  const messages = asked.flatMap(({ parts }, i) => {
    const some = leased.filter(({ request }) => request === i + 1);
    return parts.map((limit) => some.splice(0, limit).map((row): MessageRow => ({ ...row, source_queue: null })));
  });
  return {
    ownTurn: about.own_turn,
    draining: about.draining,
    expired: about.expired,
    askedAt: about.asked_at,
    messages,
  };
}

/** Puts requests together that follow one another and differ in their limits only: they are served by one turn. */
function merged(requests: readonly ClaimRequest[]): (ClaimRequest & { readonly parts: readonly number[] })[] {
  const all: (ClaimRequest & { readonly parts: readonly number[] })[] = [];
  for (const request of requests) {
    const last = all.at(-1);
    const isAlike =
      last !== undefined &&
      last.visibilitySeconds === request.visibilitySeconds &&
      !last.requestId &&
      !request.requestId;
    if (isAlike) all.pop();
    const parts = isAlike ? [...last.parts, request.limit] : [request.limit];
    all.push({ ...request, limit: parts.reduce((sum, limit) => sum + limit, 0), parts });
  }
  return all;
}

/** The messages that an earlier hand-out with this request id leased and that are still under those leases. */
export async function repeatLeases(db: Db, queue: QueueRow, requestId: string): Promise<MessageRow[]> {
  const { rows } = await sql<MessageRow>`
    select ${MESSAGE_COLUMNS} from messages m join message_bodies b using (project_id, queue_id, message_id)
    where ${lane(queue)} and m.lease_request = ${requestId} and m.lease_expires_at > carillon_now() and not m.acked
    order by m.rank, m.seq`.execute(db);
  return [...(await repeatClaims(db, queue, requestId)), ...rows];
}

/** How many leases one call takes back, so that its transaction stays short. */
const EXPIRE_STEP = 500;

/**
 * Takes back leases that ran out. Each counts as a failure; a message with more than max_retries of them becomes a dead
 * letter. Returns how many were taken back.
 */
export async function expireLeases(trx: Db, queue: QueueRow): Promise<number> {
  const { rows } = await sql<PlacedMessage & { failure_count: number; acked: boolean }>`
    update messages m
    set visible_at = m.lease_expires_at, lease_expires_at = null, lease_request = null,
        failure_count = m.failure_count + 1, expiry_count = m.expiry_count + 1
    where ${lane(queue)} and m.message_id = any(array(
      select m.message_id from messages m
      where ${lane(queue)} and m.lease_expires_at <= carillon_now()
      order by m.lease_expires_at limit ${EXPIRE_STEP} for update skip locked))
    returning m.message_id, m.ctid::text as place, m.failure_count, m.acked`.execute(trx);
  const acked = rows.filter((row) => row.acked);
  await removeAcked(trx, queue, acked);
  await recordWithTransaction(trx, queue, "expired", rows.length - acked.length);
  const dead = rows.filter((row) => !row.acked && row.failure_count > queue.max_retries);
  const death = { reason: "max_retries", error: LEASE_RAN_OUT } as const;
  if (dead.length > 0 && !(await groupsWait(trx, queue))) {
    await buryMessages(
      trx,
      queue,
      dead.map((row) => ({ ...death, messageId: row.message_id })),
    );
  }
  return rows.length;
}

/** Whether groups of the queue are to wait for a message that fails, however often: what a subscription of it may ask for. */
async function groupsWait(trx: Db, queue: QueueRow): Promise<boolean> {
  if (queue.type !== "fifo") return false;
  const { rows } = await sql<{ waits: boolean }>`
    select exists (
      select from push_subscriptions s
      where s.project_id = ${queue.project_id} and s.queue_id = ${queue.queue_id} and s.mode = 'compete'
        and s.group_failure_policy <> 'skip') as waits`.execute(trx);
  return rows[0]?.waits ?? false;
}

/** Queues with leases that ran out, in their lines or outside. */
export async function queuesWithExpiredLeases(db: Db, limit: number): Promise<QueueRow[]> {
  const { rows } = await sql<QueueRow>`
    select q.* from queues q
    join (select distinct project_id, queue_id from messages where lease_expires_at <= carillon_now() limit ${limit}) due
      using (project_id, queue_id)
    union
    select q.* from queues q
    where q.lane_id in (select lane_id from line_claims where not settled and expires_at <= carillon_now() limit ${limit})`.execute(
    db,
  );
  return rows;
}

/** Leases of one queue: the id of the message by the lease's token. */
export type Leases = ReadonlyMap<string, string>;

/** The leases that a hand-out started. */
export function leasesOf(messages: readonly MessageRow[]): Leases {
  return new Map(messages.flatMap((row) => (row.lease_token === null ? [] : [[row.lease_token, row.message_id]])));
}

function deliveriesOf(leases: Leases): LineDelivery[] {
  return Array.from(leases, ([receipt, messageId]) => ({ messageId, receipt }));
}

/** The messages are named by their ids as well, because a search by token alone reads every lease of the queue. */
const held = (queue: QueueRow, leases: Leases) => sql`
  ${lane(queue)} and m.message_id = any(${[...leases.values()]}::uuid[])
    and m.lease_token = any(${[...leases.keys()]}::uuid[]) and m.lease_expires_at > carillon_now() and not m.acked`;

/**
 * Ends leases early without counting a failure. Their receipts stay good for an ack until somebody else is given the
 * message. Locks in the order of ids, as all that wait for many messages.
 */
export async function releaseLeases(db: Db, queue: QueueRow, leases: Leases): Promise<void> {
  if (leases.size === 0) return;
  await setAside(db, queue, [...leases.values()]);
  await sql`
    update messages m
    set lease_expires_at = null, lease_request = null, visible_at = least(m.visible_at, carillon_now()),
        return_count = m.return_count + 1
    where ${lane(queue)} and m.message_id = any(array(
      select m.message_id from messages m where ${held(queue, leases)} order by m.message_id for update))`.execute(db);
}

/** Makes those of the leases that still hold end `visibilitySeconds` from now; those of one hand-out in the line together. */
export async function extendLeases(db: Db, queue: QueueRow, leases: Leases, visibilitySeconds: number): Promise<void> {
  if (leases.size === 0) return;
  await extendClaims(db, queue, deliveriesOf(leases), visibilitySeconds);
  await sql`
    update messages m set lease_expires_at = carillon_now() + make_interval(secs => ${visibilitySeconds})
    where ${lane(queue)} and m.message_id = any(array(
      select m.message_id from messages m where ${held(queue, leases)} order by m.message_id for update))`.execute(db);
}

/** Those of the leases that still hold. */
export async function liveLeases(db: Db, queue: QueueRow, leases: Leases): Promise<Leases> {
  if (leases.size === 0) return leases;
  const { rows } = await sql<{ lease_token: string; message_id: string }>`
    select m.lease_token, m.message_id from messages m where ${held(queue, leases)}`.execute(db);
  const inLine = await liveClaims(db, queue, deliveriesOf(leases));
  return new Map([
    ...rows.map((row) => [row.lease_token, row.message_id] as const),
    ...Array.from(leases).filter(([, messageId]) => inLine.has(messageId)),
  ]);
}

/** Makes hand-outs with the same request id take turns until the transaction ends, so that two cannot both lease. */
export async function lockRequest(trx: Db, queue: QueueRow, requestId: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`${queue.queue_id}/${requestId}`}, 1))`.execute(trx);
}
