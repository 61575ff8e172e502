import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { buryMessages } from "./dead-letters.ts";
import type { MessageRow } from "./messages.ts";
import { finishMessages, lockPushed, makeHeadsDue, takeTurns } from "./push-fanout.ts";

/** What becomes of a delivery after an attempt. */
export type DeliveryEnd =
  | { readonly kind: "ack" }
  | { readonly kind: "release" }
  | { readonly kind: "retry"; readonly delaySeconds: number; readonly error: string }
  /** Its group waits until somebody resumes it. */
  | { readonly kind: "park"; readonly error: string }
  | { readonly kind: "bury"; readonly error: string; readonly deadLetterQueueId: string | undefined };

/** Why and where a message dies. */
interface Burial {
  readonly reason: "max_retries" | "rejected";
  readonly error: string;
  /** Undefined: the queue's own choice. */
  readonly deadLetterQueueId: string | undefined;
  /** Nothing was tried under the lease that it has. */
  readonly untried: boolean;
}

/** The end of one lease of a delivery. */
export interface DeliverySettlement {
  readonly messageId: string;
  readonly receipt: string;
  readonly end: DeliveryEnd;
  /** Nothing was tried under the lease: what failed is the one before, whose failure is counted. */
  readonly untried?: boolean;
}

/** A message that a subscription is given. */
export interface LeasedDelivery extends MessageRow {
  /** Its lease before this one ran out. */
  readonly lapsed: boolean;
}

/**
 * Leases up to `limit` messages that are due at a subscription. Each has the subscription's own failures: those of
 * others do not count, and a lease that ran out counts as one.
 */
export async function leaseDeliveries(
  db: Db,
  queue: QueueRow,
  subscriptionId: string,
  limit: number,
  leaseSeconds: number,
): Promise<LeasedDelivery[]> {
  const { rows } = await sql<LeasedDelivery>`
    with due as (
      select message_id, lease_token is not null as lapsed from push_deliveries
      where project_id = ${queue.project_id} and subscription_id = ${subscriptionId} and due_at <= carillon_now()
      order by due_at, seq limit ${limit} for update skip locked
    ),
    leased as (
      update push_deliveries d
      set failure_count = d.failure_count + due.lapsed::int, lease_token = gen_random_uuid(),
          due_at = carillon_now() + make_interval(secs => ${leaseSeconds})
      from due
      where d.project_id = ${queue.project_id} and d.subscription_id = ${subscriptionId} and d.message_id = due.message_id
      returning d.message_id, d.failure_count, d.lease_token, d.due_at as lease_expires_at, d.error, due.lapsed
    )
    select leased.*, m.group_id, m.seq, b.payload, b.content_type, b.headers, m.priority, m.receive_count, m.return_count, m.expiry_count,
           m.published_at, m.visible_at, null as dead_reason, null as dead_lettered_at, null as source_queue
    from leased
    join messages m on m.project_id = ${queue.project_id} and m.queue_id = ${queue.push_lane_id} and m.message_id = leased.message_id
    join message_bodies b on b.project_id = ${queue.project_id} and b.queue_id = ${queue.push_lane_id} and b.message_id = leased.message_id
    order by m.seq`.execute(db);
  return rows;
}

/**
 * Ends leases of a subscription's deliveries, those that nobody else has taken over meanwhile, and returns the receipts of
 * these. A message that the subscription is done with lets the next of its group come.
 */
export async function settleDeliveries(
  trx: Db,
  queue: QueueRow,
  subscriptionId: string,
  settlements: readonly DeliverySettlement[],
): Promise<Set<string>> {
  if (queue.type === "fifo") await sql`select carillon_push_turn(${subscriptionId})`.execute(trx);
  await lockPushed(
    trx,
    queue,
    settlements.map(({ messageId }) => messageId),
  );
  const { rows: held } = await sql<{ lease_token: string }>`
    select d.lease_token from push_deliveries d
    where d.project_id = ${queue.project_id} and d.subscription_id = ${subscriptionId}
      and d.message_id = any(${settlements.map(({ messageId }) => messageId)}::uuid[])
      and d.lease_token = any(${settlements.map(({ receipt }) => receipt)}::uuid[])
    order by d.message_id for update`.execute(trx);
  const live = new Set(held.map((row) => row.lease_token));
  const settled = settlements.filter(({ receipt }) => live.has(receipt));

  const done: string[] = [];
  const again: (DeliverySettlement & {
    readonly dueIn: string;
    readonly failed: boolean;
    readonly error: string | null;
  })[] = [];
  for (const settlement of settled) {
    const { end, messageId, untried = false } = settlement;
    if (end.kind === "ack") done.push(messageId);
    else if (end.kind === "bury") {
      await buryCopy(trx, queue, subscriptionId, messageId, { ...end, reason: "max_retries", untried });
      done.push(messageId);
    } else if (end.kind === "release") again.push({ ...settlement, dueIn: "0 s", failed: false, error: null });
    else if (end.kind === "park") again.push({ ...settlement, dueIn: "infinity", failed: !untried, error: end.error });
    else again.push({ ...settlement, dueIn: `${end.delaySeconds} s`, failed: true, error: end.error });
  }
  if (again.length > 0) {
    await sql`
      update push_deliveries d
      set lease_token = null, failure_count = d.failure_count + u.failed::int, error = coalesce(u.error, d.error),
          due_at = case when u.due_in = 'infinity' then 'infinity'::timestamptz else carillon_now() + u.due_in::interval end
      from unnest(${again.map((a) => a.messageId)}::uuid[], ${again.map((a) => a.dueIn)}::text[],
                  ${again.map((a) => a.failed)}::bool[], ${again.map((a) => a.error)}::text[]) as u (message_id, due_in, failed, error)
      where d.project_id = ${queue.project_id} and d.subscription_id = ${subscriptionId} and d.message_id = u.message_id`.execute(
      trx,
    );
  }
  await endDeliveries(trx, queue, subscriptionId, done);
  return live;
}

/** Takes away what a subscription is done with. The messages are locked, and where the queue is FIFO it is its turn. */
async function endDeliveries(
  trx: Db,
  queue: QueueRow,
  subscriptionId: string,
  messageIds: readonly string[],
): Promise<void> {
  if (messageIds.length === 0) return;
  await forgetDeliveries(trx, queue, subscriptionId, messageIds);
  await finishMessages(trx, queue, messageIds);
}

/** Takes deliveries away, and lets what stood behind them come. Where the queue is FIFO it is the subscription's turn. */
export async function forgetDeliveries(
  trx: Db,
  queue: Pick<QueueRow, "project_id">,
  subscriptionId: string,
  messageIds: readonly string[],
): Promise<void> {
  const { rows } = await sql<{ group_id: string | null }>`
    delete from push_deliveries
    where project_id = ${queue.project_id} and subscription_id = ${subscriptionId} and message_id = any(${messageIds}::uuid[])
    returning group_id`.execute(trx);
  const groups = new Set(rows.flatMap(({ group_id }) => (group_id === null ? [] : [group_id])));
  await makeHeadsDue(trx, queue.project_id, subscriptionId, [...groups]);
}

/**
 * Makes a dead letter of a message that other subscriptions may still have: a copy of it dies in the queue. A message that
 * lies there dead already, because another subscription failed too, is told of the new error only.
 */
async function buryCopy(
  trx: Db,
  queue: QueueRow,
  subscriptionId: string,
  messageId: string,
  end: Burial,
): Promise<void> {
  const grave = end.deadLetterQueueId ?? queue.dead_letter_queue_id ?? queue.graveyard_id;
  const { numAffectedRows } = await sql`
    update messages set error = left(concat_ws('; ', error, ${end.error}::text), 1000)
    where project_id = ${queue.project_id} and queue_id = ${grave} and message_id = ${messageId}`.execute(trx);
  if (numAffectedRows !== 0n) return;
  await sql`
    with copied as (
      insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                            failure_count, expiry_count, return_count, lease_token, lease_expires_at, published_at, expires_at)
      select m.project_id, ${queue.queue_id}::uuid, m.message_id, m.seq, m.group_id, m.rank, m.priority, m.visible_at,
             m.receive_count + d.failure_count - ${end.untried}::bool::int, d.failure_count, m.expiry_count, m.return_count, d.lease_token,
             case when d.lease_token is not null and not ${end.untried}::bool then carillon_now() + interval '1 minute' end,
             m.published_at, m.expires_at
      from messages m join push_deliveries d using (project_id, message_id)
      where m.project_id = ${queue.project_id} and m.queue_id = ${queue.push_lane_id} and m.message_id = ${messageId}
        and d.subscription_id = ${subscriptionId}
    )
    insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
    select project_id, ${queue.queue_id}::uuid, message_id, payload, content_type, headers, deaths
    from message_bodies where project_id = ${queue.project_id} and queue_id = ${queue.push_lane_id} and message_id = ${messageId}`.execute(
    trx,
  );
  const { reason, error, deadLetterQueueId } = end;
  await buryMessages(trx, queue, [{ messageId, reason, error }], deadLetterQueueId);
}

/**
 * Makes a dead letter of a message that a subscription has and that nobody is pushing, so that the next of its group comes.
 * The caller has the subscription's turn and has locked the message.
 */
export async function skipDelivery(
  trx: Db,
  queue: QueueRow,
  subscriptionId: string,
  messageId: string,
  burial: Omit<Burial, "reason" | "untried">,
): Promise<void> {
  await buryCopy(trx, queue, subscriptionId, messageId, { ...burial, reason: "rejected", untried: false });
  await endDeliveries(trx, queue, subscriptionId, [messageId]);
}

/**
 * Forgets up to `limit` of the messages that a deleted subscription had still to be given, from the one after `afterId`, and
 * returns their ids in order.
 */
export async function dropDeliveries(
  trx: Db,
  queue: Pick<QueueRow, "project_id" | "queue_id" | "push_lane_id">,
  subscriptionId: string,
  afterId: string,
  limit: number,
): Promise<string[]> {
  const { rows } = await sql<{ message_id: string }>`
    select message_id from push_deliveries
    where project_id = ${queue.project_id} and subscription_id = ${subscriptionId} and message_id > ${afterId}
    order by message_id limit ${limit}`.execute(trx);
  if (rows.length === 0) return [];
  const ids = rows.map((row) => row.message_id);
  await lockPushed(trx, queue, ids);
  await sql`
    delete from push_deliveries
    where project_id = ${queue.project_id} and subscription_id = ${subscriptionId} and message_id = any(${ids}::uuid[])`.execute(
    trx,
  );
  await finishMessages(trx, queue, ids);
  return ids;
}

/**
 * Waits for the turns of a queue's subscriptions, where it is FIFO, and returns their ids. Whoever locks messages that they
 * have does so afterwards.
 */
export async function takeTurnsOfQueue(trx: Db, queue: QueueRow): Promise<string[]> {
  const { rows } = await sql<{ subscription_id: string }>`
    select subscription_id from push_subscriptions
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id}`.execute(trx);
  const ids = rows.map((row) => row.subscription_id);
  if (queue.type === "fifo") await takeTurns(trx, ids);
  return ids;
}

/** Deletes up to `limit` deliveries of messages whose retention ended, lets their groups go on, and returns how many. */
export async function prunePushDeliveries(db: Db, limit: number): Promise<number> {
  return db.transaction().execute(async (trx) => {
    const { rows: found } = await sql<{ subscription_id: string }>`
      select distinct subscription_id from (
        select subscription_id from push_deliveries where expires_at <= carillon_now() limit ${limit}) over`.execute(
      trx,
    );
    if (found.length === 0) return 0;
    const subscriptions = found.map((row) => row.subscription_id);
    await takeTurns(trx, subscriptions);
    const { rows } = await sql<{ project_id: string; subscription_id: string; groups: string[]; count: number }>`
      with gone as (
        delete from push_deliveries where ctid = any(array(
          select ctid from push_deliveries
          where expires_at <= carillon_now() and subscription_id = any(${subscriptions}::uuid[])
          limit ${limit} for update skip locked))
        returning project_id, subscription_id, group_id
      )
      select project_id, subscription_id, array_remove(array_agg(distinct group_id), null) as groups, count(*)::int as count
      from gone group by project_id, subscription_id`.execute(trx);
    for (const { project_id, subscription_id, groups } of rows) {
      await makeHeadsDue(trx, project_id, subscription_id, groups);
    }
    return rows.reduce((sum, row) => sum + row.count, 0);
  });
}
