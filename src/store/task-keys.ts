import { sql } from "kysely";
import type { Db, TaskRow } from "../db/schema.ts";
import { endpointOf } from "../domain/endpoint.ts";
import { startBy } from "../domain/run.ts";
import { expireIfLate, findTask, insertLabels, moveRun, type NewTask, type TaskView } from "./tasks.ts";

/** The project's task that waits under this debounce key, locked; undefined where there is none. */
export async function lockDebounced(trx: Db, projectId: string, key: string): Promise<TaskRow | undefined> {
  return trx
    .selectFrom("tasks")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("debounce_key", "=", key)
    .where("state", "=", sql.lit("scheduled"))
    .forNoKeyUpdate()
    .executeTakeFirst();
}

/**
 * Has a debounced task, which the caller has locked, be what the newest call says, and moves it to the time that it names, or
 * to the end of the longest wait, which counts from the first call.
 */
export async function replaceDebounced(trx: Db, task: TaskRow, newest: NewTask, now: Date): Promise<TaskView> {
  const key = { project_id: task.project_id, task_id: task.task_id };
  const replaced = await trx
    .updateTable("tasks")
    .set({ ...newest, run_at: putOff(task, newest, now), updated_at: now })
    .where("project_id", "=", key.project_id)
    .where("task_id", "=", key.task_id)
    .returningAll()
    .executeTakeFirstOrThrow();
  await trx
    .deleteFrom("task_labels")
    .where("project_id", "=", key.project_id)
    .where(
      sql<boolean>`(name, value) in (select l.key, l.value from jsonb_each_text(${JSON.stringify(task.labels)}::jsonb) l)`,
    )
    .where("task_id", "=", key.task_id)
    .execute();
  await insertLabels(trx, replaced);
  const { run_at, grace_seconds, url } = replaced;
  const view = await findTask(trx, key.project_id, key.task_id);
  if (view?.lastRun === undefined) throw new Error("a scheduled task has no run");
  const lastRun = await moveRun(trx, view.lastRun, {
    fire_at: run_at,
    run_at,
    start_by: startBy(run_at, grace_seconds),
    endpoint_id: endpointOf(url).endpointId,
  });
  return expireIfLate(trx, { task: replaced, lastRun }, now);
}

function putOff({ created_at }: TaskRow, { run_at, debounce_max_wait_seconds: maxWait }: NewTask, now: Date): Date {
  const wanted = new Date(run_at);
  if (maxWait == null) return wanted;
  const latest = Math.max(created_at.getTime() + maxWait * 1_000, now.getTime());
  return new Date(Math.min(wanted.getTime(), latest));
}

/**
 * The task that stands for a throttle key: the new one, or the one that has taken the key within its window. Callers of one
 * key wait for each other.
 */
export async function takeThrottle(
  trx: Db,
  projectId: string,
  key: string,
  windowSeconds: number,
  newId: string,
): Promise<string> {
  const isOver = sql`task_throttles.ends_at <= carillon_now()`;
  const { rows } = await sql<{ task_id: string }>`
    insert into task_throttles (project_id, throttle_key, task_id, ends_at)
    values (${projectId}, ${key}, ${newId}, carillon_now() + make_interval(secs => ${windowSeconds}))
    on conflict (project_id, throttle_key) do update set
      task_id = case when ${isOver} then excluded.task_id else task_throttles.task_id end,
      ends_at = case when ${isOver} then excluded.ends_at else task_throttles.ends_at end
    returning task_id`.execute(trx);
  if (rows[0] === undefined) throw new Error("an upsert gave no row");
  return rows[0].task_id;
}

/** Forgets up to `limit` throttle keys whose window has passed and returns how many. */
export async function pruneThrottles(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from task_throttles where ctid = any(array(
      select ctid from task_throttles where ends_at <= carillon_now() limit ${limit} for update skip locked))`.execute(
    db,
  );
  return Number(numAffectedRows ?? 0n);
}
