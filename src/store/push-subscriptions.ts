import { type Insertable, sql, type Updateable } from "kysely";
import { sqlState } from "../db/connect.ts";
import type { Database, Db, PushSubscriptionRow, QueueRow } from "../db/schema.ts";

/** A subscription with the names of its queue and of its own dead letter queue. */
export type NamedSubscriptionRow = PushSubscriptionRow & {
  readonly queue: string;
  readonly dead_letter_queue: string | null;
};

export type NewSubscription = Omit<Insertable<Database["push_subscriptions"]>, "subscription_id">;
export type SubscriptionChanges = Omit<
  Updateable<Database["push_subscriptions"]>,
  "project_id" | "subscription_id" | "queue_id"
>;

/** Creates a subscription, or writes the same settings over the one that the queue has for this URL. Returns its id. */
export async function putPushSubscription(db: Db, subscription: NewSubscription): Promise<string> {
  const { project_id, queue_id, url, ...settings } = subscription;
  const row = await db
    .insertInto("push_subscriptions")
    .values(subscription)
    .onConflict((conflict) =>
      conflict
        .columns(["project_id", "queue_id", "url"])
        .doUpdateSet({ ...settings, updated_at: sql<Date>`carillon_now()` }),
    )
    .returning("subscription_id")
    .executeTakeFirstOrThrow();
  return row.subscription_id;
}

/** The project's subscription of that id, or undefined. */
export async function findPushSubscription(
  db: Db,
  projectId: string,
  subscriptionId: string,
): Promise<NamedSubscriptionRow | undefined> {
  return selectSubscriptions(db, projectId)
    .where("push_subscriptions.subscription_id", "=", subscriptionId)
    .executeTakeFirst();
}

/** Up to `limit` subscriptions of a queue, oldest first, from the one after `after`. */
export async function listPushSubscriptions(
  db: Db,
  queue: QueueRow,
  after: string | undefined,
  limit: number,
): Promise<NamedSubscriptionRow[]> {
  return selectSubscriptions(db, queue.project_id)
    .where("push_subscriptions.queue_id", "=", queue.queue_id)
    .$if(after !== undefined, (query) => query.where("push_subscriptions.subscription_id", ">", after ?? ""))
    .orderBy("push_subscriptions.subscription_id")
    .limit(limit)
    .execute();
}

function selectSubscriptions(db: Db, projectId: string) {
  return db
    .selectFrom("push_subscriptions")
    .innerJoin("queues", (join) =>
      join
        .onRef("queues.project_id", "=", "push_subscriptions.project_id")
        .onRef("queues.queue_id", "=", "push_subscriptions.queue_id"),
    )
    .leftJoin("queues as dlq", (join) =>
      join
        .onRef("dlq.project_id", "=", "push_subscriptions.project_id")
        .onRef("dlq.queue_id", "=", "push_subscriptions.dead_letter_queue_id"),
    )
    .selectAll("push_subscriptions")
    .select(["queues.name as queue", "dlq.name as dead_letter_queue"])
    .where("push_subscriptions.project_id", "=", projectId);
}

const UNIQUE_VIOLATION = "23505";

/** Writes the changes. False when another subscription of the queue has the new URL; the transaction is spent then. */
export async function updatePushSubscription(
  trx: Db,
  subscription: PushSubscriptionRow,
  changes: SubscriptionChanges,
): Promise<boolean> {
  try {
    await trx
      .updateTable("push_subscriptions")
      .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
      .where("project_id", "=", subscription.project_id)
      .where("subscription_id", "=", subscription.subscription_id)
      .execute();
    return true;
  } catch (error) {
    if (sqlState(error) === UNIQUE_VIOLATION) return false;
    throw error;
  }
}

/** Deletes a subscription; false when there was none. */
export async function deletePushSubscription(db: Db, projectId: string, subscriptionId: string): Promise<boolean> {
  const deleted = await db
    .deleteFrom("push_subscriptions")
    .where("project_id", "=", projectId)
    .where("subscription_id", "=", subscriptionId)
    .returning("subscription_id")
    .executeTakeFirst();
  return deleted !== undefined;
}

/**
 * Gives a subscription a new secret; the old one signs beside it for `overlapSeconds`. Returns when that ends,
 * or undefined when there is no such subscription any more.
 */
export async function rotatePushSecret(
  db: Db,
  subscription: PushSubscriptionRow,
  secret: string,
  overlapSeconds: number,
): Promise<Date | undefined> {
  const { rows } = await sql<{ previous_valid_until: Date }>`
    update push_subscriptions s
    set previous_secret = coalesce(s.secret, (select signing_secret from projects p where p.project_id = s.project_id)),
        previous_valid_until = carillon_now() + make_interval(secs => ${overlapSeconds}),
        secret = ${secret}, updated_at = carillon_now()
    where s.project_id = ${subscription.project_id} and s.subscription_id = ${subscription.subscription_id}
    returning previous_valid_until`.execute(db);
  return rows[0]?.previous_valid_until;
}

/** A queue that has messages to push, with the subscriptions that are not paused. */
export interface PushableQueue {
  readonly queue: QueueRow;
  readonly subscriptions: readonly PushTarget[];
}

/** What a push to a subscription needs. */
export interface PushTarget {
  readonly subscription_id: string;
  readonly url: string;
  readonly mode: "compete" | "fanout";
  /** Newest first; each signs. */
  readonly secrets: readonly string[];
  readonly max_retries: number | null;
  readonly visibility_timeout_seconds: number | null;
  readonly dead_letter_queue_id: string | null;
}

/**
 * Up to `limit` queues with a live subscription and a message that is available or whose lease ran out.
 *
 * A message is looked for by scalar subqueries, one index each, because the planner may turn an `exists` into a scan of
 * all messages.
 */
export async function pushableQueues(db: Db, limit: number): Promise<PushableQueue[]> {
  const { rows } = await sql<QueueRow & { subscriptions: PushTarget[] }>`
    select q.*, s.subscriptions from (
      select q.* from queues q
      where not q.paused and (q.project_id, q.queue_id) in (
          select s.project_id, s.queue_id from push_subscriptions s where not s.paused)
        and coalesce(
          (select true from messages m
           where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
             and m.rank <= carillon_now() and m.visible_at <= carillon_now() and m.expires_at > carillon_now() limit 1),
          (select true from messages m
           where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at <= carillon_now() limit 1),
          (select true from line_messages m
           where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
          (select true from line_claims c
           where not c.settled and c.expires_at <= carillon_now() and c.lane_id = q.lane_id limit 1))
      order by random() limit ${limit}
    ) q
    cross join lateral (
      select json_agg(json_build_object(
               'subscription_id', s.subscription_id, 'url', s.url, 'mode', s.mode,
               'max_retries', s.max_retries, 'visibility_timeout_seconds', s.visibility_timeout_seconds,
               'dead_letter_queue_id', s.dead_letter_queue_id,
               'secrets', case when s.previous_valid_until > carillon_now()
                 then json_build_array(coalesce(s.secret, p.signing_secret), s.previous_secret)
                 else json_build_array(coalesce(s.secret, p.signing_secret)) end) order by s.subscription_id) as subscriptions
      from push_subscriptions s join projects p using (project_id)
      where s.project_id = q.project_id and s.queue_id = q.queue_id and not s.paused
    ) s where s.subscriptions is not null`.execute(db);
  return rows.map(({ subscriptions, ...queue }) => ({ queue, subscriptions }));
}
