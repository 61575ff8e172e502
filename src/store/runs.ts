import { type RawBuilder, type Selectable, type SqlBool, sql } from "kysely";
import type { Database, Db, RunDisposition, RunKind, RunRow, RunState, TaskRow } from "../db/schema.ts";
import { type EventTarget, expiredTaskData, type FailedRun, failedRunData } from "../domain/events.ts";
import { formatId } from "../domain/ids.ts";
import { DEFAULT_RETENTION_DAYS, type RunTransition, retentionSeconds } from "../domain/run.ts";
import { countOutcome } from "./cron-failures.ts";
import { keepFires } from "./cron-watch.ts";
import { emitEvent } from "./events.ts";

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
  | "project_id"
  | "cron_id"
  | "pause_after_failures"
  | "start_grace_seconds"
  | "finish_grace_seconds"
  | "name"
  | "url"
  | "queue"
  | "retention_days"
  | "on_failure_webhook"
  | "state"
  | "ping_token"
>;

const now = sql<Date>`carillon_now()`;

/**
 * Carries out a transition, and all that follows from it in the same transaction: the expiry of the finished run, the
 * state of its task, the event of its failure or its expiry. Beside leasing, nothing else writes the state of a run of
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
      ...(transition.to === "expired" && { cause: "expired" }),
      error: transition.to === "succeeded" ? null : transition.error,
      lease_token: null,
      lease_expires_at: null,
      waiting: false,
      parked: false,
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

  if (run.task_id !== null && transition.to !== "skipped" && transition.to !== "missed") {
    const task = await trx
      .updateTable("tasks")
      .set({ state: transition.to })
      .where("project_id", "=", projectId)
      .where("task_id", "=", run.task_id)
      // A task that was canceled under its last attempt stays so.
      .where("state", "in", ["scheduled", "running", "retrying"])
      .returning(["name", "url", "on_failure_webhook", "grace_seconds"])
      .executeTakeFirst();
    if (transition.to === "failed" && task !== undefined) await tellOfFailure(trx, run, task);
    if (transition.to === "expired" && task !== undefined) await tellOfExpiry(trx, run, task);
  }
  // Deleted jobs start nothing new.
  if (transition.to === "failed" && run.cron_id !== null && owner !== undefined && owner.state !== "deleted") {
    await tellOfFailure(trx, run, owner);
  }
  const isEnd = transition.to === "failed" || transition.to === "succeeded";
  if (isEnd && run.cron_id !== null && run.replay_of === null && owner !== undefined) {
    await countOutcome(trx, owner, transition.to);
    if (transition.to === "succeeded") await keepFires(trx, owner, run.fire_at);
  }
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

/** Puts the event of a run's failure on its way, to the failure webhook of its owner and to all who subscribe. */
async function tellOfFailure(
  trx: Db,
  run: RunRow,
  owner: EventTarget & Pick<RunOwner, "name" | "on_failure_webhook">,
): Promise<void> {
  const failed: Omit<FailedRun, "ownerId"> = {
    runId: formatId("run", run.run_id),
    name: owner.name,
    target: owner,
    trigger: run.replay_of === null ? run.trigger : "replay",
    scheduledAt: run.fire_at,
    startedAt: run.started_at ?? run.created_at,
    finishedAt: run.finished_at ?? run.created_at,
    error: run.error ?? "",
    responseStatus: run.response_status,
    attempts: run.attempt,
  };
  const { on_failure_webhook: url } = owner;
  await emitEvent(trx, run.project_id, {
    ...(run.cron_id !== null
      ? {
          type: "cron.run.failed",
          data: failedRunData("cron_id", { ...failed, ownerId: formatId("cron", run.cron_id) }),
        }
      : {
          type: "task.failed",
          data: failedRunData("task_id", { ...failed, ownerId: formatId("task", run.task_id ?? "") }),
        }),
    alsoTo: url === null ? undefined : { url, signerId: run.cron_id ?? run.task_id },
  });
}

/** Puts the event of a task that could not start in time on its way, to those who are told of its failure. */
async function tellOfExpiry(
  trx: Db,
  run: RunRow,
  task: Pick<TaskRow, "name" | "url" | "on_failure_webhook" | "grace_seconds">,
): Promise<void> {
  const { on_failure_webhook: url } = task;
  await emitEvent(trx, run.project_id, {
    type: "task.expired",
    data: expiredTaskData({
      taskId: formatId("task", run.task_id ?? ""),
      runId: formatId("run", run.run_id),
      name: task.name,
      url: task.url,
      scheduledAt: run.fire_at,
      graceSeconds: task.grace_seconds ?? 0,
      expiredAt: run.finished_at ?? run.created_at,
    }),
    alsoTo: url === null ? undefined : { url, signerId: run.task_id },
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
  readonly disposition?: RunDisposition | undefined;
  /** The instant that the run stands for is not before this. */
  readonly since?: Date | undefined;
  /** The instant that the run stands for is before this. */
  readonly until?: Date | undefined;
}

/** Up to `limit` runs that were made before the run `before`, newest first. */
export async function listRuns(
  db: Db,
  projectId: string,
  { cronId, taskId, state, kind, disposition, since, until }: RunFilter,
  before: string | undefined,
  limit: number,
): Promise<RunRow[]> {
  return db
    .selectFrom("runs")
    .selectAll()
    .where("project_id", "=", projectId)
    .$if(kind !== "callback", (query) => query.where("kind", "!=", "callback"))
    .$if(cronId !== undefined, (query) => query.where("cron_id", "=", cronId ?? ""))
    .$if(taskId !== undefined, (query) => query.where("task_id", "=", taskId ?? ""))
    .$if(state !== undefined, (query) => query.where("state", "=", state ?? "pending"))
    .$if(kind !== undefined, (query) => query.where("kind", "=", kind ?? "cron"))
    .$if(disposition !== undefined, (query) => query.where("disposition", "=", disposition ?? null))
    .$if(since !== undefined, (query) => query.where("fire_at", ">=", since ?? new Date(0)))
    .$if(until !== undefined, (query) => query.where("fire_at", "<", until ?? new Date(0)))
    .$if(before !== undefined, (query) => query.where("run_id", "<", before ?? ""))
    .orderBy("run_id", "desc")
    .limit(limit)
    .execute();
}

/** The newest run of each of the project's cron jobs or tasks, by the id of its owner; fires that nobody let run do not count. */
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
        and (cause is null or cause = 'expired')
      order by run_id desc limit 1) as newest`.execute(db);
  return new Map(rows.map((run) => [run[owner] ?? "", run]));
}
