import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { expireLeases, handOutInTurn, leaseMessages, leasesOf, releaseLeases } from "./leases.ts";
import { drainLine } from "./line.ts";
import { type ClaimRequest, claimFromLine } from "./line-claims.ts";
import { expireClaims } from "./line-leases.ts";
import type { MessageRow } from "./messages.ts";
import { findQueue } from "./queues.ts";

/** What is remembered of a queue from one hand-out to the next. It only ever saves work. */
export interface HandOutMemory {
  /** Messages outside the line could be handed out when the queue was last looked at. */
  setAside: boolean;
  /** The others went first last time. */
  othersFirst: boolean;
  /** The queue has groups or limits, and so no line. */
  ownTurn: boolean;
  /** Leases that ended before this instant have been seen to. */
  expiredSince: Date;
  /** Mean size of the payloads that were handed out last. Undefined: not known. */
  meanBytes: number | undefined;
}

export function newHandOutMemory(): HandOutMemory {
  return { setAside: false, othersFirst: false, ownTurn: false, expiredSince: new Date(0), meanBytes: undefined };
}

/** How far behind a look a claim may be recorded whose lease is over already, in milliseconds. */
const LATE_CLAIM_MS = 5_000;

/** How far behind a look a lease may be recorded that is over already, of messages outside the line, in milliseconds. */
const LATE_LEASE_MS = 1_000;

/**
 * Hands out messages of a queue to each request, up to its limit, and starts a lease with a receipt for each. Nothing
 * while the queue is paused. Undefined when there is no such queue.
 *
 * A queue has messages in its line and messages outside it (delayed, given back, and all of a queue that has no line).
 * While there are both, they take turns at being first, so that neither waits for the other to end.
 */
export async function handOut(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  memory: HandOutMemory = newHandOutMemory(),
): Promise<MessageRow[][] | undefined> {
  if (memory.ownTurn) {
    const turn = await handOutInTurn(db, projectId, queueName, requests, memory.expiredSince);
    if (turn === undefined) return undefined;
    memory.ownTurn = turn.ownTurn;
    if (turn.ownTurn && !turn.draining && !turn.expired) {
      memory.expiredSince = new Date(turn.askedAt.getTime() - LATE_LEASE_MS);
      return turn.messages;
    }
    if (turn.ownTurn) {
      const left = { takeBack: turn.expired, drain: turn.draining };
      return leaseOthers(db, projectId, queueName, requests, left, memory);
    }
  }
  return handOutPlain(db, projectId, queueName, requests, memory);
}

/** As handOut, of a queue that may have a line. */
async function handOutPlain(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  memory: HandOutMemory,
): Promise<MessageRow[][] | undefined> {
  const rows = requests.map((): MessageRow[] => []);
  const left = () => requests.map((request, i) => ({ ...request, limit: request.limit - (rows[i]?.length ?? 0) }));
  const isShort = () => left().some(({ limit }) => limit > 0);
  const add = (more: readonly (readonly MessageRow[])[]) => {
    for (const [i, some] of more.entries()) rows[i]?.push(...some);
  };

  const othersFirst = memory.setAside && !memory.othersFirst;
  memory.othersFirst = othersFirst;
  try {
    if (othersFirst) {
      add(await leaseOthers(db, projectId, queueName, left(), { takeBack: false, drain: false }, memory));
      if (!isShort()) return rows;
    }
    const claim = await claimFromLine(db, projectId, queueName, left(), memory.expiredSince);
    if (claim === undefined) return undefined;
    add(claim.messages);
    memory.setAside = claim.setAside;
    if (!claim.expired) memory.expiredSince = new Date(claim.askedAt.getTime() - LATE_CLAIM_MS);
    if (isShort() && (claim.expired || claim.draining || (claim.setAside && !othersFirst))) {
      const found = { takeBack: claim.expired, drain: claim.draining };
      add(await leaseOthers(db, projectId, queueName, left(), found, memory));
      memory.setAside = true;
    }
    return rows;
  } catch (error) {
    // What was leased before it failed is nobody's; if this fails too, the leases run out by themselves.
    await giveBack(db, projectId, queueName, rows.flat()).catch(() => {});
    throw error;
  }
}

/** Releases what was leased for nobody. */
async function giveBack(db: Db, projectId: string, queueName: string, rows: readonly MessageRow[]): Promise<void> {
  if (rows.length === 0 || db.isTransaction) return;
  const queue = await findQueue(db, projectId, queueName);
  if (queue !== undefined) await releaseLeases(db, queue, leasesOf(rows));
}

/** Messages that one hand-out moves out of the line of a queue that has none any more. */
const DRAIN_STEP = 1_000;

/** Hands out messages outside the line, after those whose leases ran out have been taken back. */
async function leaseOthers(
  db: Db,
  projectId: string,
  queueName: string,
  requests: readonly ClaimRequest[],
  { takeBack, drain }: { readonly takeBack: boolean; readonly drain: boolean },
  memory: HandOutMemory,
): Promise<MessageRow[][]> {
  return inTransaction(db, async (trx) => {
    const queue = await findQueue(trx, projectId, queueName);
    if (queue === undefined) return [];
    memory.ownTurn = queue.grouped || queue.metered;
    if (drain) await drainLine(trx, queue, DRAIN_STEP);
    if (takeBack) {
      await expireClaims(trx, queue);
      await expireLeases(trx, queue);
    }
    const rows: MessageRow[][] = [];
    let more = true;
    for (const { limit, visibilitySeconds = queue.visibility_timeout_seconds, requestId = "" } of requests) {
      const some = more && limit > 0 ? await leaseMessages(trx, queue, { limit, visibilitySeconds, requestId }) : [];
      // Nothing is left for those who come after one who got less than they asked for.
      if (some.length < limit) more = false;
      rows.push(some);
    }
    return rows;
  });
}

/** Runs `work` in the transaction that `db` is, or in one of its own. */
function inTransaction<T>(db: Db, work: (trx: Db) => Promise<T>): Promise<T> {
  return db.isTransaction ? work(db) : db.transaction().execute(work);
}

/** What a look at queues found. */
export interface QueuesFound<Queue> {
  /** Those that a hand-out may find something in: messages, or leases that ran out. Also those that are gone. */
  readonly withWork: readonly Queue[];
  /** In how many milliseconds a delay or a limit of one of them ends next; undefined when none is known of. */
  readonly nextDueInMs: number | undefined;
}

/**
 * Looks at many queues in one statement. What it looks for comes by scalar subqueries, one index each, because the planner
 * may turn an `exists` into a scan of everything; leases that ran out by a function, which is bound to its indexes.
 */
export async function lookAtQueues<
  Queue extends { readonly projectId: string; readonly queueName: string; readonly memory: HandOutMemory },
>(db: Db, queues: readonly Queue[]): Promise<QueuesFound<Queue>> {
  const projects = queues.map((queue) => queue.projectId);
  const names = queues.map((queue) => queue.queueName);
  const since = queues.map(({ memory }) => memory.expiredSince);
  const { rows } = await sql<{ place: number; has_work: boolean; due_in_ms: number | null }>`
    with found as (
      select w.place::int, q.queue_id is null or not q.paused and coalesce(
          (select true from line_messages m
           where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
          (select true from messages m
           where not own_turn and m.project_id = q.project_id and m.queue_id = q.queue_id
             and m.lease_expires_at is null and m.rank <= carillon_now() and m.visible_at <= carillon_now() limit 1),
          next_at <= carillon_now() or null,
          lapsed.place is not null) as has_work,
        extract(epoch from coalesce(case when next_at > carillon_now() then next_at end, (
          select m.rank from messages m
          where not own_turn and m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
            and m.rank > carillon_now() order by m.rank limit 1)) - carillon_now())::float8 * 1000 as due_in_ms
      from unnest(${projects}::uuid[], ${names}::text[]) with ordinality as w (project_id, name, place)
      left join carillon_lapsed(${projects}, ${names}, ${since}) as lapsed (place) on lapsed.place = w.place
      left join queues q on q.project_id = w.project_id and q.name = w.name
      cross join lateral (select q.grouped or q.metered as own_turn) kind
      cross join lateral (select case when own_turn then carillon_next_hand_out_at(q) end as next_at) turn
    )
    select * from found where has_work or due_in_ms is not null`.execute(db);
  const dueInMs = rows.flatMap((row) => row.due_in_ms ?? []);
  return {
    withWork: rows.flatMap(({ place, has_work }) => (has_work ? (queues[place - 1] ?? []) : [])),
    nextDueInMs: dueInMs.length === 0 ? undefined : Math.min(...dueInMs),
  };
}
