import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { NIL_UUID } from "../domain/ids.ts";
import { purgeLine } from "./line.ts";
import { bodiesOf, type PlacedMessage } from "./messages.ts";
import { forgetDeliveries, takeTurnsOfQueue } from "./push-deliveries.ts";

/** How many messages one step of a purge removes. It bounds the memory and the time that a statement takes. */
const PURGE_STEP = 10_000;

/**
 * Removes every message that was in the queue before the transaction began, leased or not, and returns how many.
 * Dead letters that others sent to this queue are messages of it; its own dead letters are not.
 */
export async function purgeQueue(trx: Db, queue: QueueRow): Promise<number> {
  const inLine = await purgeLine(trx, queue);
  const singly = await purgeLane(trx, queue);
  // Those that its subscriptions have are messages of it until all of them are done.
  const subscriptions = await takeTurnsOfQueue(trx, queue);
  const pushed = await purgeLane(trx, { ...queue, queue_id: queue.push_lane_id }, async (ids) => {
    for (const id of subscriptions) await forgetDeliveries(trx, queue, id, ids);
  });
  return inLine + singly + pushed;
}

/** Removes the messages of a lane in steps. `forget` is told of each step's. */
async function purgeLane(
  trx: Db,
  lane: Lane,
  forget: (messageIds: readonly string[]) => Promise<void> = async () => {},
): Promise<number> {
  let purged = 0;
  for (let after = NIL_UUID; ; ) {
    const found = await lockNext(trx, lane, after);
    const last = found.at(-1);
    if (last === undefined) return purged;
    await remove(trx, lane, found);
    await forget(found.map(({ message_id }) => message_id));
    purged += found.length;
    after = last.message_id;
  }
}

type Lane = Pick<QueueRow, "project_id" | "queue_id">;

/**
 * Locks the next messages to purge. In the order of ids: so that no two that lock many messages can wait for each other
 * in a circle, and so that no step walks over what the steps before have deleted.
 */
async function lockNext(trx: Db, queue: Lane, after: string): Promise<PlacedMessage[]> {
  const { rows } = await sql<PlacedMessage>`
    select message_id, ctid::text as place from messages
    where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id > ${after}
      and published_at <= carillon_now()
    order by message_id limit ${PURGE_STEP} for update`.execute(trx);
  return rows;
}

/**
 * Deletes locked messages and their bodies. By places of rows, because the planner, which knows nothing of a queue that
 * has just been filled, may compare each of its rows with each id. And in a statement of its own: to the one that waited
 * for a lock, what changed meanwhile is not visible at its new place.
 */
async function remove(trx: Db, queue: Lane, found: readonly PlacedMessage[]): Promise<void> {
  await sql`
    with gone as (delete from messages where ctid = any(${found.map(({ place }) => place)}::tid[]))
    delete from message_bodies where ctid = any(${bodiesOf(queue, found)})`.execute(trx);
}
