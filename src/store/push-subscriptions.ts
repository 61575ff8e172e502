import { type Insertable, sql, type Updateable } from "kysely";
import { sqlState } from "../db/connect.ts";
import type { Database, Db, PushSubscriptionRow, QueueRow } from "../db/schema.ts";
import { NIL_UUID } from "../domain/ids.ts";
import type { SealedKey } from "../domain/signing-key.ts";
import { dropDeliveries } from "./push-deliveries.ts";
import { holdQueue } from "./queues.ts";
import { signersOf } from "./signing-keys.ts";

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
  subscription: Pick<PushSubscriptionRow, "project_id" | "subscription_id">,
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

/** How many of the messages that it had still to be given are forgotten at once when a subscription is deleted. */
const DROPPED_AT_ONCE = 1_000;

/** Deletes a subscription. What it had still to be given is forgotten: a little at once, and the rest by the pruner. */
export async function deletePushSubscription(trx: Db, subscription: PushSubscriptionRow): Promise<void> {
  const { project_id, subscription_id, queue_id } = subscription;
  // First, so that nobody who gives messages over to it comes after the second.
  await trx
    .deleteFrom("push_subscriptions")
    .where("project_id", "=", project_id)
    .where("subscription_id", "=", subscription_id)
    .execute();
  const queue = await holdQueue(trx, project_id, queue_id);
  if (queue === undefined) return;
  const dropped = await dropDeliveries(trx, queue, subscription_id, NIL_UUID, DROPPED_AT_ONCE);
  const last = dropped[DROPPED_AT_ONCE - 1];
  if (last === undefined) return;
  const { push_lane_id } = queue;
  await trx
    .insertInto("dropped_subscriptions")
    .values({ project_id, subscription_id, queue_id, push_lane_id, after_id: last })
    .execute();
}

/** Forgets up to `limit` messages that a deleted subscription had still to be given, and returns how many. */
export async function pruneDroppedSubscriptions(db: Db, limit: number): Promise<number> {
  return db.transaction().execute(async (trx) => {
    const dropped = await trx
      .selectFrom("dropped_subscriptions")
      .selectAll()
      .limit(1)
      .forUpdate()
      .skipLocked()
      .executeTakeFirst();
    if (dropped === undefined) return 0;
    const { project_id, subscription_id, after_id } = dropped;
    const ids = await dropDeliveries(trx, dropped, subscription_id, after_id, limit);
    const last = ids.at(-1);
    if (last === undefined && after_id === NIL_UUID) {
      await trx
        .deleteFrom("dropped_subscriptions")
        .where("project_id", "=", project_id)
        .where("subscription_id", "=", subscription_id)
        .execute();
      return 1;
    }
    // After the last one it looks once more from the beginning, in case something was stored before where it had come to.
    await trx
      .updateTable("dropped_subscriptions")
      .set({ after_id: last ?? NIL_UUID })
      .where("project_id", "=", project_id)
      .where("subscription_id", "=", subscription_id)
      .execute();
    return Math.max(1, ids.length);
  });
}

/** What signs a subscription's pushes now. */
export async function signersOfSubscription(
  db: Db,
  { project_id, subscription_id }: Pick<PushSubscriptionRow, "project_id" | "subscription_id">,
): Promise<readonly SealedKey[]> {
  const { rows } = await sql<{ signers: SealedKey[] }>`
    select ${signersOf(sql`${project_id}::uuid`, sql`${subscription_id}::uuid`)} as signers`.execute(db);
  return rows[0]?.signers ?? [];
}
