import { sql } from "kysely";
import type { Db, GroupFailurePolicy, QueueRow } from "../db/schema.ts";
import type { Backoff } from "../domain/backoff.ts";
import type { PushForm } from "../domain/push-request.ts";
import type { SealedKey } from "../domain/signing-key.ts";
import { signersOf } from "./signing-keys.ts";

/** A queue that has messages to push, with the subscriptions that may be pushed to: neither they nor their endpoints wait. */
export interface PushableQueue {
  readonly queue: QueueRow;
  readonly subscriptions: readonly PushTarget[];
  /** Whether the queue has a subscription of mode fanout, so that messages are to be given over to several. */
  readonly fansOut: boolean;
}

/** What a push to a subscription needs. */
export interface PushTarget extends PushForm {
  readonly url: string;
  readonly mode: "compete" | "fanout";
  /** What signs its pushes. */
  readonly signers: readonly SealedKey[];
  readonly max_retries: number | null;
  /** Null: the default. */
  readonly backoff: Backoff | null;
  readonly visibility_timeout_seconds: number | null;
  readonly timeout_seconds: number | null;
  readonly max_concurrency: number | null;
  readonly batch_window_ms: number;
  readonly group_failure_policy: GroupFailurePolicy;
  readonly dead_letter_queue_id: string | null;
}

/** Of a subscription s of a queue q: a PushTarget. */
const TARGET = sql`json_build_object(
  'subscription_id', s.subscription_id, 'queue', q.name, 'url', s.url, 'mode', s.mode,
  'headers', s.headers, 'body', s.body, 'batch_size', s.batch_size, 'batch_window_ms', s.batch_window_ms,
  'max_retries', s.max_retries, 'backoff', s.backoff, 'visibility_timeout_seconds', s.visibility_timeout_seconds,
  'timeout_seconds', s.timeout_seconds, 'max_concurrency', s.max_concurrency,
  'group_failure_policy', s.group_failure_policy, 'dead_letter_queue_id', s.dead_letter_queue_id,
  'signers', ${signersOf(sql.ref("s.project_id"), sql.ref("s.subscription_id"))})`;

/** Whether the endpoint of a subscription s takes requests now. */
const READY = sql`not exists (
  select from endpoints e
  where e.project_id = s.project_id and e.endpoint_id = carillon_endpoint_id(s.url) and e.guarded
    and e.ready_at > carillon_now())`;

/** Any order in which each project has its first before another has its second. */
const BY_TURNS = sql`row_number() over (partition by q.project_id order by random()), random()`;

/**
 * Up to `limit` queues with a live subscription whose endpoint takes requests, and a message that is available or whose lease ran
 * out. Each project has one before any has a second. Queues whose subscriptions are all `full` are left out, unless they
 * give messages over.
 *
 * A message is looked for by scalar subqueries, one index each, because the planner may turn an `exists` into a scan of
 * all messages; leases that ran out by a function, which is bound to its indexes.
 */
export async function pushableQueues(db: Db, limit: number, full: readonly string[]): Promise<PushableQueue[]> {
  const { rows } = await sql<QueueRow & { subscriptions: PushTarget[]; fans_out: boolean; place: unknown }>`
    with pushed as materialized (
      select q.*, row_number() over () as place from queues q
      where not q.paused and (q.project_id, q.queue_id) in (
        select s.project_id, s.queue_id from push_subscriptions s
        where not s.paused and ${READY} and (s.mode = 'fanout' or s.subscription_id <> all(${full}::uuid[])))
    ),
    lapsed as materialized (
      select l.place from (
        select array_agg(project_id order by place) as projects, array_agg(name order by place) as names,
               array_agg('-infinity'::timestamptz) as since
        from pushed
      ) all_pushed
      cross join lateral carillon_lapsed(projects, names, since) as l (place)
    )
    select q.*, s.subscriptions, s.fans_out from (
      select q.* from pushed q
      where coalesce(
          (select true from messages m
           where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
             and m.rank <= carillon_now() and m.visible_at <= carillon_now() and m.expires_at > carillon_now() limit 1),
          (select true from line_messages m
           where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
          (select true from lapsed where lapsed.place = q.place))
      order by ${BY_TURNS} limit ${limit}
    ) q
    cross join lateral (
      select json_agg(${TARGET} order by s.subscription_id) filter (where not s.paused and ${READY}) as subscriptions,
             bool_or(s.mode = 'fanout') as fans_out
      from push_subscriptions s
      where s.project_id = q.project_id and s.queue_id = q.queue_id
    ) s where s.subscriptions is not null`.execute(db);
  return rows.map(({ subscriptions, fans_out, place: _, ...queue }) => ({ queue, subscriptions, fansOut: fans_out }));
}

/** A subscription that has messages of its own to push. */
export interface DueSubscription {
  readonly queue: QueueRow;
  readonly target: PushTarget;
}

/**
 * Up to `limit` live subscriptions to which messages were given over that are due, without those that are `full`. Each project
 * has one before any has a second.
 */
export async function dueSubscriptions(db: Db, limit: number, full: readonly string[]): Promise<DueSubscription[]> {
  const { rows } = await sql<QueueRow & { target: PushTarget }>`
    select q.*, ${TARGET} as target from push_subscriptions s join queues q using (project_id, queue_id)
    where not s.paused and not q.paused and ${READY} and s.subscription_id <> all(${full}::uuid[]) and (
      select true from push_deliveries d
      where d.project_id = s.project_id and d.subscription_id = s.subscription_id and d.due_at <= carillon_now() limit 1)
    order by ${BY_TURNS} limit ${limit}`.execute(db);
  return rows.map(({ target, ...queue }) => ({ queue, target }));
}
