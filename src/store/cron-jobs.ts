import { type Insertable, sql, type Updateable } from "kysely";
import type { CronJobRow, CronJobState, Database, Db, RunRow } from "../db/schema.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { parseSchedule, type Schedule } from "../domain/schedule.ts";
import { Refusal } from "../errors.ts";
import { publishRuns } from "./cron-publishing.ts";
import { forgetFires, isWatched, NOT_OVERDUE } from "./cron-watch.ts";
import { endPingTokens } from "./ping-tokens.ts";
import { applyTransition, newestRuns } from "./runs.ts";
import { redirectRuns } from "./runs-parking.ts";

/** Settings of a cron job that nobody described. */
export const CRON_JOB_DEFAULTS = {
  content_type: "application/json",
  retries: 3,
  timeout_seconds: 30,
  overlap_policy: "skip",
  misfire_policy: "once",
  misfire_window_seconds: 3_600,
  retention_days: 30,
  dst_gap: "run_after",
  dst_overlap: "auto",
  spread_seconds: 0,
  jitter_seconds: 0,
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

/** What of a stored cron job its schedule follows from. */
export type StoredSchedule = Pick<
  CronJobRow,
  "cron_id" | "cron_expr" | "timezone" | "dst_gap" | "dst_overlap" | "start_at" | "end_at"
>;

/** The schedule of a stored cron job. */
export function scheduleOf(job: StoredSchedule): Schedule {
  return parseSchedule({
    expression: job.cron_expr,
    timezone: job.timezone,
    seed: job.cron_id,
    rules: { dstGap: job.dst_gap, dstOverlap: job.dst_overlap, startAt: job.start_at, endAt: job.end_at },
  });
}

/** The schedule, or undefined where this program cannot read it any more, of which the scheduler tells. */
export function readableScheduleOf(job: StoredSchedule): Schedule | undefined {
  try {
    return scheduleOf(job);
  } catch (error) {
    if (error instanceof Refusal) return undefined;
    throw error;
  }
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

/**
 * Writes what a caller has changed. A job that is paused or resumed, or is not watched any more, is overdue for nothing that
 * was before.
 */
export async function updateCronJob(trx: Db, job: CronJobRow, changes: CronJobChanges): Promise<CronJobRow> {
  if (typeof changes.url === "string" && changes.url !== job.url) {
    await redirectRuns(trx, job.project_id, { cronId: job.cron_id }, changes.url);
  }
  const changesPause = changes.state !== undefined && (changes.state === "paused") !== (job.state === "paused");
  const { start_grace_seconds = job.start_grace_seconds, finish_grace_seconds = job.finish_grace_seconds } = changes;
  const forgets = isWatched(job) && (changesPause || !isWatched({ start_grace_seconds, finish_grace_seconds }));
  if (forgets) await forgetFires(trx, job);
  const updated = await trx
    .updateTable("cron_jobs")
    .set({ ...changes, ...(forgets && NOT_OVERDUE), updated_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .returningAll()
    .executeTakeFirstOrThrow();
  return job.queue === null && updated.queue !== null ? publishOpenRuns(trx, updated) : updated;
}

/** Has the open runs of a job go to the queue that it now publishes to. Returns the job as it is then. */
async function publishOpenRuns(trx: Db, job: CronJobRow): Promise<CronJobRow> {
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and state in ('pending', 'retrying')
    order by fire_at, run_id for no key update`.execute(trx);
  await publishRuns(trx, job.project_id, [job], rows);
  return selectCronJob(trx, job.project_id, job.cron_id).executeTakeFirstOrThrow();
}

/**
 * Deletes a cron job that the caller has locked. What has not started is canceled, an attempt under way finishes, and
 * the row stays as a tombstone for the history.
 */
export async function deleteCronJob(trx: Db, job: CronJobRow): Promise<void> {
  const deleted: CronJobState = "deleted";
  await trx
    .updateTable("cron_jobs")
    .set({ ...NOT_OVERDUE, state: deleted, next_run_at: null, deleted_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .execute();
  await forgetFires(trx, job);
  await endPingTokens(trx, job);
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

/** Active cron jobs that fire alike. */
export interface CronHerd extends StoredSchedule {
  readonly spread_seconds: number;
  readonly jitter_seconds: number;
  readonly jobs: number;
}

/**
 * The active cron jobs of a project that fire before `until` and are no monitors, those with the same schedule together: at most `limit`
 * schedules, those of most jobs first. Jobs whose fires depend on their id stand alone; of the others `cron_id` is any.
 */
export async function cronHerds(db: Db, projectId: string, until: Date, limit: number): Promise<CronHerd[]> {
  const { rows } = await sql<CronHerd>`
    select min(cron_id::text)::uuid as cron_id, cron_expr, timezone, dst_gap, dst_overlap, start_at, end_at,
      spread_seconds, jitter_seconds, count(*)::int as jobs
    from cron_jobs
    where project_id = ${projectId} and state = 'active' and next_run_at < ${until} and ping_token is null
    group by cron_expr, timezone, dst_gap, dst_overlap, start_at, end_at, spread_seconds, jitter_seconds,
      case when cron_expr ~* 'h' or spread_seconds > 0 or jitter_seconds > 0 then cron_id end
    order by jobs desc, cron_id limit ${limit}`.execute(db);
  return rows;
}

/** The instant now, by the clock that fires are decided by. */
export async function scheduleNow(db: Db): Promise<Date> {
  const { rows } = await sql<{ now: Date }>`select carillon_now() as now`.execute(db);
  return rows[0]?.now ?? new Date(0);
}
