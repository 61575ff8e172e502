import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { retentionSeconds } from "../domain/run.ts";

/**
 * Deletes up to `limit` finished runs whose time is over, with their attempts, their pings and their failure events, and the done
 * tasks whose last run that was. Returns how many runs.
 */
export async function pruneRuns(db: Db, limit: number): Promise<number> {
  return db.transaction().execute(async (trx) => {
    const { rows } = await sql<{ project_id: string; task_id: string | null }>`
      with doomed as (
        delete from runs where ctid = any(array(
          select ctid from runs where expires_at <= carillon_now() order by expires_at limit ${limit}
          for update skip locked))
        returning project_id, run_id, task_id, callback_id),
      attempts as (
        delete from run_attempts a using doomed d where a.project_id = d.project_id and a.run_id = d.run_id),
      pings as (
        delete from run_pings p using doomed d where p.project_id = d.project_id and p.run_id = d.run_id),
      events as (
        delete from callbacks c using doomed d where c.project_id = d.project_id and c.callback_id = d.callback_id
          and not exists (
            select from runs r where r.project_id = c.project_id and r.callback_id = c.callback_id
              and r.run_id not in (select run_id from doomed)))
      select project_id, task_id from doomed`.execute(trx);
    const tasks = rows.filter(({ task_id }) => task_id !== null);
    if (tasks.length > 0) {
      await sql`
        delete from tasks t using jsonb_to_recordset(${JSON.stringify(tasks)}::jsonb) as d (project_id uuid, task_id uuid)
        where t.project_id = d.project_id and t.task_id = d.task_id
          and t.state in ('succeeded', 'failed', 'canceled', 'expired')
          and not exists (select from runs r where r.project_id = t.project_id and r.task_id = t.task_id)`.execute(trx);
    }
    return rows.length;
  });
}

/**
 * Gives up to `limit` finished runs of one cron job the expiry that its changed retention asks for. Returns how many
 * runs were changed, plus one when that was the last batch of a job: 0 means that no job is left.
 */
export async function applyRetention(db: Db, limit: number): Promise<number> {
  return db.transaction().execute(async (trx) => {
    const job = await trx
      .selectFrom("cron_jobs")
      .select(["project_id", "cron_id", "retention_days"])
      // Not a parameter, so that the index of these jobs is found by every plan.
      .where("retention_pending", "=", sql.lit(true))
      .limit(1)
      .forNoKeyUpdate()
      .skipLocked()
      .executeTakeFirst();
    if (job === undefined) return 0;
    const expiry = sql`finished_at + make_interval(secs => ${retentionSeconds(job.retention_days)}::float8)`;
    const { numAffectedRows } = await sql`
      update runs set expires_at = ${expiry}
      where project_id = ${job.project_id} and run_id = any(array(
        select run_id from runs
        where project_id = ${job.project_id} and cron_id = ${job.cron_id} and finished_at is not null
          and expires_at is distinct from ${expiry}
        limit ${limit}))`.execute(trx);
    const changed = Number(numAffectedRows ?? 0n);
    if (changed >= limit) return changed;
    await trx
      .updateTable("cron_jobs")
      .set({ retention_pending: false })
      .where("project_id", "=", job.project_id)
      .where("cron_id", "=", job.cron_id)
      .execute();
    return changed + 1;
  });
}
