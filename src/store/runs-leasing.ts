import { sql } from "kysely";
import type { Db, RunKind, RunTrigger } from "../db/schema.ts";
import type { Backoff } from "../domain/backoff.ts";
import type { SealedKey } from "../domain/signing-key.ts";
import { admitRequests, type Grant } from "./endpoint-admission.ts";
import type { RunKey } from "./runs.ts";
import type { DueRun } from "./runs-due.ts";
import { signersOf } from "./signing-keys.ts";

/** How long a lease outlives the time limit of its attempt, in seconds: time to record the outcome. */
export const LEASE_MARGIN_SECONDS = 30;
/** Time limit of an attempt to deliver an event, in seconds. */
const CALLBACK_TIMEOUT_SECONDS = 30;

/** A run whose next attempt belongs to whoever holds the token, with all that the attempt needs. */
export interface LeasedRun extends RunKey {
  readonly kind: RunKind;
  readonly cronId: string | null;
  readonly taskId: string | null;
  /** Of a push that is made once more. */
  readonly subscriptionId: string | null;
  readonly messageId: string | null;
  readonly trigger: RunTrigger;
  /** The run that this one replays. */
  readonly replayOf: string | null;
  readonly fireAt: Date;
  /** When the first attempt was due. */
  readonly effectiveAt: Date;
  /** The instant now. */
  readonly leasedAt: Date;
  readonly attempt: number;
  readonly leaseToken: string;
  readonly url: string;
  /** Null for none. */
  readonly payload: Buffer | null;
  readonly contentType: string;
  readonly headers: Readonly<Record<string, string>>;
  /** What signs it. */
  readonly signers: readonly SealedKey[];
  readonly timeoutSeconds: number;
  readonly retries: number;
  /** How far apart they are; null for the default. */
  readonly backoff: Backoff | null;
  /** Its end decides over the breaker of the endpoint. */
  readonly probe: boolean;
  /** The endpoint has a limit or is in trouble, so that others may wait for the end of this attempt. */
  readonly guarded: boolean;
}

/**
 * Leases those of the project's runs that are still due, that nobody else is leasing and that their endpoints admit. From then
 * on each run says what attempt is under way, so that one whose node dies under it is counted. What is not admitted stays as it
 * is.
 */
export async function leaseRuns(db: Db, projectId: string, runs: readonly DueRun[]): Promise<LeasedRun[]> {
  const wanted = (due: readonly DueRun[]) => ({
    runIds: due.map(({ runId }) => runId),
    taskIds: due.flatMap(({ taskId }) => taskId ?? []),
  });
  // One statement is a transaction by itself.
  if (!runs.some(({ guarded }) => guarded)) return lease(db, projectId, wanted(runs), new Map());
  return db.transaction().execute(async (trx) => {
    const { taskIds } = wanted(runs);
    const tasks = new Set(taskIds.length === 0 ? [] : await lockFreeTasks(trx, projectId, taskIds));
    const free = runs.filter(({ taskId }) => taskId === null || tasks.has(taskId));
    const grants = await admitGuarded(trx, projectId, free);
    return lease(trx, projectId, wanted(withinGrants(free, grants)), grants);
  });
}

async function lease(
  db: Db,
  projectId: string,
  { runIds, taskIds }: { readonly runIds: readonly string[]; readonly taskIds: readonly string[] },
  grants: ReadonlyMap<string, Grant>,
): Promise<LeasedRun[]> {
  if (runIds.length === 0) return [];
  const owner = sql<string | null>`coalesce(r.cron_id, r.task_id, b.webhook_id, b.subscription_id, b.signer_id)`;
  const { rows } = await sql<Omit<LeasedRun, "probe" | "guarded"> & { readonly endpointId: string }>`
    -- Tasks are locked before their runs, as everywhere. What is locked is found again by its place, as a join by ids of so few
    -- rows reads all of them for each of them. Whatever has changed since this statement began is at another place, and is left
    -- to the next look.
    with held as materialized (
      select ctid as place from tasks
      where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
      for no key update skip locked),
    due as materialized (
      select r.ctid as place, t.place as task_place,
        coalesce(c.url, t.url, w.url, b.url) as url, b.subscription_id,
        coalesce(c.payload, t.payload, b.body) as payload,
        coalesce(c.content_type, t.content_type, b.content_type, 'application/json') as content_type,
        coalesce(c.headers, t.headers, b.headers, '{}') as headers,
        ${signersOf(sql<string>`${projectId}::uuid`, owner)} as signers,
        coalesce(c.timeout_seconds, t.timeout_seconds, ${CALLBACK_TIMEOUT_SECONDS}) as timeout_seconds,
        coalesce(c.retries, t.retries, 0) as retries,
        coalesce(c.backoff, t.backoff) as backoff
      from runs r
      -- Run by run: as joins, all of a project's rows are read for each run where the planner knows of few.
      left join lateral (
        select *, ctid as place from tasks where project_id = r.project_id and task_id = r.task_id limit 1) t on true
      left join lateral (
        select * from cron_jobs where project_id = r.project_id and cron_id = r.cron_id limit 1) c on true
      left join lateral (
        select * from callbacks where project_id = r.project_id and callback_id = r.callback_id limit 1) b on true
      left join event_webhooks w on w.project_id = b.project_id and w.webhook_id = b.webhook_id
      where r.project_id = ${projectId} and r.run_id = any(${runIds}::uuid[])
        and r.state in ('pending', 'retrying') and not r.waiting and r.run_at <= carillon_now()
        and (r.start_by is null or r.attempt > 0 or r.start_by > carillon_now())
        and (r.task_id is null or t.place = any(array(select place from held)))
      for update of r skip locked),
    leased as (
      update runs set state = 'running', parked = false, attempt = runs.attempt + 1, lease_token = carillon_id(),
        lease_expires_at = carillon_now() + make_interval(secs => due.timeout_seconds + ${LEASE_MARGIN_SECONDS}::int),
        started_at = coalesce(started_at, carillon_now()), attempt_at = carillon_now(), attempt_url = due.url
      from due where runs.ctid = due.place
      returning runs.*, due.task_place, due.url, due.payload, due.content_type, due.headers, due.signers,
        due.timeout_seconds, due.retries, due.backoff, due.subscription_id as pushed_by),
    begun as (
      update tasks t set state = 'running' from leased l where t.ctid = l.task_place)
    select l.project_id as "projectId", l.run_id as "runId", l.kind, l.cron_id as "cronId", l.task_id as "taskId",
      l.endpoint_id as "endpointId", l.trigger, l.fire_at as "fireAt",
      coalesce(l.effective_at, l.fire_at) as "effectiveAt", carillon_now() as "leasedAt", l.attempt,
      l.lease_token as "leaseToken", l.message_id as "messageId", l.replay_of as "replayOf",
      l.pushed_by as "subscriptionId", l.url, l.payload, l.content_type as "contentType", l.headers, l.signers,
      l.timeout_seconds as "timeoutSeconds", l.retries, l.backoff
    from leased l
    order by l.run_at`.execute(db);
  return rows.map((run) => {
    const grant = grants.get(run.endpointId);
    return { ...run, probe: grant?.probe ?? false, guarded: grant !== undefined };
  });
}

/** What endpoints that are guarded admit of the runs; others are not in the answer. */
async function admitGuarded(trx: Db, projectId: string, runs: readonly DueRun[]): Promise<Map<string, Grant>> {
  const wanted = new Map<string, number>();
  for (const { endpointId, guarded } of runs) if (guarded) wanted.set(endpointId, (wanted.get(endpointId) ?? 0) + 1);
  return wanted.size === 0 ? new Map() : admitRequests(trx, projectId, wanted);
}

/** The runs that may go, in their order. */
function withinGrants(runs: readonly DueRun[], grants: ReadonlyMap<string, Grant>): DueRun[] {
  const left = new Map([...grants].map(([endpointId, { granted }]) => [endpointId, granted]));
  return runs.filter(({ endpointId }) => {
    const count = left.get(endpointId);
    if (count === undefined) return true;
    left.set(endpointId, count - 1);
    return count > 0;
  });
}

async function lockFreeTasks(trx: Db, projectId: string, taskIds: readonly string[]): Promise<string[]> {
  const { rows } = await sql<{ task_id: string }>`
    select task_id from tasks where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
    for no key update skip locked`.execute(trx);
  return rows.map(({ task_id }) => task_id);
}

/** An attempt under way: what is needed to settle its run. */
export type AttemptKey = Pick<
  LeasedRun,
  "projectId" | "runId" | "kind" | "cronId" | "taskId" | "attempt" | "leaseToken"
>;

/** A run whose lease has run out. */
export interface LapsedRun extends AttemptKey {
  /** It is a monitor's: nobody here makes it, and no ping has told of its end. */
  readonly isPinged: boolean;
  readonly retries: number;
  readonly backoff: Backoff | null;
}

/**
 * Up to `limit` runs whose lease has run out: their node is dead, or was cut off, or the run of a monitor does not end. Those of
 * pushes are left out.
 */
export async function lapsedRuns(db: Db, limit: number): Promise<LapsedRun[]> {
  const { rows } = await sql<LapsedRun>`
    select r.project_id as "projectId", r.run_id as "runId", r.kind, r.cron_id as "cronId", r.task_id as "taskId",
      r.attempt, r.lease_token as "leaseToken", coalesce(c.retries, t.retries, 0) as retries,
      coalesce(c.backoff, t.backoff) as backoff, c.ping_token is not null as "isPinged"
    from runs r
    left join cron_jobs c on c.project_id = r.project_id and c.cron_id = r.cron_id
    left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
    where r.state = 'running' and r.lease_expires_at <= carillon_now() and r.kind <> 'push'
    order by r.lease_expires_at limit ${limit}`.execute(db);
  return rows;
}
