import { sql } from "kysely";
import type { Db, QueueRow } from "../db/schema.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { type AttemptRecord, recordOutcome } from "./run-attempts.ts";

/** One push of one message to one subscription. Its run lives as long as the message is tried. */
export interface Push {
  readonly run_id: string;
  readonly attempt: number;
  readonly fire_at: Date;
  /** When the attempt was recorded: the instant now. */
  readonly started_at: Date;
  readonly lease_token: string;
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
  url: string,
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
      insert into run_attempts (project_id, run_id, attempt, started_at, url)
      select ${queue.project_id}, run_id, attempt, carillon_now(), ${url} from run
    )
    select *, carillon_now() as started_at from run`.execute(trx);
  const push = rows[0];
  if (push === undefined) throw new Error("an upsert without a row");
  return push;
}

/** What a push came to. */
export interface PushResult {
  readonly state: "succeeded" | "failed" | "retrying";
  /** Why it failed, in words; null when it succeeded. */
  readonly error: string | null;
  readonly record: AttemptRecord;
  /** Until the next attempt. Only for retrying. */
  readonly retryInSeconds: number;
}

/** Days for which finished pushes are kept. */
const PUSH_RETENTION_DAYS = 30;

/** Records what a push came to, unless its lease has passed to another attempt. */
export async function finishPush(trx: Db, projectId: string, push: Push, result: PushResult): Promise<void> {
  const nextAt = sql<Date>`carillon_now() + make_interval(secs => ${result.retryInSeconds})`;
  const attempt = { projectId, runId: push.run_id, attempt: push.attempt };
  const retries = result.state === "retrying";
  await sql`
    with attempt as (${recordOutcome(attempt, result.record, retries ? nextAt : sql<null>`null`)})
    update runs
    set state = ${result.state}, lease_token = null, lease_expires_at = null, response_status = ${result.record.responseStatus},
        error = ${result.error}, run_at = ${nextAt},
        finished_at = case when ${result.state} = 'retrying' then null else carillon_now() end,
        expires_at = case when ${result.state} = 'retrying' then null
                          else carillon_now() + make_interval(days => ${PUSH_RETENTION_DAYS}) end
    where project_id = ${projectId} and run_id = ${push.run_id} and lease_token = ${push.lease_token}`.execute(trx);
}

/** What a push comes to that is given up though nobody knows how its last attempt ended, because its node was lost. */
export type LostPush = Pick<PushResult, "error" | "retryInSeconds"> & { readonly state: "failed" | "retrying" };

/** Records that a push was lost with its node, and notes why its attempt has no outcome. */
export async function abandonPush(
  trx: Db,
  projectId: string,
  { subscriptionId, messageId }: { readonly subscriptionId: string; readonly messageId: string },
  { state, error, retryInSeconds }: LostPush,
): Promise<void> {
  await sql`
    with lost as (
      update runs
      set state = ${state}, lease_token = null, lease_expires_at = null, error = ${error},
          run_at = carillon_now() + make_interval(secs => ${retryInSeconds}),
          finished_at = case when ${state} = 'failed' then carillon_now() end,
          expires_at = case when ${state} = 'failed' then carillon_now() + make_interval(days => ${PUSH_RETENTION_DAYS}) end
      where project_id = ${projectId} and subscription_id = ${subscriptionId} and message_id = ${messageId}
        and state = 'running'
      returning run_id, attempt
    )
    update run_attempts a set error = ${RUN_ERRORS.leaseExpired} from lost
    where a.project_id = ${projectId} and a.run_id = lost.run_id and a.attempt = lost.attempt and a.finished_at is null`.execute(
    trx,
  );
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
    where ctid = any(array(
      select r.ctid from runs r
      where r.kind = 'push' and r.state in ('running', 'retrying')
        and (r.lease_expires_at is null or r.lease_expires_at <= carillon_now())
        and not exists (
          select from push_subscriptions s
          join queues q on q.project_id = s.project_id and q.queue_id = s.queue_id
          where s.project_id = r.project_id and s.subscription_id = r.subscription_id
            and (exists (select from messages m
                         where m.project_id = s.project_id and m.queue_id = s.queue_id and m.message_id = r.message_id)
                 or exists (select from push_deliveries d
                            where d.project_id = s.project_id and d.subscription_id = s.subscription_id
                              and d.message_id = r.message_id)
                 or carillon_line_holds(q.lane_id, r.message_id)))
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
