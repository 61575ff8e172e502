import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import type { RunOwner } from "./runs.ts";

/** The cron job of a run, locked. */
export async function lockOwner(trx: Db, projectId: string, cronId: string): Promise<RunOwner | undefined> {
  return (await lockOwners(trx, projectId, [cronId])).get(cronId);
}

/** The cron jobs of runs by their ids, locked in the order of the ids. */
export async function lockOwners(
  trx: Db,
  projectId: string,
  cronIds: readonly string[],
): Promise<Map<string, RunOwner>> {
  if (cronIds.length === 0) return new Map();
  const jobs = await trx
    .selectFrom("cron_jobs")
    .select([
      "project_id",
      "cron_id",
      "name",
      "url",
      "queue",
      "retention_days",
      "on_failure_webhook",
      "pause_after_failures",
      "start_grace_seconds",
      "finish_grace_seconds",
      "state",
      "ping_token",
    ])
    .where("project_id", "=", projectId)
    .where(sql<boolean>`cron_id = any(${cronIds}::uuid[])`)
    .orderBy("cron_id")
    .forNoKeyUpdate()
    .execute();
  return new Map(jobs.map((job) => [job.cron_id, job]));
}

/** Locks tasks in the order of their ids. */
export async function lockTasks(trx: Db, projectId: string, taskIds: readonly string[]): Promise<void> {
  await sql`
    select from tasks where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
    order by task_id for no key update`.execute(trx);
}

/**
 * Of each of the cron jobs lets the run that has waited longest start when no other is live. Returns the jobs that had one.
 * What waits of a monitor waits for a ping.
 * Needs the jobs' locks.
 */
export async function releaseWaiting(trx: Db, projectId: string, cronIds: readonly string[]): Promise<Set<string>> {
  if (cronIds.length === 0) return new Set();
  const { rows } = await sql<{ cron_id: string }>`
    update runs set waiting = false, run_at = carillon_now()
    -- The array is made first and job by job: as joins, all of the project's runs are read for each job where the planner
    -- knows of few.
    where project_id = ${projectId} and run_id = any(array(
        select w.run_id from unnest(${cronIds}::uuid[]) as job (cron_id)
        cross join lateral (
          select run_id from runs r
          where r.project_id = ${projectId} and r.cron_id = job.cron_id and r.state = 'pending' and r.waiting
            and r.trigger <> 'ping'
          order by r.fire_at, r.run_id limit 1) w
        where (
          select true from runs l where l.project_id = ${projectId} and l.cron_id = job.cron_id
            and l.state in ('pending', 'running', 'retrying') and not l.waiting limit 1) is null))
    returning cron_id`.execute(trx);
  return new Set(rows.map(({ cron_id: cronId }) => cronId));
}
