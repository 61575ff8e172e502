import { type RawBuilder, sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { DEFAULT_RETENTION_DAYS, RUN_ERRORS } from "../domain/run.ts";
import { lockWanted, type TaskFilter, walkTasks } from "./task-filter.ts";

/** Tasks that one step looks at. */
const LOOK = 20_000;

/** Which tasks a step is for: up to `limit` that meet the filter and were created before the task `before`, newest first. */
export interface BulkRange {
  readonly projectId: string;
  readonly filter: TaskFilter;
  readonly before: string | undefined;
  readonly limit: number;
}

/** What a step did. */
export interface BulkStep {
  /** How many tasks it found. */
  readonly matched: number;
  /** How many of them it changed. */
  readonly changed: number;
  /** The task that it has come to. Undefined: nothing is left. */
  readonly next: string | undefined;
}

/** Calls tasks off, as cancelTask does each. */
export async function cancelTasks(trx: Db, range: BulkRange): Promise<BulkStep> {
  return step(
    trx,
    range,
    (projectId, taskIds) => sql`
      with called_off as (
        update runs set state = 'canceled', error = ${RUN_ERRORS.taskCanceled}, waiting = false, parked = false,
          finished_at = carillon_now(),
          expires_at = carillon_now() + make_interval(days => ${DEFAULT_RETENTION_DAYS})
        where project_id = ${projectId} and task_id = any(${taskIds}::uuid[]) and state in ('pending', 'retrying'))
      update tasks set state = 'canceled', updated_at = carillon_now()
      where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
        and state in ('scheduled', 'running', 'retrying')
      returning task_id`,
  );
}

/** Where tasks are moved to: an instant for all, or so many seconds from where each is. */
export type Move = { readonly runAt: Date } | { readonly shiftSeconds: number };

/**
 * Moves scheduled tasks, as rescheduleTask does each, but for those that would lie beyond `latest`. What is too late by that is
 * not started any more, and expires with the next look for such tasks.
 */
export async function rescheduleTasks(trx: Db, range: BulkRange, move: Move, latest: Date): Promise<BulkStep> {
  const runAt =
    "runAt" in move
      ? sql<Date>`${move.runAt}::timestamptz`
      : sql<Date>`run_at + make_interval(secs => ${move.shiftSeconds}::float8)`;
  return step(
    trx,
    range,
    (projectId, taskIds) => sql`
      with moved as (
        update tasks set run_at = ${runAt}, updated_at = carillon_now()
        where project_id = ${projectId} and task_id = any(${taskIds}::uuid[]) and state = 'scheduled'
          and ${runAt} <= ${latest}::timestamptz
        returning task_id, run_at, grace_seconds)
      update runs r set fire_at = m.run_at, run_at = m.run_at, parked = false,
        start_by = case when r.trigger <> 'manual' then m.run_at + make_interval(secs => m.grace_seconds::float8 + 1) end
      from moved m
      where r.project_id = ${projectId} and r.task_id = any(${taskIds}::uuid[]) and r.task_id = m.task_id
        and r.state = 'pending'
      returning r.task_id`,
  );
}

/** Has tasks fire now, as runTask does each. */
export async function runTasks(trx: Db, range: BulkRange): Promise<BulkStep> {
  return step(
    trx,
    range,
    (projectId, taskIds) => sql`
      with live as materialized (
        select task_id, run_id, state from runs
        where project_id = ${projectId} and task_id = any(${taskIds}::uuid[]) and state in ('pending', 'running', 'retrying')),
      hurried as (
        update runs r set run_at = carillon_now(), parked = false,
          fire_at = case when r.state = 'pending' then carillon_now() else r.fire_at end,
          start_by = case when r.state = 'pending' then null else r.start_by end,
          trigger = case when r.state = 'pending' then 'manual' else r.trigger end
        from live
        where r.project_id = ${projectId} and r.run_id = any(array(select run_id from live)) and r.run_id = live.run_id
          and live.state <> 'running'
        returning r.task_id, live.state),
      again as (
        insert into runs (project_id, kind, task_id, state, trigger, fire_at, run_at)
        select ${projectId}, 'task', task_id, 'pending', 'manual', carillon_now(), carillon_now()
        from unnest(${taskIds}::uuid[]) as wanted (task_id)
        where task_id not in (select task_id from live)
        returning task_id, null::text as state)
      update tasks t set updated_at = carillon_now(),
        run_at = case when f.state = 'pending' then carillon_now() else t.run_at end,
        debounce_key = case when f.state = 'retrying' then t.debounce_key end,
        state = case when f.state is null then 'scheduled' else t.state end
      from (select * from hurried union all select * from again) f
      where t.project_id = ${projectId} and t.task_id = any(${taskIds}::uuid[]) and t.task_id = f.task_id
      returning t.task_id`,
  );
}

/** Locks the tasks of a step, so that none of them starts or is settled meanwhile, and changes them by one statement. */
async function step(
  trx: Db,
  { projectId, filter, before, limit }: BulkRange,
  change: (projectId: string, taskIds: readonly string[]) => RawBuilder<unknown>,
): Promise<BulkStep> {
  const { taskIds, next } = await walkTasks(trx, projectId, filter, before, { find: limit, look: LOOK });
  const locked = await lockWanted(trx, projectId, filter, taskIds);
  if (locked.length === 0) return { matched: taskIds.length, changed: 0, next };
  const { rows } = await change(projectId, locked).execute(trx);
  return { matched: taskIds.length, changed: rows.length, next };
}
