import { type Insertable, sql, type Updateable } from "kysely";
import type { CronJobRow, CronJobState, Database, Db, RunRow } from "../db/schema.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { applyTransition, newestRuns } from "./runs.ts";

/** Settings of a cron job that nobody described. */
export const CRON_JOB_DEFAULTS = {
  content_type: "application/json",
  retries: 3,
  timeout_seconds: 30,
  overlap_policy: "skip",
  misfire_policy: "once",
  misfire_window_seconds: 3_600,
  retention_days: 30,
} as const;

/** How long a deleted cron job is known as deleted, in days; longer while it still has runs. */
const TOMBSTONE_DAYS = 30;

export type NewCronJob = Omit<
  Insertable<Database["cron_jobs"]>,
  "state" | "run_count" | "retention_pending" | "deleted_at" | "created_at" | "updated_at"
>;
export type CronJobChanges = Omit<Updateable<Database["cron_jobs"]>, "project_id" | "cron_id">;

/** A cron job with its newest run. */
export interface CronJobView {
  readonly job: CronJobRow;
  readonly lastRun: RunRow | undefined;
}

/** An id for a new cron job, and the instant it is created at: its schedule depends on both. */
export async function newCronId(trx: Db): Promise<{ readonly cronId: string; readonly now: Date }> {
  const { rows } = await sql<{ cronId: string; now: Date }>`
    select carillon_id() as "cronId", carillon_now() as now`.execute(trx);
  if (rows[0] === undefined) throw new Error("a select without a table gave no row");
  return rows[0];
}

/** Creates a cron job that fires by its schedule. */
export async function insertCronJob(trx: Db, job: NewCronJob): Promise<CronJobRow> {
  return trx
    .insertInto("cron_jobs")
    .values({ ...job, state: "active" })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** The project's cron job, deleted or not, or undefined. */
export async function findCronJob(db: Db, projectId: string, cronId: string): Promise<CronJobRow | undefined> {
  return selectCronJob(db, projectId, cronId).executeTakeFirst();
}

/** The cron job that is read like findCronJob and locked against firing and other changes, with the instant now. */
export async function lockCronJob(
  trx: Db,
  projectId: string,
  cronId: string,
): Promise<{ readonly job: CronJobRow; readonly now: Date } | undefined> {
  const row = await selectCronJob(trx, projectId, cronId)
    .select(sql<Date>`carillon_now()`.as("now"))
    .forNoKeyUpdate()
    .executeTakeFirst();
  if (row === undefined) return undefined;
  const { now, ...job } = row;
  return { job, now };
}

function selectCronJob(db: Db, projectId: string, cronId: string) {
  return db.selectFrom("cron_jobs").selectAll().where("project_id", "=", projectId).where("cron_id", "=", cronId);
}

/** The cron job with its newest run. */
export async function viewCronJob(db: Db, job: CronJobRow): Promise<CronJobView> {
  const runs = await newestRuns(db, job.project_id, "cron_id", [job.cron_id]);
  return { job, lastRun: runs.get(job.cron_id) };
}

/** Up to `limit` cron jobs that were created before the job `before`, newest first. Deleted ones are left out. */
export async function listCronJobs(
  db: Db,
  projectId: string,
  before: string | undefined,
  limit: number,
): Promise<CronJobView[]> {
  const jobs = await db
    .selectFrom("cron_jobs")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("state", "!=", "deleted")
    .$if(before !== undefined, (query) => query.where("cron_id", "<", before ?? ""))
    .orderBy("cron_id", "desc")
    .limit(limit)
    .execute();
  const ids = jobs.map(({ cron_id }) => cron_id);
  const runs = await newestRuns(db, projectId, "cron_id", ids);
  return jobs.map((job) => ({ job, lastRun: runs.get(job.cron_id) }));
}

/** Writes what a caller has changed. */
export async function updateCronJob(trx: Db, job: CronJobRow, changes: CronJobChanges): Promise<CronJobRow> {
  return trx
    .updateTable("cron_jobs")
    .set({ ...changes, updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/**
 * Deletes a cron job that the caller has locked. What has not started is canceled, an attempt under way finishes, and
 * the row stays as a tombstone for the history.
 */
export async function deleteCronJob(trx: Db, job: CronJobRow): Promise<void> {
  const deleted: CronJobState = "deleted";
  await trx
    .updateTable("cron_jobs")
    .set({ state: deleted, next_run_at: null, deleted_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .execute();
  const open = await trx
    .selectFrom("runs")
    .select("run_id")
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .where("state", "in", ["pending", "retrying"])
    .execute();
  for (const { run_id } of open) {
    await applyTransition(
      trx,
      { projectId: job.project_id, runId: run_id },
      { states: ["pending", "retrying"] },
      { to: "canceled", error: RUN_ERRORS.jobDeleted },
      { ...job, state: deleted },
    );
  }
}

/** Sets the retention. Runs that have finished before are given their new expiry by the pruner, batch by batch. */
export async function setRetention(trx: Db, job: CronJobRow, retentionDays: number): Promise<void> {
  await updateCronJob(trx, job, { retention_days: retentionDays, retention_pending: true });
}

/** Removes up to `limit` deleted cron jobs that have no runs any more, and returns how many. */
export async function pruneCronTombstones(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from cron_jobs where ctid = any(array(
      select j.ctid from cron_jobs j
      where j.state = 'deleted' and j.deleted_at < carillon_now() - make_interval(days => ${TOMBSTONE_DAYS})
        and not exists (select from runs r where r.project_id = j.project_id and r.cron_id = j.cron_id)
      limit ${limit}))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
