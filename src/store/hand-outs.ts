import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { expireLeases, leaseMessages } from "./leases.ts";
import { drainLine } from "./line.ts";
import { type ClaimRequest, claimFromLine, expireClaims } from "./line-claims.ts";
import type { MessageRow } from "./messages.ts";
import { findQueue } from "./queues.ts";

/** What is remembered of a queue from one hand-out to the next. It only ever saves work. */
export interface HandOutMemory {
  /** Messages outside the line could be handed out when the queue was last looked at. */
  setAside: boolean;
  /** The others went first last time. */
  othersFirst: boolean;
  /** Leases that ended before this instant have been seen to. */
  expiredSince: Date;
}

export function newHandOutMemory(): HandOutMemory {
  return { setAside: false, othersFirst: false, expiredSince: new Date(0) };
}

/** How far behind a look a claim may be recorded whose lease is over already, in milliseconds. */
const LATE_CLAIM_MS = 5_000;

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
  const rows = requests.map((): MessageRow[] => []);
  const left = () => requests.map((request, i) => ({ ...request, limit: request.limit - (rows[i]?.length ?? 0) }));
  const isShort = () => left().some(({ limit }) => limit > 0);
  const add = (more: readonly (readonly MessageRow[])[]) => {
    for (const [i, some] of more.entries()) rows[i]?.push(...some);
  };

  const othersFirst = memory.setAside && !memory.othersFirst;
  memory.othersFirst = othersFirst;
  if (othersFirst) {
    add(await leaseOthers(db, projectId, queueName, left(), { takeBack: false, drain: false }));
    if (!isShort()) return rows;
  }
  const claim = await claimFromLine(db, projectId, queueName, left(), memory.expiredSince);
  if (claim === undefined) return undefined;
  add(claim.messages);
  memory.setAside = claim.setAside;
  if (!claim.expired) memory.expiredSince = new Date(claim.askedAt.getTime() - LATE_CLAIM_MS);
  if (isShort() && (claim.expired || claim.draining || (claim.setAside && !othersFirst))) {
    add(await leaseOthers(db, projectId, queueName, left(), { takeBack: claim.expired, drain: claim.draining }));
    memory.setAside = true;
  }
  return rows;
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
): Promise<MessageRow[][]> {
  return inTransaction(db, async (trx) => {
    const queue = await findQueue(trx, projectId, queueName);
    if (queue === undefined) return [];
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
 * may turn an `exists` into a scan of everything.
 */
export async function lookAtQueues<Queue extends { readonly projectId: string; readonly queueName: string }>(
  db: Db,
  queues: readonly Queue[],
): Promise<QueuesFound<Queue>> {
  const { rows } = await sql<{ place: number; has_work: boolean; due_in_ms: number | null }>`
    with found as (
      select w.place::int, q.queue_id is null or not q.paused and coalesce(
          (select true from line_messages m
           where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
          (select true from messages m
           where not own_turn and m.project_id = q.project_id and m.queue_id = q.queue_id
             and m.lease_expires_at is null and m.rank <= carillon_now() and m.visible_at <= carillon_now() limit 1),
          next_at <= carillon_now() or null,
          (select true from messages m
           where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at <= carillon_now() limit 1),
          (select true from line_claims c
           where not c.settled and c.expires_at <= carillon_now() and c.lane_id = q.lane_id limit 1),
          false) as has_work,
        extract(epoch from coalesce(case when next_at > carillon_now() then next_at end, (
          select m.rank from messages m
          where not own_turn and m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
            and m.rank > carillon_now() order by m.rank limit 1)) - carillon_now())::float8 * 1000 as due_in_ms
      from unnest(
        ${queues.map((queue) => queue.projectId)}::uuid[], ${queues.map((queue) => queue.queueName)}::text[]
      ) with ordinality as w (project_id, name, place)
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
