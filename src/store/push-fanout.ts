import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { type HandOutMemory, handOut } from "./hand-outs.ts";
import { setAside } from "./line-leases.ts";
import type { PushTarget } from "./pushable.ts";

/** The lease of a message while it is fanned out, in seconds. It ends with the transaction. */
const FAN_OUT_LEASE_SECONDS = 60;

/**
 * Gives up to `limit` messages of a queue over to its subscriptions, in the order of the queue: to each that is mode fanout,
 * also when it is paused, and to one of `competing`. From then on each of them has its own progress, and the message is
 * settled when all are done. A subscription that has had the message before is passed over. Returns how many messages.
 */
export async function fanOut(
  db: Db,
  queue: QueueRow,
  competing: readonly PushTarget[],
  limit: number,
  memory: HandOutMemory,
): Promise<number> {
  return db.transaction().execute(async (trx) => {
    // First, so that none of them is deleted while it is given something, and nothing is taken for nobody.
    const { rows: subscriptions } = await sql<{ subscription_id: string; mode: PushTarget["mode"] }>`
      select subscription_id, mode from push_subscriptions
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id}
        and (mode = 'fanout' or subscription_id = any(${competing.map((target) => target.subscription_id)}::uuid[]))
      order by subscription_id for key share`.execute(trx);
    if (subscriptions.length === 0) return 0;
    const request = { limit, visibilitySeconds: FAN_OUT_LEASE_SECONDS };
    const messages = (await handOut(trx, queue.project_id, queue.name, [request], memory))?.[0] ?? [];
    if (messages.length === 0) return 0;
    const ids = messages.map((message) => message.message_id);
    await setAside(trx, queue, ids);
    const turns = subscriptions.filter(({ mode }) => mode === "compete").map((row) => row.subscription_id);
    const fanned = subscriptions.filter(({ mode }) => mode === "fanout").map((row) => row.subscription_id);
    if (queue.type === "fifo") await takeTurns(trx, [...fanned, ...turns]);
    const given = ids.flatMap((messageId, i) => {
      const chosen = turns[turnOf(messageId) % turns.length];
      return [...fanned, ...(chosen === undefined ? [] : [chosen])].map((id) => ({ id, messageId, place: i }));
    });
    await moveToPushLane(trx, queue, ids);
    await sql`
      insert into push_deliveries (project_id, subscription_id, message_id, queue_id, group_id, seq, due_at, expires_at)
      select m.project_id, g.subscription_id, m.message_id, ${queue.queue_id},
             ${queue.type === "fifo" ? sql`m.group_id` : sql`null`}, m.seq,
             ${queue.type === "fifo" ? sql`'infinity'::timestamptz` : sql`carillon_now()`}, m.expires_at
      from unnest(${given.map((g) => g.id)}::uuid[], ${given.map((g) => g.messageId)}::uuid[]) as g (subscription_id, message_id)
      join messages m on m.project_id = ${queue.project_id} and m.queue_id = ${queue.push_lane_id} and m.message_id = g.message_id
      where not exists (
        select from runs r
        where r.project_id = m.project_id and r.subscription_id = g.subscription_id and r.message_id = m.message_id
          and r.state = 'succeeded')
      on conflict do nothing`.execute(trx);
    if (queue.type === "fifo") {
      const groups = [...new Set(messages.map((message) => message.group_id))];
      for (const id of new Set(given.map((g) => g.id))) await makeHeadsDue(trx, queue.project_id, id, groups);
    }
    await finishMessages(trx, queue, ids);
    return ids.length;
  });
}

/** Which of several subscriptions a message falls to: another for each message, the same for one message. */
function turnOf(messageId: string): number {
  return Number.parseInt(messageId.slice(-6), 16);
}

/** Waits for the turns of subscriptions with ordered messages, in an order that nobody else reverses. */
export async function takeTurns(trx: Db, subscriptionIds: readonly string[]): Promise<void> {
  for (const id of [...subscriptionIds].sort()) await sql`select carillon_push_turn(${id})`.execute(trx);
}

/** Makes the first messages of groups due at a subscription whose turn the transaction has. */
export async function makeHeadsDue(
  trx: Db,
  projectId: string,
  subscriptionId: string,
  groups: readonly string[],
): Promise<void> {
  if (groups.length === 0) return;
  await sql`select carillon_push_heads(${projectId}, ${subscriptionId}, ${groups}::text[])`.execute(trx);
}

/** A message that is there already, because a dead letter of it came back, stays as it is. */
async function moveToPushLane(trx: Db, queue: QueueRow, ids: readonly string[]): Promise<void> {
  await sql`
    with gone as (
      delete from messages
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${ids}::uuid[])
      returning *
    ),
    bodies as (
      delete from message_bodies
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${ids}::uuid[])
      returning *
    ),
    moved as (
      insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                            failure_count, expiry_count, return_count, published_at, expires_at)
      select project_id, ${queue.push_lane_id}::uuid, message_id, seq, group_id, rank, priority, visible_at, receive_count,
             failure_count, expiry_count, return_count, published_at, expires_at from gone
      on conflict do nothing
    )
    insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
    select project_id, ${queue.push_lane_id}::uuid, message_id, payload, content_type, headers, deaths from bodies
    on conflict do nothing`.execute(trx);
}

/**
 * Settles those of the messages that no subscription has to be given any more: they are gone, and remembered as acked
 * unless they have become dead letters. Callers that took deliveries away have locked the messages before.
 */
export async function finishMessages(
  trx: Db,
  queue: Pick<QueueRow, "project_id" | "queue_id" | "push_lane_id">,
  messageIds: readonly string[],
): Promise<void> {
  await sql`
    with gone as (
      delete from messages m
      where m.project_id = ${queue.project_id} and m.queue_id = ${queue.push_lane_id} and m.message_id = any(${messageIds}::uuid[])
        and not exists (
          select from push_deliveries d
          where d.project_id = ${queue.project_id} and d.queue_id = ${queue.queue_id} and d.message_id = m.message_id)
      returning m.message_id, m.published_at
    ),
    bodies as (
      delete from message_bodies b using gone
      where b.project_id = ${queue.project_id} and b.queue_id = ${queue.push_lane_id} and b.message_id = gone.message_id
    )
    insert into acked_messages (project_id, queue_id, message_id, published_at, acked_at)
    select ${queue.project_id}, ${queue.queue_id}, message_id, published_at, carillon_now() from gone
    where not exists (
      select from messages dead
      where dead.project_id = ${queue.project_id} and dead.source_queue_id = ${queue.queue_id}
        and dead.message_id = gone.message_id)
    on conflict do nothing`.execute(trx);
}

/** Locks messages that subscriptions have, in the order of ids, so that the last of them to be done knows that it is. */
export async function lockPushed(
  trx: Db,
  queue: Pick<QueueRow, "project_id" | "push_lane_id">,
  messageIds: readonly string[],
): Promise<void> {
  await sql`
    select from messages
    where project_id = ${queue.project_id} and queue_id = ${queue.push_lane_id} and message_id = any(${messageIds}::uuid[])
    order by message_id for update`.execute(trx);
}
