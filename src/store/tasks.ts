import { type Insertable, sql, type Updateable } from "kysely";
import type { Database, Db, RunRow, RunState, RunTrigger, TaskRow } from "../db/schema.ts";
import { RUN_ERRORS, startBy } from "../domain/run.ts";
import { applyTransition, newestRuns } from "./runs.ts";
import { type TaskFilter, walkTasks } from "./task-filter.ts";

/** Settings of a task that nobody described. */
export const TASK_DEFAULTS = { content_type: "application/json", retries: 3, timeout_seconds: 30 } as const;

/** States of a run that waits for its next attempt. */
const OPEN: readonly RunState[] = ["pending", "retrying"];

/** How far ahead a task may be scheduled, in years. */
const MAX_AHEAD_YEARS = 10;

export type NewTask = Omit<Insertable<Database["tasks"]>, "task_id" | "state" | "created_at" | "updated_at"> & {
  readonly task_id: string;
};

/** A task with its newest run. */
export interface TaskView {
  readonly task: TaskRow;
  readonly lastRun: RunRow | undefined;
}

/** What a change of a task depends on. */
export interface TaskMoment {
  /** The instant that this transaction happens at. */
  readonly now: Date;
  /** The latest one that a task may be scheduled for. */
  readonly latest: Date;
  /** For a new task: what of it is secret is sealed for its id. */
  readonly newId: string;
}

/** The moment of this transaction. */
export async function taskMoment(trx: Db): Promise<TaskMoment> {
  const { rows } = await sql<TaskMoment>`
    select carillon_now() as now, carillon_now() + make_interval(years => ${MAX_AHEAD_YEARS}) as latest,
      carillon_id() as "newId"`.execute(trx);
  if (rows[0] === undefined) throw new Error("a select without a table gave no row");
  return rows[0];
}

/**
 * Records a task with its labels and its run. One that is too late already expires at once. Undefined when another task that
 * waits has its debounce key: nothing is recorded then.
 */
export async function scheduleTask(trx: Db, task: NewTask, now: Date): Promise<TaskView | undefined> {
  const row = await trx
    .insertInto("tasks")
    .values({ ...task, state: "scheduled" })
    .$if(task.debounce_key != null, (query) => query.onConflict((conflict) => conflict.doNothing()))
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) return undefined;
  await insertLabels(trx, row);
  const lastRun = await insertTaskRun(trx, row, "schedule", row.run_at);
  return expireIfLate(trx, { task: row, lastRun }, now);
}

/** Records the labels of a task, beside the task itself. */
export async function insertLabels(trx: Db, { project_id, task_id, labels }: TaskRow): Promise<void> {
  const rows = Object.entries(labels).map(([name, value]) => ({ project_id, task_id, name, value }));
  if (rows.length > 0) await trx.insertInto("task_labels").values(rows).execute();
}

async function insertTaskRun(trx: Db, task: TaskRow, trigger: RunTrigger, fireAt: Date): Promise<RunRow> {
  return trx
    .insertInto("runs")
    .values({
      project_id: task.project_id,
      kind: "task",
      task_id: task.task_id,
      state: "pending",
      trigger,
      fire_at: fireAt,
      run_at: fireAt,
      start_by: trigger === "manual" ? null : startBy(fireAt, task.grace_seconds),
    })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Ends a scheduled task that is later than its grace allows, and returns the task as it is then. */
export async function expireIfLate(trx: Db, view: TaskView, now: Date): Promise<TaskView> {
  const { task, lastRun } = view;
  if (lastRun === undefined || lastRun.start_by === null || lastRun.start_by > now) return view;
  const key = { projectId: task.project_id, runId: lastRun.run_id };
  await applyTransition(trx, key, { states: OPEN }, { to: "expired", error: RUN_ERRORS.expired }, undefined);
  return (await findTask(trx, task.project_id, task.task_id)) ?? view;
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

/** A page of tasks. */
export interface TaskPage {
  readonly tasks: readonly TaskView[];
  /** The task that the next page goes on after. Undefined: this is the last one. */
  readonly next: string | undefined;
}

/** Tasks that one page of a filtered list looks at. */
const LIST_WALK = 5_000;

/**
 * Up to `limit` tasks that meet the filter and were created before the task `before`, newest first. It looks at a bounded
 * number, so a page may hold fewer than asked for and still not be the last.
 */
export async function listTasks(
  db: Db,
  projectId: string,
  filter: TaskFilter,
  before: string | undefined,
  limit: number,
): Promise<TaskPage> {
  const { taskIds, next } = await walkTasks(db, projectId, filter, before, { find: limit, look: LIST_WALK });
  return { tasks: await findTasks(db, projectId, taskIds), next };
}

/** The project's tasks of those ids with their newest runs, newest first. */
async function findTasks(db: Db, projectId: string, taskIds: readonly string[]): Promise<TaskView[]> {
  if (taskIds.length === 0) return [];
  const tasks = await db
    .selectFrom("tasks")
    .selectAll()
    .where("project_id", "=", projectId)
    .where(sql<boolean>`task_id = any(${taskIds}::uuid[])`)
    .orderBy("task_id", "desc")
    .execute();
  const runs = await newestRuns(db, projectId, "task_id", taskIds);
  return tasks.map((task) => ({ task, lastRun: runs.get(task.task_id) }));
}

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

/** Moves a scheduled task that the caller has locked, and its run with it. Returns it as it is then. */
export async function rescheduleTask(trx: Db, { task, lastRun }: TaskView, runAt: Date, now: Date): Promise<TaskView> {
  const moved = await writeTask(trx, task, { run_at: runAt });
  if (lastRun === undefined) throw new Error("a scheduled task has no run");
  const run = await moveRun(trx, lastRun, {
    fire_at: runAt,
    run_at: runAt,
    start_by: lastRun.trigger === "manual" ? null : startBy(runAt, moved.grace_seconds),
  });
  return expireIfLate(trx, { task: moved, lastRun: run }, now);
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
    await writeTask(trx, task, { run_at: now, debounce_key: null });
    return moveRun(trx, lastRun, { fire_at: now, run_at: now, start_by: null, trigger: "manual" });
  }
  await writeTask(trx, task, { state: "scheduled", debounce_key: null });
  return insertTaskRun(trx, task, "manual", now);
}

async function writeTask(
  trx: Db,
  task: TaskRow,
  changes: Pick<Updateable<Database["tasks"]>, "state" | "run_at" | "debounce_key">,
): Promise<TaskRow> {
  return trx
    .updateTable("tasks")
    .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", task.project_id)
    .where("task_id", "=", task.task_id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Moves the open run of a task that the caller has locked. */
export async function moveRun(
  trx: Db,
  run: Pick<RunRow, "project_id" | "run_id">,
  changes: Pick<Updateable<Database["runs"]>, "fire_at" | "run_at" | "start_by" | "trigger" | "endpoint_id">,
): Promise<RunRow> {
  return trx
    .updateTable("runs")
    .set({ ...changes, parked: false })
    .where("project_id", "=", run.project_id)
    .where("run_id", "=", run.run_id)
    .where("state", "in", OPEN)
    .returningAll()
    .executeTakeFirstOrThrow();
}
