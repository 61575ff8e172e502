import { type Insertable, sql, type Updateable } from "kysely";
import type { Database, Db, QueueRow } from "../db/schema.ts";

/** Settings of a queue that nobody described. */
export const QUEUE_DEFAULTS = {
  type: "standard",
  dead_letter_queue_id: null,
  max_retries: 5,
  message_retention_days: 14,
  visibility_timeout_seconds: 30,
  enable_priority: false,
  deduplication_window_seconds: 600,
} as const;

export type QueueSettings = Omit<Insertable<Database["queues"]>, "project_id" | "name">;
export type QueueChanges = Omit<Updateable<Database["queues"]>, "project_id" | "queue_id" | "name" | "type">;

/** A queue with the name of its dead letter queue. */
export type NamedQueueRow = QueueRow & { readonly dead_letter_queue: string | null };

/** Creates the queue unless the name is taken, and says whether this call created it. */
export async function createQueue(
  db: Db,
  projectId: string,
  name: string,
  settings: QueueSettings,
): Promise<{ readonly queue: NamedQueueRow; readonly created: boolean }> {
  const inserted = await db
    .insertInto("queues")
    .values({ ...settings, project_id: projectId, name })
    .onConflict((conflict) => conflict.columns(["project_id", "name"]).doNothing())
    .returning("queue_id")
    .executeTakeFirst();
  const queue = await findQueue(db, projectId, name);
  // A delete may slip in between; the next call finds the name free.
  if (queue === undefined) return createQueue(db, projectId, name, settings);
  return { queue, created: inserted !== undefined };
}

/** The project's queue of that name, or undefined. */
export async function findQueue(db: Db, projectId: string, name: string): Promise<NamedQueueRow | undefined> {
  return selectQueues(db, projectId).where("queues.name", "=", name).executeTakeFirst();
}

/** The queue that is read like findQueue and locked against other changes until the transaction ends. */
export async function lockQueue(trx: Db, projectId: string, name: string): Promise<NamedQueueRow | undefined> {
  return selectQueues(trx, projectId).where("queues.name", "=", name).forUpdate("queues").executeTakeFirst();
}

/** The queue of that id, held against deletion until the transaction ends; undefined when there is none. */
export async function holdQueue(trx: Db, projectId: string, queueId: string): Promise<QueueRow | undefined> {
  return trx
    .selectFrom("queues")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("queue_id", "=", queueId)
    .forKeyShare()
    .executeTakeFirst();
}

/** Up to `limit` queues by name, from the one after `after`. */
export async function listQueues(db: Db, projectId: string, after: string, limit: number): Promise<NamedQueueRow[]> {
  return selectQueues(db, projectId)
    .where(sql<boolean>`queues.name collate "C" > ${after}`)
    .orderBy(sql`queues.name collate "C"`)
    .limit(limit)
    .execute();
}

function selectQueues(db: Db, projectId: string) {
  return db
    .selectFrom("queues")
    .leftJoin("queues as dlq", (join) =>
      join.onRef("dlq.project_id", "=", "queues.project_id").onRef("dlq.queue_id", "=", "queues.dead_letter_queue_id"),
    )
    .selectAll("queues")
    .select("dlq.name as dead_letter_queue")
    .where("queues.project_id", "=", projectId);
}

/** Writes the changes and stamps the queue as updated. */
export async function updateQueue(db: Db, queue: QueueRow, changes: QueueChanges): Promise<void> {
  await db
    .updateTable("queues")
    .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", queue.project_id)
    .where("queue_id", "=", queue.queue_id)
    .execute();
}

/**
 * Deletes the queue and its subscriptions; whoever used it as dead letter queue keeps its own from now on. The messages
 * are out of reach at once, and the pruner deletes them.
 */
export async function deleteQueue(trx: Db, queue: QueueRow): Promise<void> {
  const { project_id, queue_id } = queue;
  for (const table of ["queues", "push_subscriptions"] as const) {
    await trx
      .updateTable(table)
      .set({ dead_letter_queue_id: null })
      .where("project_id", "=", project_id)
      .where("dead_letter_queue_id", "=", queue_id)
      .execute();
    await trx.deleteFrom(table).where("project_id", "=", project_id).where("queue_id", "=", queue_id).execute();
  }
  await trx
    .insertInto("dropped_lanes")
    .values([
      { project_id, queue_id, lane_id: queue.lane_id },
      { project_id, queue_id: queue.graveyard_id },
      { project_id, queue_id: queue.push_lane_id },
    ])
    .execute();
}

/** Whether another queue, or a subscription of another queue, sends its dead letters to this one. */
export async function isDeadLetterQueue(db: Db, queue: QueueRow): Promise<boolean> {
  const { rows } = await sql<{ used: boolean }>`
    select exists (select from queues
                   where project_id = ${queue.project_id} and dead_letter_queue_id = ${queue.queue_id})
        or exists (select from push_subscriptions
                   where project_id = ${queue.project_id} and dead_letter_queue_id = ${queue.queue_id}) as used`.execute(
    db,
  );
  return rows[0]?.used ?? false;
}

/**
 * Whether dead letters of `queueId` would come back to it if they went to `deadLetterQueueId`, by the ways of queues and
 * of subscriptions. Changes of dead letter
 * queues within a project wait for one another until the transaction ends, so that two cannot close a circle together.
 */
export async function closesDeadLetterCycle(
  trx: Db,
  projectId: string,
  queueId: string,
  deadLetterQueueId: string,
): Promise<boolean> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${`dead letter queues of ${projectId}`}, 0))`.execute(trx);
  const { rows } = await sql<{ cycle: boolean }>`
    with recursive chain as (
      select ${deadLetterQueueId}::uuid as queue_id
      union
      select way.dead_letter_queue_id from chain join (
        select queue_id, dead_letter_queue_id from queues
        where project_id = ${projectId} and dead_letter_queue_id is not null
        union all
        select queue_id, dead_letter_queue_id from push_subscriptions
        where project_id = ${projectId} and dead_letter_queue_id is not null
      ) way using (queue_id)
    )
    select exists (select from chain where queue_id = ${queueId}) as cycle`.execute(trx);
  return rows[0]?.cycle ?? false;
}
