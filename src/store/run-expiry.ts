import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { isMonitor } from "./monitors.ts";
import { lockOwner, lockTasks, releaseWaiting } from "./run-owners.ts";
import { applyTransition, type RunKey } from "./runs.ts";

/** A run of a cron job or a task that has not started and must not any more. */
export interface ExpiredRun extends RunKey {
  readonly cronId: string | null;
  readonly taskId: string | null;
}

/** Up to `limit` runs that nobody has started, or pinged of, in time. */
export async function expiredRuns(db: Db, limit: number): Promise<ExpiredRun[]> {
  const { rows } = await sql<ExpiredRun>`
    select project_id as "projectId", run_id as "runId", cron_id as "cronId", task_id as "taskId" from runs
    where start_by <= carillon_now() and start_by is not null and state = 'pending' and attempt = 0
    order by start_by limit ${limit}`.execute(db);
  return rows;
}

/** Ends such a run, unless it was started or moved meanwhile, and lets the next one that waits start. Says whether it did. */
export async function expireRun(db: Db, run: ExpiredRun): Promise<boolean> {
  const { projectId, runId, cronId, taskId } = run;
  return db.transaction().execute(async (trx) => {
    const job = cronId === null ? undefined : await lockOwner(trx, projectId, cronId);
    if (taskId !== null) await lockTasks(trx, projectId, [taskId]);
    const { rows } = await sql`
      select from runs where project_id = ${projectId} and run_id = ${runId}
        and start_by <= carillon_now() and state = 'pending' and attempt = 0`.execute(trx);
    if (rows.length === 0) return false;
    const expired = isMonitor(job)
      ? ({ to: "missed", error: RUN_ERRORS.noPing } as const)
      : ({ to: "expired", error: RUN_ERRORS.expired } as const);
    const ended = await applyTransition(trx, run, { states: ["pending"] }, expired, job);
    if (ended === undefined) return false;
    if (cronId === null) return true;
    if (ended.trigger !== "manual") {
      await sql`
        update cron_jobs set run_count = run_count - 1
        where project_id = ${projectId} and cron_id = ${cronId} and state = 'active' and run_count > 0`.execute(trx);
    }
    await releaseWaiting(trx, projectId, [cronId]);
    return true;
  });
}
