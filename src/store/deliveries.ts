import { type RawBuilder, type Selectable, sql } from "kysely";
import type { Database, Db, RunKind, RunRow, RunState } from "../db/schema.ts";
import { Refusal } from "../errors.ts";

/** Which deliveries are meant: those that meet all that is given. */
export interface DeliveryFilter {
  readonly runId?: string | undefined;
  readonly messageId?: string | undefined;
  readonly cronId?: string | undefined;
  readonly taskId?: string | undefined;
  readonly subscriptionId?: string | undefined;
  readonly webhookId?: string | undefined;
  /** A queue's name. */
  readonly queue?: string | undefined;
  readonly kind?: RunKind | undefined;
  readonly state?: RunState | undefined;
  readonly responseStatus?: number | undefined;
  /** 5: a status from 500 to 599. */
  readonly statusClass?: number | undefined;
  readonly error?: string | undefined;
  /** How the URL begins. */
  readonly url?: string | undefined;
  /** Begun at this instant or later. */
  readonly since?: Date | undefined;
  /** Begun before this instant. */
  readonly until?: Date | undefined;
}

/** An attempt with what a reader wants to know of its run. */
export type DeliveryRow = Selectable<Database["run_attempts"]> &
  Pick<
    RunRow,
    "kind" | "trigger" | "state" | "cron_id" | "task_id" | "message_id" | "replay_of" | "subscription_id"
  > & { readonly webhook_id: string | null };

/** Attempts that one page of a filtered list, and one step of a replay, looks at. */
const WALK = 5_000;
/** How far an attempt's id may lie from its start, in seconds: ids are of the instant of the insert. */
const SLACK_SECONDS = 300;

const columns = (body: "with body" | "without body") => sql`
  a.project_id, a.run_id, a.attempt, a.delivery_id, a.url, a.started_at, a.finished_at, a.response_status, a.error,
  a.duration_ms, a.dns_ms, a.connect_ms, a.tls_ms, a.first_byte_ms, a.request_headers, a.response_headers,
  a.next_attempt_at, ${body === "with body" ? sql`a.response_body` : sql`null::bytea`} as response_body,
  r.kind, r.trigger, r.state, r.cron_id, r.task_id, r.message_id, r.replay_of,
  coalesce(r.subscription_id, b.subscription_id) as subscription_id, b.webhook_id`;

const joined = sql`
  join runs r on r.project_id = a.project_id and r.run_id = a.run_id
  left join callbacks b on b.project_id = r.project_id and b.callback_id = r.callback_id`;

/** The project's delivery of that id, or undefined. */
export async function findDelivery(db: Db, projectId: string, deliveryId: string): Promise<DeliveryRow | undefined> {
  const { rows } = await sql<DeliveryRow>`
    select ${columns("with body")} from attempts a ${joined}
    where a.project_id = ${projectId} and a.delivery_id = ${deliveryId}`.execute(db);
  return rows[0];
}

export interface DeliveryPage {
  readonly rows: readonly DeliveryRow[];
  /** Where the next page goes on. Undefined: this is the last one. */
  readonly next: string | undefined;
}

/**
 * Up to `limit` deliveries that were begun before the one `before`, newest first, without the answers' bodies. It looks at a
 * bounded number, so a page may hold fewer than asked for and still not be the last.
 */
export async function listDeliveries(
  db: Db,
  projectId: string,
  filter: DeliveryFilter,
  before: string | undefined,
  limit: number,
): Promise<DeliveryPage> {
  const { rows } = await sql<DeliveryRow & Edge>`
    ${walk(projectId, filter, before === undefined ? undefined : { below: before })},
    wanted as materialized (
      select a.delivery_id from walk a ${joined} where ${isWanted(filter)} order by a.delivery_id desc limit ${limit + 1}
    )
    select ${columns("without body")}, edge.* from edge
    left join (wanted join attempts a on a.project_id = ${projectId} and a.delivery_id = wanted.delivery_id ${joined})
      on true
    order by a.delivery_id desc`.execute(db);
  const found = rows.filter((row) => row.delivery_id !== null);
  const last = found.length > limit ? found[limit - 1] : undefined;
  return { rows: found.slice(0, limit), next: last?.delivery_id ?? nextOf(rows[0], filter) };
}

/** Where a walk has come to. */
interface Edge {
  readonly walked: number;
  readonly walked_id: string;
  readonly walked_at: Date;
}

/** Where the next walk goes on; undefined when this one has seen all that there is. */
function nextOf(edge: Edge | undefined, { since }: DeliveryFilter): string | undefined {
  if (edge === undefined || edge.walked < WALK) return undefined;
  const isBefore = since !== undefined && edge.walked_at.getTime() < since.getTime() - SLACK_SECONDS * 1_000;
  return isBefore ? undefined : edge.walked_id;
}

/**
 * The common table expressions `walk`, the newest attempts `a` that an index finds for the filter, and `edge`, the oldest
 * of them and how many they are. Without a start it begins at the newest.
 */
function walk(projectId: string, filter: DeliveryFilter, start: WalkStart | undefined): RawBuilder<unknown> {
  const { runId, messageId, until } = filter;
  const ofRuns =
    runId !== undefined
      ? sql`and run_id = ${runId}`
      : messageId !== undefined
        ? sql`and run_id in (select run_id from runs where project_id = ${projectId} and message_id = ${messageId})`
        : sql``;
  return sql`
    with walk as materialized (
      select project_id, run_id, attempt, delivery_id, url, started_at, response_status, error from attempts
      where project_id = ${projectId} ${ofRuns}
        ${startOf(start)}
        ${until === undefined ? sql`` : sql`and delivery_id < carillon_first_id(${until}::timestamptz + make_interval(secs => ${SLACK_SECONDS}))`}
      order by delivery_id desc limit ${WALK}
    ),
    edge as (
      select (count(*) over ())::int as walked, delivery_id as walked_id, started_at as walked_at
      from walk order by delivery_id limit 1
    )`;
}

function startOf(start: WalkStart | undefined): RawBuilder<unknown> {
  if (start === undefined) return sql``;
  return "from" in start ? sql`and delivery_id <= ${start.from}::uuid` : sql`and delivery_id < ${start.below}::uuid`;
}

/** The rest of the filter, for attempts `a` joined with their runs `r` and callbacks `b`. */
function isWanted(filter: DeliveryFilter): RawBuilder<boolean> {
  const also = (value: unknown, condition: () => RawBuilder<unknown>) => (value === undefined ? sql`` : condition());
  const { cronId, taskId, subscriptionId, webhookId, queue, kind, state, responseStatus, statusClass } = filter;
  const { error, url, since, until } = filter;
  return sql`true
    ${also(cronId, () => sql`and r.cron_id = ${cronId}`)}
    ${also(taskId, () => sql`and r.task_id = ${taskId}`)}
    ${also(subscriptionId, () => sql`and coalesce(r.subscription_id, b.subscription_id) = ${subscriptionId}`)}
    ${also(webhookId, () => sql`and b.webhook_id = ${webhookId}`)}
    ${also(
      queue,
      () => sql`and coalesce(r.subscription_id, b.subscription_id) in (
        select s.subscription_id from push_subscriptions s
        join queues q on q.project_id = s.project_id and q.queue_id = s.queue_id
        where q.project_id = a.project_id and q.name = ${queue})`,
    )}
    ${also(kind, () => sql`and case when b.subscription_id is null then r.kind else 'push' end = ${kind}`)}
    ${also(state, () => sql`and r.state = ${state}`)}
    ${also(responseStatus, () => sql`and a.response_status = ${responseStatus}`)}
    ${also(statusClass, () => sql`and a.response_status / 100 = ${statusClass}`)}
    ${also(error, () => sql`and a.error = ${error}`)}
    ${also(url, () => sql`and starts_with(a.url, ${url})`)}
    ${also(since, () => sql`and a.started_at >= ${since}::timestamptz`)}
    ${also(until, () => sql`and a.started_at < ${until}::timestamptz`)}`;
}

/** Only the newest attempt of a run stands for it, and only when the run is over. */
const isOver = sql`a.attempt = r.attempt and r.state in ('succeeded', 'failed', 'canceled')`;

/** The id of the newest delivery of a project: those above it are begun later. Undefined when there is none. */
export async function newestDelivery(db: Db, projectId: string): Promise<string | undefined> {
  const { rows } = await sql<{ delivery_id: string }>`
    select delivery_id from attempts where project_id = ${projectId} order by delivery_id desc limit 1`.execute(db);
  return rows[0]?.delivery_id;
}

/** Where a walk begins: at a delivery, or below it. */
export type WalkStart = { readonly from: string } | { readonly below: string };

/**
 * How many runs are over and have a newest delivery, not above `cut`, that meets the filter.
 *
 * @throws Refusal DELIVERIES_TOO_MANY when `within` is aborted first
 */
export async function countReplayable(
  db: Db,
  projectId: string,
  filter: DeliveryFilter,
  cut: string,
  within?: AbortSignal,
): Promise<number> {
  let count = 0;
  let start: WalkStart | undefined = { from: cut };
  while (start !== undefined) {
    if (within?.aborted) throw new Refusal("DELIVERIES_TOO_MANY");
    const { rows }: { rows: ({ count: number } & Edge)[] } = await sql<{ count: number } & Edge>`
      ${walk(projectId, filter, start)}
      select edge.*, (select count(*)::int from walk a ${joined} where ${isOver} and ${isWanted(filter)}) as count
      from edge`.execute(db);
    count += rows[0]?.count ?? 0;
    const next = nextOf(rows[0], filter);
    start = next === undefined ? undefined : { below: next };
  }
  return count;
}

/** What one step of a replay has found. */
export interface ReplayStep {
  /** Ids of runs, newest delivery first. */
  readonly runIds: readonly string[];
  /** The delivery that the step has come to; undefined when nothing is left. */
  readonly walkedId: string | undefined;
}

/** Up to `limit` runs that a replay is to make once more, by the newest deliveries of the walk that begins at `start`. */
export async function findReplayable(
  db: Db,
  projectId: string,
  filter: DeliveryFilter,
  start: WalkStart,
  limit: number,
): Promise<ReplayStep> {
  const { rows } = await sql<{ run_id: string | null; delivery_id: string | null } & Edge>`
    ${walk(projectId, filter, start)}
    select edge.*, found.run_id, found.delivery_id from edge left join (
      select a.run_id, a.delivery_id from walk a ${joined} where ${isOver} and ${isWanted(filter)}
      order by a.delivery_id desc limit ${limit}
    ) found on true order by found.delivery_id desc`.execute(db);
  const runIds = rows.flatMap(({ run_id }) => (run_id === null ? [] : [run_id]));
  const last = rows.at(-1);
  // With as many as were asked for there may be more above the edge.
  return { runIds, walkedId: runIds.length === limit ? (last?.delivery_id ?? undefined) : nextOf(rows[0], filter) };
}

/**
 * Deletes up to `limit` attempts that were begun more than `days` ago, at least one day, and returns how many. No push
 * is under way for so long: records without an end are of nodes that died.
 */
export async function pruneDeliveries(db: Db, limit: number, days: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from run_attempts where ctid = any(array(
      select ctid from run_attempts where started_at <= carillon_now() - make_interval(days => ${days})
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
