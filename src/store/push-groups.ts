import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { buryMessages } from "./dead-letters.ts";
import type { BlockedGroupRow } from "./groups.ts";
import { skipDelivery } from "./push-deliveries.ts";
import { lockPushed, takeTurns } from "./push-fanout.ts";

/**
 * Up to `limit` groups that wait at a subscription of mode fanout, by their ids from the one after `after`: behind a message
 * that is in flight to it or has failed.
 */
export async function listGroupsOfSubscription(
  db: Db,
  queue: QueueRow,
  subscriptionId: string,
  after: string | undefined,
  limit: number,
): Promise<BlockedGroupRow[]> {
  const { rows } = await sql<BlockedGroupRow>`
    select d.group_id, d.message_id, d.failure_count, g.depth, (d.lease_token is not null)::int as in_flight,
      case when d.lease_token is not null then 'in_flight' when d.due_at = 'infinity' then 'parked' else 'retrying' end as reason,
      nullif(d.due_at, 'infinity') as until,
      greatest(extract(epoch from carillon_now() - m.published_at), 0)::int as oldest_age_seconds
    from (
      select * from push_deliveries d
      where d.project_id = ${queue.project_id} and d.subscription_id = ${subscriptionId} and d.group_id is not null
        and (d.lease_token is not null or (d.failure_count > 0 and d.due_at > carillon_now()))
        ${after === undefined ? sql`` : sql`and d.group_id > ${after}`}
      order by d.group_id limit ${limit}
    ) d
    join messages m on m.project_id = ${queue.project_id} and m.queue_id = ${queue.push_lane_id} and m.message_id = d.message_id
    cross join lateral (
      select count(*)::int as depth from push_deliveries o
      where o.project_id = d.project_id and o.subscription_id = d.subscription_id and o.group_id = d.group_id) g
    order by d.group_id`.execute(db);
  return rows;
}

/** What a resumption takes away from before a group, as a dead letter says it. */
const SKIPPED = "skipped by an operator";

/**
 * Lets a group of a FIFO queue go on whose first message has failed and waits: tries it at once with no failures counted, or
 * makes it a dead letter. Returns the message, or undefined when the group does not wait so.
 */
export async function resumeGroup(
  trx: Db,
  queue: QueueRow,
  groupId: string,
  skip: boolean,
): Promise<string | undefined> {
  if (queue.type !== "fifo") return undefined;
  const { rows } = await sql<{ message_id: string; waits: boolean }>`
    select m.message_id, m.lease_expires_at is null and m.failure_count > 0 and m.visible_at > carillon_now() as waits
    from messages m
    where m.project_id = ${queue.project_id} and m.queue_id = ${queue.queue_id} and m.group_id = ${groupId}
    order by m.seq limit 1 for update`.execute(trx);
  const head = rows[0];
  if (head === undefined || !head.waits) return undefined;
  if (skip) await buryMessages(trx, queue, [{ messageId: head.message_id, reason: "rejected", error: SKIPPED }]);
  else {
    await sql`
      update messages set rank = rank + (carillon_now() - visible_at), visible_at = carillon_now(), failure_count = 0
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = ${head.message_id}`.execute(
      trx,
    );
  }
  return head.message_id;
}

/** `resumeGroup` of a group that waits at a subscription of mode fanout. */
export async function resumeGroupOfSubscription(
  trx: Db,
  queue: QueueRow,
  subscription: { readonly subscription_id: string; readonly dead_letter_queue_id: string | null },
  groupId: string,
  skip: boolean,
): Promise<string | undefined> {
  const { subscription_id: id } = subscription;
  const deadLetterQueueId = subscription.dead_letter_queue_id ?? undefined;
  await takeTurns(trx, [id]);
  const { rows } = await sql<{ message_id: string; waits: boolean }>`
    select d.message_id, d.lease_token is null and d.failure_count > 0 and d.due_at > carillon_now() as waits
    from push_deliveries d
    where d.project_id = ${queue.project_id} and d.subscription_id = ${id} and d.group_id = ${groupId}
    order by d.seq limit 1`.execute(trx);
  const head = rows[0];
  if (head === undefined || !head.waits) return undefined;
  if (skip) {
    await lockPushed(trx, queue, [head.message_id]);
    await skipDelivery(trx, queue, id, head.message_id, { error: SKIPPED, deadLetterQueueId });
  } else {
    await sql`
      update push_deliveries set due_at = carillon_now(), failure_count = 0
      where project_id = ${queue.project_id} and subscription_id = ${id} and message_id = ${head.message_id}`.execute(
      trx,
    );
  }
  return head.message_id;
}
