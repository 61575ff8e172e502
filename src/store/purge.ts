import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { purgeLine } from "./line.ts";

/** How many messages one statement of a purge removes. It bounds the memory and the time that a statement takes. */
const PURGE_STEP = 20_000;
/** Lies before every id. */
const FIRST_ID = "00000000-0000-0000-0000-000000000000";

/**
 * Removes every message that was in the queue before the transaction began, leased or not, and returns how many.
 * Dead letters that others sent to this queue are messages of it; its own dead letters are not.
 */
export async function purgeQueue(trx: Db, queue: QueueRow): Promise<number> {
  let purged = await purgeLine(trx, queue);
  let after = FIRST_ID;
  for (;;) {
    // In the order of ids: so that no two that lock many messages can wait for each other in a circle, and so that no
    // step walks over what the steps before have deleted. By places of rows, because the planner, which knows nothing of a
    // queue that has just been filled, may compare each of its rows with each id.
    const { rows } = await sql<{ count: number; last: string | null }>`
      with gone as (
        delete from messages
        where ctid = any(array(
          select ctid from messages
          where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id > ${after}
            and published_at <= carillon_now()
          order by message_id limit ${PURGE_STEP} for update))
        returning message_id
      ),
      bodies as (
        delete from message_bodies
        where ctid = any(array(
          select b.ctid from gone
          cross join lateral (
            select ctid from message_bodies b
            where b.project_id = ${queue.project_id} and b.queue_id = ${queue.queue_id} and b.message_id = gone.message_id
            limit 1) b))
      )
      select count(*)::int as count, (select message_id from gone order by message_id desc limit 1) as last
      from gone`.execute(trx);
    const { count = 0, last = null } = rows[0] ?? {};
    purged += count;
    if (last === null) return purged;
    after = last;
  }
}
