import { type Insertable, sql } from "kysely";
import type { Database, Db, RunRow, RunState, RunTrigger, TaskRow, TaskState } from "../db/schema.ts";
import { DEFAULT_RETENTION_DAYS, isTooLate, RUN_ERRORS } from "../domain/run.ts";
import { applyTransition, newestRuns } from "./runs.ts";

/** Settings of a task that nobody described. */
export const TASK_DEFAULTS = { content_type: "application/json", retries: 3, timeout_seconds: 30 } as const;

/** How far ahead a task may be scheduled, in years. */
const MAX_AHEAD_YEARS = 10;

export type NewTask = Omit<Insertable<Database["tasks"]>, "task_id" | "state" | "created_at" | "updated_at">;

/** A task with its newest run. */
export interface TaskView {
  readonly task: TaskRow;
  readonly lastRun: RunRow | undefined;
}

/** The instant that this transaction happens at, and the latest one that a task may be scheduled for. */
export async function taskTimes(trx: Db): Promise<{ readonly now: Date; readonly latest: Date }> {
  const { rows } = await sql<{ now: Date; latest: Date }>`
    select carillon_now() as now, carillon_now() + make_interval(years => ${MAX_AHEAD_YEARS}) as latest`.execute(trx);
  if (rows[0] === undefined) throw new Error("a select without a table gave no row");
  return rows[0];
}

/** Records a task and its run. One that is too late already is recorded as expired. */
export async function scheduleTask(trx: Db, task: NewTask, now: Date): Promise<TaskView> {
  const tooLate = isTooLate(new Date(task.run_at), now, task.grace_seconds ?? null);
  const row = await trx
    .insertInto("tasks")
    .values({ ...task, state: tooLate ? "expired" : "scheduled" })
    .returningAll()
    .executeTakeFirstOrThrow();
  const lastRun = await insertTaskRun(trx, row, {
    state: tooLate ? "canceled" : "pending",
    trigger: "schedule",
    fireAt: row.run_at,
  });
  return { task: row, lastRun };
}

async function insertTaskRun(
  trx: Db,
  task: TaskRow,
  run: { readonly state: "pending" | "canceled"; readonly trigger: RunTrigger; readonly fireAt: Date },
): Promise<RunRow> {
  return trx
    .insertInto("runs")
    .values({
      project_id: task.project_id,
      kind: "task",
      task_id: task.task_id,
      state: run.state,
      trigger: run.trigger,
      fire_at: run.fireAt,
      run_at: run.fireAt,
      ...(run.state === "canceled" && {
        error: RUN_ERRORS.expired,
        finished_at: sql<Date>`carillon_now()`,
        expires_at: sql<Date>`carillon_now() + make_interval(days => ${DEFAULT_RETENTION_DAYS})`,
      }),
    })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** The project's task with its newest run, or undefined. */
export async function findTask(db: Db, projectId: string, taskId: string): Promise<TaskView | undefined> {
  const task = await selectTask(db, projectId, taskId).executeTakeFirst();
  if (task === undefined) return undefined;
  const runs = await newestRuns(db, projectId, "task_id", [taskId]);
  return { task, lastRun: runs.get(taskId) };
}

/** The task that is read like findTask and locked against starting and other changes. */
export async function lockTask(trx: Db, projectId: string, taskId: string): Promise<TaskView | undefined> {
  const locked = await selectTask(trx, projectId, taskId).forNoKeyUpdate().executeTakeFirst();
  return locked === undefined ? undefined : findTask(trx, projectId, taskId);
}

function selectTask(db: Db, projectId: string, taskId: string) {
  return db.selectFrom("tasks").selectAll().where("project_id", "=", projectId).where("task_id", "=", taskId);
}

/** Up to `limit` tasks that were created before the task `before`, newest first, in one state or in any. */
export async function listTasks(
  db: Db,
  projectId: string,
  state: TaskState | undefined,
  before: string | undefined,
  limit: number,
): Promise<TaskView[]> {
  const tasks = await db
    .selectFrom("tasks")
    .selectAll()
    .where("project_id", "=", projectId)
    .$if(state !== undefined, (query) => query.where("state", "=", state ?? "scheduled"))
    .$if(before !== undefined, (query) => query.where("task_id", "<", before ?? ""))
    .orderBy("task_id", "desc")
    .limit(limit)
    .execute();
  const ids = tasks.map(({ task_id }) => task_id);
  const runs = await newestRuns(db, projectId, "task_id", ids);
  return tasks.map((task) => ({ task, lastRun: runs.get(task.task_id) }));
}

const OPEN: readonly RunState[] = ["pending", "retrying"];

/**
 * Calls off a task that the caller has locked. An attempt under way is left to finish, and is not retried. Says whether
 * there was anything to call off.
 */
export async function cancelTask(trx: Db, { task, lastRun }: TaskView): Promise<boolean> {
  if (!["scheduled", "running", "retrying"].includes(task.state)) return false;
  if (lastRun !== undefined) {
    const key = { projectId: task.project_id, runId: lastRun.run_id };
    await applyTransition(trx, key, { states: OPEN }, { to: "canceled", error: RUN_ERRORS.taskCanceled }, undefined);
  }
  await writeTask(trx, task, { state: "canceled" });
  return true;
}

/** Moves a scheduled task that the caller has locked, and its run with it. */
export async function rescheduleTask(trx: Db, { task, lastRun }: TaskView, runAt: Date, now: Date): Promise<void> {
  const moved = await writeTask(trx, task, { run_at: runAt });
  if (lastRun === undefined) throw new Error("a scheduled task has no run");
  await moveRun(trx, lastRun, { fire_at: runAt, run_at: runAt });
  if (!isTooLate(runAt, now, moved.grace_seconds)) return;
  const key = { projectId: task.project_id, runId: lastRun.run_id };
  await applyTransition(trx, key, { states: OPEN }, { to: "expired", error: RUN_ERRORS.expired }, undefined);
}

/**
 * Has a task that the caller has locked fire now: its open run if it has one, else a new one. Undefined while an attempt
 * is under way.
 */
export async function runTask(trx: Db, { task, lastRun }: TaskView, now: Date): Promise<RunRow | undefined> {
  if (lastRun?.state === "running") return undefined;
  if (lastRun?.state === "retrying") {
    await writeTask(trx, task, {});
    return moveRun(trx, lastRun, { run_at: now });
  }
  if (lastRun?.state === "pending") {
    await writeTask(trx, task, { run_at: now });
    return moveRun(trx, lastRun, { fire_at: now, run_at: now, trigger: "manual" });
  }
  await writeTask(trx, task, { state: "scheduled" });
  return insertTaskRun(trx, task, { state: "pending", trigger: "manual", fireAt: now });
}

async function writeTask(trx: Db, task: TaskRow, changes: { state?: TaskState; run_at?: Date }): Promise<TaskRow> {
  return trx
    .updateTable("tasks")
    .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", task.project_id)
    .where("task_id", "=", task.task_id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

async function moveRun(
  trx: Db,
  run: RunRow,
  changes: { fire_at?: Date; run_at: Date; trigger?: RunTrigger },
): Promise<RunRow> {
  return trx
    .updateTable("runs")
    .set(changes)
    .where("project_id", "=", run.project_id)
    .where("run_id", "=", run.run_id)
    .where("state", "in", OPEN)
    .returningAll()
    .executeTakeFirstOrThrow();
}
