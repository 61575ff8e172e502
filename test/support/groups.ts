import { sql } from "kysely";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import { refreshGroups } from "../../src/store/groups.ts";

interface GroupRow {
  readonly group_id: string;
  readonly depth: number;
  readonly in_flight: number;
}

/** What the rows of a queue's groups say once they are up to date, and what its messages say. */
export async function groupsAndTruth(
  db: Db,
  queue: QueueRow,
): Promise<{ readonly said: readonly GroupRow[]; readonly truth: readonly GroupRow[] }> {
  while ((await db.transaction().execute((trx) => refreshGroups(trx, queue))) > 0);
  const { rows: said } = await sql<GroupRow>`
    select group_id, depth, in_flight from message_groups
    where queue_id = ${queue.queue_id} and depth > 0 order by group_id`.execute(db);
  const { rows: truth } = await sql<GroupRow>`
    select group_id, count(*)::int as depth, count(lease_expires_at)::int as in_flight
    from messages where queue_id = ${queue.queue_id} group by group_id order by group_id`.execute(db);
  return { said, truth };
}
