import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";

/** One push of one message to one subscription. Its run lives as long as the message is tried. */
export interface Push {
  readonly run_id: string;
  readonly attempt: number;
  readonly fire_at: Date;
  readonly lease_token: string;
}

/** Those of the subscriptions that have already been given this message. */
export async function pushedSubscriptions(
  db: Db,
  projectId: string,
  subscriptionIds: readonly string[],
  messageId: string,
): Promise<Set<string>> {
  const { rows } = await sql<{ subscription_id: string }>`
    select subscription_id from runs
    where project_id = ${projectId} and subscription_id = any(${subscriptionIds}::uuid[]) and message_id = ${messageId}
      and state = 'succeeded'`.execute(db);
  return new Set(rows.map((row) => row.subscription_id));
}

/**
 * Records an attempt to push a message before it is made, so that a crash counts too, and returns its run. The run is
 * the one that the subscription has for the message already, or a new one.
 */
export async function startPush(
  trx: Db,
  queue: QueueRow,
  subscriptionId: string,
  messageId: string,
  leaseSeconds: number,
): Promise<Push> {
  const { rows } = await sql<Push>`
    with run as (
      insert into runs (project_id, kind, subscription_id, message_id, state, trigger, fire_at, run_at, attempt,
                        lease_token, lease_expires_at, started_at)
      values (${queue.project_id}, 'push', ${subscriptionId}, ${messageId}, 'running', 'message', carillon_now(), carillon_now(), 1,
              gen_random_uuid(), carillon_now() + make_interval(secs => ${leaseSeconds}), carillon_now())
      on conflict (project_id, subscription_id, message_id) where subscription_id is not null
      do update set state = 'running', attempt = runs.attempt + 1, finished_at = null, expires_at = null,
        lease_token = excluded.lease_token, lease_expires_at = excluded.lease_expires_at, error = null, response_status = null
      returning run_id, attempt, fire_at, lease_token
    ),
    recorded as (
      insert into run_attempts (project_id, run_id, attempt, started_at)
      select ${queue.project_id}, run_id, attempt, carillon_now() from run
    )
    select * from run`.execute(trx);
  const push = rows[0];
  if (push === undefined) throw new Error("an upsert without a row");
  return push;
}

/** What a push came to. */
export interface PushResult {
  readonly state: "succeeded" | "failed" | "retrying";
  readonly responseStatus: number | null;
  readonly error: string | null;
  readonly durationMs: number;
  readonly responseBody: Uint8Array | null;
  /** Until the next attempt. Only for retrying. */
  readonly retryInSeconds: number;
}

/** Days for which finished pushes are kept. */
const PUSH_RETENTION_DAYS = 30;

/** Records what a push came to, unless its lease has passed to another attempt. */
export async function finishPush(trx: Db, projectId: string, push: Push, result: PushResult): Promise<void> {
  await sql`
    with attempt as (
      update run_attempts
      set finished_at = carillon_now(), response_status = ${result.responseStatus}, error = ${result.error},
          duration_ms = ${result.durationMs}, response_body = ${result.responseBody && Buffer.from(result.responseBody)}
      where project_id = ${projectId} and run_id = ${push.run_id} and attempt = ${push.attempt}
    )
    update runs
    set state = ${result.state}, lease_token = null, lease_expires_at = null, response_status = ${result.responseStatus},
        error = ${result.error}, run_at = carillon_now() + make_interval(secs => ${result.retryInSeconds}),
        finished_at = case when ${result.state} = 'retrying' then null else carillon_now() end,
        expires_at = case when ${result.state} = 'retrying' then null
                          else carillon_now() + make_interval(days => ${PUSH_RETENTION_DAYS}) end
    where project_id = ${projectId} and run_id = ${push.run_id} and lease_token = ${push.lease_token}`.execute(trx);
}

/**
 * Ends up to `limit` pushes that nobody will take further, because the message or the subscription has left the queue:
 * acked by a consumer, purged, dead, deleted. Returns how many.
 */
export async function endOrphanedPushes(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    update runs
    set state = 'canceled', error = 'the message has left the queue', lease_token = null, lease_expires_at = null,
        finished_at = carillon_now(), expires_at = carillon_now() + make_interval(days => ${PUSH_RETENTION_DAYS})
    where (project_id, run_id) in (
      select r.project_id, r.run_id from runs r
      where r.kind = 'push' and r.state in ('running', 'retrying')
        and (r.lease_expires_at is null or r.lease_expires_at <= carillon_now())
        and not exists (
          select from push_subscriptions s
          join queues q on q.project_id = s.project_id and q.queue_id = s.queue_id
          where s.project_id = r.project_id and s.subscription_id = r.subscription_id
            and (exists (select from messages m
                         where m.project_id = s.project_id and m.queue_id = s.queue_id and m.message_id = r.message_id)
                 or carillon_line_holds(q.lane_id, r.message_id)))
      limit ${limit} for update skip locked)`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
