import { sql } from "kysely";
import type { CronJobRow, Db, RunRow, RunState } from "../db/schema.ts";

/**
 * The record of the cron job's fire in [from, to), or else the one of a stretch of fires that reaches over it; undefined
 * when there is neither. Runs by hand are no fires.
 */
export async function findLedgerRecord(db: Db, job: CronJobRow, from: Date, to: Date): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    (select * from runs
     where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_at >= ${from} and fire_at < ${to}
       and trigger <> 'manual' and fire_until is null
     order by fire_at limit 1)
    union all
    (select * from runs
     where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_at < ${to} and fire_until >= ${from}
       and fire_until is not null
     order by fire_at desc limit 1)
    limit 1`.execute(db);
  return rows[0];
}

/** How many fires of the project's cron jobs after `after` and up to `until` were let run at their time. */
export async function countFires(db: Db, projectId: string, after: Date, until: Date): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from runs
    where project_id = ${projectId} and cron_id is not null and trigger = 'schedule' and disposition = 'ran'
      and fire_at > ${after} and fire_at <= ${until}`.execute(db);
  return rows[0]?.count ?? 0;
}

/** The record of the single fire at that fire time; undefined when there is none. */
export async function findSingleRecord(db: Db, job: CronJobRow, fireAt: Date): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_at = ${fireAt}
      and trigger <> 'manual' and fire_until is null`.execute(db);
  return rows[0];
}

/** States of records whose fire may be run after all, when it was not attempted. Failed is then what could not be published. */
const RUNNABLE: readonly RunState[] = ["skipped", "missed", "canceled", "failed"];

/** Whether the fire of a record may be run after all. */
export function isRunnable({ state, attempt, fire_until: until }: RunRow): boolean {
  return RUNNABLE.includes(state) && attempt === 0 && until === null;
}

/** What the run of a fire is told about its end, when it is let run after all. */
const ANEW = sql`state = 'pending', trigger = 'backfill', cause = null, error = null, finished_at = null,
  expires_at = null, start_by = null, run_at = carillon_now()`;

/**
 * Turns the record of a single fire that did not run into a run that is to start. Undefined when it is none: it ran, is to
 * run, was attempted, or is a stretch. The caller holds the job's lock and has asked the overlap policy.
 */
export async function runAfterwards(
  trx: Db,
  job: Pick<CronJobRow, "project_id" | "cron_id" | "url">,
  runId: string,
  waiting: boolean,
): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    update runs set ${ANEW}, waiting = ${waiting}, endpoint_id = carillon_endpoint_id(${job.url}), parked = false
    where project_id = ${job.project_id} and run_id = ${runId} and cron_id = ${job.cron_id}
      and state = any(${RUNNABLE}::text[]) and attempt = 0 and fire_until is null
    returning *`.execute(trx);
  return rows[0];
}
