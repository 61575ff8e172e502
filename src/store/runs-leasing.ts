import { sql } from "kysely";
import type { CronJobState, Db, RunKind, RunTrigger, TaskState } from "../db/schema.ts";
import { isTooLate, RUN_ERRORS, type RunTransition, withoutRetry } from "../domain/run.ts";
import { type AttemptRecord, abandonAttempt, finishAttempt } from "./run-attempts.ts";
import { applyTransition, type RunKey, type RunOwner } from "./runs.ts";

/** How long a lease outlives the time limit of its attempt, in seconds: time to record the outcome. */
export const LEASE_MARGIN_SECONDS = 30;
/** Time limit of an attempt to deliver a failure event, in seconds. */
const CALLBACK_TIMEOUT_SECONDS = 30;

/** A run that may be leased. */
export interface DueRun extends RunKey {
  readonly taskId: string | null;
  /** It is a task that is later than its grace allows. */
  readonly tooLate: boolean;
}

/** Up to `limit` runs whose time has come, the longest due first. Those of pushes are leased elsewhere. */
export async function dueRuns(db: Db, limit: number): Promise<DueRun[]> {
  const { rows } = await sql<{
    project_id: string;
    run_id: string;
    task_id: string | null;
    fire_at: Date;
    attempt: number;
    trigger: RunTrigger;
    grace_seconds: number | null;
    now: Date;
  }>`
    select r.project_id, r.run_id, r.task_id, r.fire_at, r.attempt, r.trigger, t.grace_seconds, carillon_now() as now
    from runs r left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
    where r.state in ('pending', 'retrying') and not r.waiting and r.kind <> 'push' and r.run_at <= carillon_now()
    order by r.run_at limit ${limit}`.execute(db);
  return rows.map((row) => ({
    projectId: row.project_id,
    runId: row.run_id,
    taskId: row.task_id,
    tooLate: row.attempt === 0 && row.trigger !== "manual" && isTooLate(row.fire_at, row.now, row.grace_seconds),
  }));
}

/** Milliseconds until the next run is due, 0 when one is; undefined when none is to come. */
export async function msUntilNextRun(db: Db): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select extract(epoch from min(run_at) - carillon_now())::float8 * 1000 as ms from runs
    where state in ('pending', 'retrying') and not waiting and kind <> 'push'`.execute(db);
  const ms = rows[0]?.ms ?? undefined;
  return ms === undefined ? undefined : Math.max(0, Math.ceil(ms));
}

/** A run whose next attempt belongs to whoever holds the token, with all that the attempt needs. */
export interface LeasedRun extends RunKey {
  readonly kind: RunKind;
  readonly cronId: string | null;
  readonly taskId: string | null;
  readonly trigger: RunTrigger;
  readonly fireAt: Date;
  readonly attempt: number;
  readonly leaseToken: string;
  readonly url: string;
  /** Null for none. */
  readonly payload: Buffer | null;
  readonly contentType: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly secret: string;
  readonly timeoutSeconds: number;
  readonly retries: number;
}

/**
 * Leases those of the project's runs that are still due and that nobody else is leasing, and records the attempt of
 * each, so that one whose node dies under it is counted.
 */
export async function leaseRuns(db: Db, projectId: string, runs: readonly DueRun[]): Promise<LeasedRun[]> {
  const taskIds = runs.flatMap(({ taskId }) => (taskId === null ? [] : [taskId]));
  return db.transaction().execute(async (trx) => {
    const tasks = new Set(taskIds.length === 0 ? [] : await lockTasks(trx, projectId, taskIds));
    const runIds = runs.filter(({ taskId }) => taskId === null || tasks.has(taskId)).map(({ runId }) => runId);
    if (runIds.length === 0) return [];
    const { rows } = await sql<LeasedRun>`
      with due as materialized (
        select r.run_id,
          coalesce(c.url, t.url, b.url) as url,
          coalesce(c.payload, t.payload, b.body) as payload,
          coalesce(c.content_type, t.content_type, 'application/json') as content_type,
          coalesce(c.headers, t.headers, '{}') as headers,
          coalesce(c.secret, t.secret, b.secret, p.signing_secret) as secret,
          coalesce(c.timeout_seconds, t.timeout_seconds, ${CALLBACK_TIMEOUT_SECONDS}) as timeout_seconds,
          coalesce(c.retries, t.retries, 0) as retries
        from runs r
        join projects p on p.project_id = r.project_id
        left join cron_jobs c on c.project_id = r.project_id and c.cron_id = r.cron_id
        left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
        left join callbacks b on b.project_id = r.project_id and b.callback_id = r.callback_id
        where r.project_id = ${projectId} and r.run_id = any(${runIds}::uuid[])
          and r.state in ('pending', 'retrying') and not r.waiting and r.run_at <= carillon_now()
        for update of r skip locked),
      leased as (
        update runs set state = 'running', attempt = runs.attempt + 1, lease_token = gen_random_uuid(),
          lease_expires_at = carillon_now() + make_interval(secs => due.timeout_seconds + ${LEASE_MARGIN_SECONDS}::int),
          started_at = coalesce(started_at, carillon_now())
        from due where runs.project_id = ${projectId} and runs.run_id = due.run_id
        returning runs.*),
      recorded as (
        insert into run_attempts (project_id, run_id, attempt) select project_id, run_id, attempt from leased)
      select l.project_id as "projectId", l.run_id as "runId", l.kind, l.cron_id as "cronId", l.task_id as "taskId",
        l.trigger, l.fire_at as "fireAt", l.attempt, l.lease_token as "leaseToken", due.url, due.payload,
        due.content_type as "contentType", due.headers, due.secret, due.timeout_seconds as "timeoutSeconds", due.retries
      from leased l join due on due.run_id = l.run_id
      order by l.run_at`.execute(trx);
    if (tasks.size > 0) await markRunning(trx, projectId, rows);
    return rows;
  });
}

async function lockTasks(trx: Db, projectId: string, taskIds: readonly string[]): Promise<string[]> {
  const { rows } = await sql<{ task_id: string }>`
    select task_id from tasks where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
    for no key update skip locked`.execute(trx);
  return rows.map(({ task_id }) => task_id);
}

async function markRunning(trx: Db, projectId: string, leased: readonly LeasedRun[]): Promise<void> {
  const taskIds = leased.flatMap(({ taskId }) => (taskId === null ? [] : [taskId]));
  await sql`update tasks set state = 'running' where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])`.execute(
    trx,
  );
}

/** An attempt under way: what is needed to settle its run. */
export type AttemptKey = Pick<LeasedRun, "projectId" | "runId" | "cronId" | "taskId" | "attempt" | "leaseToken">;

/** `stale`: the lease was lost, and nothing is changed. `due`: settled, and another run is due by that. */
export type SettleOutcome = "stale" | "settled" | "due";

/**
 * Settles an attempt in one transaction: the transition, the attempt's record, and the turn of the run that waits
 * longest where the overlap policy made it wait. The lease's token is the fence: without it nothing changes.
 *
 * @param record undefined when the attempt's node died, so that nobody knows how it ended.
 */
export async function settleRun(
  db: Db,
  run: AttemptKey,
  transition: RunTransition,
  record: AttemptRecord | undefined,
): Promise<SettleOutcome> {
  return db.transaction().execute(async (trx) => {
    const job = run.cronId === null ? undefined : await lockOwner(trx, run.projectId, run.cronId);
    const taskState = run.taskId === null ? undefined : await lockTask(trx, run.projectId, run.taskId);
    const settled = await applyTransition(trx, run, run, allowed(transition, job?.state, taskState), job);
    if (settled === undefined) return "stale";
    if (record === undefined) await abandonAttempt(trx, run, RUN_ERRORS.leaseExpired);
    else await finishAttempt(trx, run, record);

    if (run.cronId === null || settled.finished_at === null) return "settled";
    const released = await releaseWaiting(trx, run.projectId, run.cronId);
    const told = settled.state === "failed" && job?.on_failure_webhook !== null;
    return released || told ? "due" : "settled";
  });
}

function allowed(transition: RunTransition, job: CronJobState | undefined, task: TaskState | undefined): RunTransition {
  if (job === "deleted") return withoutRetry(transition, RUN_ERRORS.jobDeleted);
  if (task === "canceled") return withoutRetry(transition, RUN_ERRORS.taskCanceled);
  return transition;
}

async function lockOwner(trx: Db, projectId: string, cronId: string): Promise<RunOwner | undefined> {
  return trx
    .selectFrom("cron_jobs")
    .select(["name", "retention_days", "on_failure_webhook", "secret", "state"])
    .where("project_id", "=", projectId)
    .where("cron_id", "=", cronId)
    .forNoKeyUpdate()
    .executeTakeFirst();
}

async function lockTask(trx: Db, projectId: string, taskId: string): Promise<TaskState | undefined> {
  const task = await trx
    .selectFrom("tasks")
    .select("state")
    .where("project_id", "=", projectId)
    .where("task_id", "=", taskId)
    .forNoKeyUpdate()
    .executeTakeFirst();
  return task?.state;
}

/** Lets the run that has waited longest start when no other is live; says whether there was one. Needs the job's lock. */
export async function releaseWaiting(trx: Db, projectId: string, cronId: string): Promise<boolean> {
  const { numAffectedRows } = await sql`
    update runs set waiting = false, run_at = carillon_now()
    where project_id = ${projectId} and run_id = (
        select run_id from runs
        where project_id = ${projectId} and cron_id = ${cronId} and state = 'pending' and waiting
        order by fire_at, run_id limit 1)
      and not exists (
        select from runs where project_id = ${projectId} and cron_id = ${cronId}
          and state in ('pending', 'running', 'retrying') and not waiting)`.execute(trx);
  return (numAffectedRows ?? 0n) > 0n;
}

/** Ends a task that is later than its grace allows, unless it was moved or started meanwhile. Says whether it did. */
export async function expireTask(db: Db, run: RunKey, taskId: string): Promise<boolean> {
  return db.transaction().execute(async (trx) => {
    await lockTask(trx, run.projectId, taskId);
    const { rows } = await sql<{ fire_at: Date; grace_seconds: number | null; now: Date }>`
      select r.fire_at, t.grace_seconds, carillon_now() as now
      from runs r join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
      where r.project_id = ${run.projectId} and r.run_id = ${run.runId} and r.trigger <> 'manual'
        and r.state = 'pending'`.execute(trx);
    const row = rows[0];
    if (row === undefined || !isTooLate(row.fire_at, row.now, row.grace_seconds)) return false;
    const expired = { to: "expired", error: RUN_ERRORS.expired } as const;
    return (await applyTransition(trx, run, { states: ["pending"] }, expired, undefined)) !== undefined;
  });
}

/** A run whose lease has run out. */
export interface LapsedRun extends AttemptKey {
  readonly kind: RunKind;
  readonly retries: number;
}

/** Up to `limit` runs whose lease has run out: their node is dead, or was cut off. Those of pushes are left out. */
export async function lapsedRuns(db: Db, limit: number): Promise<LapsedRun[]> {
  const { rows } = await sql<LapsedRun>`
    select r.project_id as "projectId", r.run_id as "runId", r.kind, r.cron_id as "cronId", r.task_id as "taskId",
      r.attempt, r.lease_token as "leaseToken", coalesce(c.retries, t.retries, 0) as retries
    from runs r
    left join cron_jobs c on c.project_id = r.project_id and c.cron_id = r.cron_id
    left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
    where r.state = 'running' and r.lease_expires_at <= carillon_now() and r.kind <> 'push'
    order by r.lease_expires_at limit ${limit}`.execute(db);
  return rows;
}
