import { type RawBuilder, type Selectable, type SqlBool, sql } from "kysely";
import type { Database, Db, RunKind, RunRow, RunState } from "../db/schema.ts";
import { cronRunFailedEvent } from "../domain/failure-event.ts";
import { formatId } from "../domain/ids.ts";
import { DEFAULT_RETENTION_DAYS, type RunTransition, retentionSeconds } from "../domain/run.ts";
import { insertCallback } from "./callbacks.ts";

/** A run that has its state changed. */
export interface RunKey {
  readonly projectId: string;
  readonly runId: string;
}

/** What a run must still be for a transition to apply: under the lease of that token, or in one of the states. */
export type RunGuard = { readonly leaseToken: string } | { readonly states: readonly RunState[] };

/** The cron job of a run, as far as the end of the run depends on it. */
export type RunOwner = Pick<
  Selectable<Database["cron_jobs"]>,
  "name" | "retention_days" | "on_failure_webhook" | "secret" | "state"
>;

const now = sql<Date>`carillon_now()`;

/**
 * Carries out a transition, and all that follows from it in the same transaction: the expiry of the finished run, the
 * state of its task, the failure event of its cron job. Beside leasing, nothing else writes the state of a run of
 * these kinds; pushes are settled with their messages. Returns the run
 * as it is then, or undefined when the guard does not hold any more, which changes nothing.
 *
 * Locks are taken in one order everywhere: cron job or task, then run. So the caller holds the lock of the owner.
 *
 * @param owner the cron job of the run, undefined for a run of another kind.
 */
export async function applyTransition(
  trx: Db,
  { projectId, runId }: RunKey,
  guard: RunGuard,
  transition: RunTransition,
  owner: RunOwner | undefined,
): Promise<RunRow | undefined> {
  const keptSeconds = retentionSeconds(owner?.retention_days ?? DEFAULT_RETENTION_DAYS);
  const run = await trx
    .updateTable("runs")
    .set({
      state: transition.to === "expired" ? "canceled" : transition.to,
      error: transition.to === "succeeded" ? null : transition.error,
      lease_token: null,
      lease_expires_at: null,
      waiting: false,
      ...(transition.responseStatus === undefined ? {} : { response_status: transition.responseStatus }),
      ...(transition.to === "retrying"
        ? { run_at: sql<Date>`carillon_now() + make_interval(secs => ${transition.waitMs / 1_000})` }
        : { finished_at: now, expires_at: keptSeconds === null ? null : afterSeconds(keptSeconds) }),
    })
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .where(holds(guard))
    .returningAll()
    .executeTakeFirst();
  if (run === undefined) return undefined;

  if (run.task_id !== null && transition.to !== "skipped") {
    await trx
      .updateTable("tasks")
      .set({ state: transition.to })
      .where("project_id", "=", projectId)
      .where("task_id", "=", run.task_id)
      // A task that was canceled under its last attempt stays so.
      .where("state", "in", ["scheduled", "running", "retrying"])
      .execute();
  }
  if (transition.to === "failed" && run.cron_id !== null && owner !== undefined) await tellOfFailure(trx, run, owner);
  return run;
}

function afterSeconds(seconds: number): RawBuilder<Date> {
  return sql<Date>`carillon_now() + make_interval(secs => ${seconds})`;
}

function holds(guard: RunGuard): RawBuilder<SqlBool> {
  return "leaseToken" in guard
    ? sql<SqlBool>`state = 'running' and lease_token = ${guard.leaseToken}`
    : sql<SqlBool>`state = any(${guard.states})`;
}

/** Puts the failure event of a run on its way, unless nobody wants it. Deleted jobs start nothing new. */
async function tellOfFailure(trx: Db, run: RunRow, owner: RunOwner): Promise<void> {
  if (owner.on_failure_webhook === null || owner.state === "deleted" || run.cron_id === null) return;
  const body = cronRunFailedEvent({
    runId: formatId("run", run.run_id),
    cronId: formatId("cron", run.cron_id),
    name: owner.name,
    trigger: run.trigger,
    scheduledAt: run.fire_at,
    startedAt: run.started_at ?? run.created_at,
    finishedAt: run.finished_at ?? run.created_at,
    error: run.error ?? "",
    responseStatus: run.response_status,
    attempts: run.attempt,
  });
  await insertCallback(trx, {
    project_id: run.project_id,
    url: owner.on_failure_webhook,
    body: Buffer.from(body),
    secret: owner.secret,
  });
}

/** The project's run, or undefined. Runs that carry failure events are not shown. */
export async function findRun(db: Db, projectId: string, runId: string): Promise<RunRow | undefined> {
  return db
    .selectFrom("runs")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .where("kind", "!=", "callback")
    .executeTakeFirst();
}

/** Which runs a list shows; what is undefined does not matter. */
export interface RunFilter {
  readonly cronId?: string | undefined;
  readonly taskId?: string | undefined;
  readonly state?: RunState | undefined;
  readonly kind?: RunKind | undefined;
  /** The instant that the run stands for is not before this. */
  readonly since?: Date | undefined;
  /** The instant that the run stands for is before this. */
  readonly until?: Date | undefined;
}

/** Up to `limit` runs that were made before the run `before`, newest first. */
export async function listRuns(
  db: Db,
  projectId: string,
  { cronId, taskId, state, kind, since, until }: RunFilter,
  before: string | undefined,
  limit: number,
): Promise<RunRow[]> {
  return db
    .selectFrom("runs")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("kind", "!=", "callback")
    .$if(cronId !== undefined, (query) => query.where("cron_id", "=", cronId ?? ""))
    .$if(taskId !== undefined, (query) => query.where("task_id", "=", taskId ?? ""))
    .$if(state !== undefined, (query) => query.where("state", "=", state ?? "pending"))
    .$if(kind !== undefined, (query) => query.where("kind", "=", kind ?? "cron"))
    .$if(since !== undefined, (query) => query.where("fire_at", ">=", since ?? new Date(0)))
    .$if(until !== undefined, (query) => query.where("fire_at", "<", until ?? new Date(0)))
    .$if(before !== undefined, (query) => query.where("run_id", "<", before ?? ""))
    .orderBy("run_id", "desc")
    .limit(limit)
    .execute();
}

/** The newest run of each of the project's cron jobs or tasks, by the id of its owner. */
export async function newestRuns(
  db: Db,
  projectId: string,
  owner: "cron_id" | "task_id",
  ownerIds: readonly string[],
): Promise<Map<string, RunRow>> {
  if (ownerIds.length === 0) return new Map();
  const { rows } = await sql<RunRow>`
    select newest.* from unnest(${ownerIds}::uuid[]) as wanted (owner_id)
    cross join lateral (
      select * from runs where project_id = ${projectId} and ${sql.ref(owner)} = wanted.owner_id
      order by run_id desc limit 1) as newest`.execute(db);
  return new Map(rows.map((run) => [run[owner] ?? "", run]));
}
