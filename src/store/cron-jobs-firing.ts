import { sql } from "kysely";
import type { CronJobRow, Db, RunTrigger } from "../db/schema.ts";
import { type JobPlan, type LiveRuns, type PlannedRun, planJob, SINGLE, unrecordedFires } from "../domain/firing.ts";
import type { OverlapPolicy } from "../domain/overlap.ts";
import { readableScheduleOf, scheduleOf } from "./cron-jobs.ts";
import { publishRuns, takeTurns } from "./cron-publishing.ts";
import { clearTheWay, countLive, insertCronRuns, lockLiveRuns, moveJobs } from "./cron-runs.ts";
import { watchFires } from "./cron-watch.ts";
import { isMonitor } from "./monitors.ts";

/** A cron job whose fire time has come, as it was read without a lock. */
export interface DueCronJob {
  readonly projectId: string;
  readonly cronId: string;
  readonly nextRunAt: Date;
}

/** Up to `limit` cron jobs whose fire time has come, the longest due first. */
export async function dueCronJobs(db: Db, limit: number): Promise<DueCronJob[]> {
  const { rows } = await sql<DueCronJob>`
    select project_id as "projectId", cron_id as "cronId", next_run_at as "nextRunAt" from cron_jobs
    where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit ${limit}`.execute(db);
  return rows;
}

/** Milliseconds until the next cron job fires, 0 when one is due; undefined when none will. */
export async function msUntilNextFire(db: Db): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select extract(epoch from min(next_run_at) - carillon_now())::float8 * 1000 as ms from cron_jobs
    where state = 'active'`.execute(db);
  const ms = rows[0]?.ms ?? undefined;
  return ms === undefined ? undefined : Math.max(0, Math.ceil(ms));
}

type JobToFire = Omit<CronJobRow, "payload" | "headers">;

/** What a scheduler has done for one project. */
export interface Fired {
  /** Cron jobs whose next fire time was moved. */
  readonly jobs: number;
  /** Runs that are to start, those that tell of what has failed among them. */
  readonly runs: number;
  /** The names of the queues that messages were published to. */
  readonly queues: readonly string[];
}

/**
 * Fires the project's due cron jobs in one transaction: records their runs, publishes the messages of those whose target is
 * a queue, and moves next_run_at. A job that another node holds, or whose next_run_at is not what was read, is left alone:
 * that node has fired it. One whose FIFO queue somebody else is publishing to for long stays due, so that the others need
 * not wait for it.
 *
 * @param onUnreadable told of a schedule that this program cannot read any more; its job is completed with a record.
 */
export async function fireCronJobs(
  db: Db,
  projectId: string,
  due: readonly DueCronJob[],
  onUnreadable: (job: DueCronJob, error: unknown) => void,
): Promise<Fired> {
  return db.transaction().execute(async (trx) => {
    const { jobs: locked, now } = await lockDueJobs(trx, projectId, due);
    if (now === undefined) return { jobs: 0, runs: 0, queues: [] };
    const taken = await takeTurns(
      trx,
      projectId,
      locked.flatMap(({ queue }) => queue ?? []),
    );
    const jobs = locked.filter(({ queue }) => queue === null || !taken.has(queue));
    const fired = await fireLocked(trx, projectId, jobs, now, (cronId, error) =>
      onUnreadable({ projectId, cronId, nextRunAt: now }, error),
    );
    return { jobs: jobs.length, ...fired };
  });
}

/** Turns of a job that is brought up to now; each records up to 100 fires. */
const MAX_TURNS = 10;

/**
 * Fires what is due by `now` of a cron job that the caller has locked: one that is about to change, so that it is the job as
 * it was that fires, or a monitor that is pinged. Returns the job as it is then.
 */
export async function fireLockedJob(trx: Db, job: CronJobRow, now: Date): Promise<CronJobRow> {
  let current = job;
  for (let turn = 0; turn < MAX_TURNS; turn++) {
    if (current.state !== "active" || current.next_run_at === null || current.next_run_at > now) break;
    // A schedule that cannot be read any more is recorded as such, and the change may mend it.
    await fireLocked(trx, job.project_id, [current], now, () => {});
    current = await trx
      .selectFrom("cron_jobs")
      .selectAll()
      .where("project_id", "=", job.project_id)
      .where("cron_id", "=", job.cron_id)
      .executeTakeFirstOrThrow();
  }
  return current;
}

/**
 * Sees to it that every fire up to `now` has its row, before a caller changes the job that it has locked: what is due of
 * an active job fires, and the time that a paused or completed one has passed over becomes a row. Returns the job as it is
 * then.
 */
export async function accountFor(trx: Db, stored: CronJobRow, now: Date): Promise<CronJobRow> {
  const job = await fireLockedJob(trx, stored, now);
  const schedule = readableScheduleOf(job);
  if (schedule === undefined || job.state === "deleted") return job;
  const cause = { active: undefined, paused: "paused", completed: "max_runs" } as const;
  const rows = unrecordedFires(schedule, job.accounted_until, now, cause[job.state]);
  await insertCronRuns(
    trx,
    job.project_id,
    rows.map((row) => ({ ...row, job })),
  );
  return trx
    .updateTable("cron_jobs")
    .set({ accounted_until: now })
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Fires jobs whose locks the caller holds. */
async function fireLocked(
  trx: Db,
  projectId: string,
  jobs: readonly JobToFire[],
  now: Date,
  onUnreadable: (cronId: string, error: unknown) => void,
): Promise<Omit<Fired, "jobs">> {
  const overlapping = jobs.filter((job) => overlapPolicyOf(job) !== "allow").map(({ cron_id }) => cron_id);
  const live = await lockLiveRuns(trx, projectId, overlapping);

  const planned = jobs.map((job) => {
    const plan = planOf(job, countLive(live.get(job.cron_id)), now, (error) => onUnreadable(job.cron_id, error));
    return { job, plan };
  });
  const dropped = new Map<string, number>();
  for (const { job, plan } of planned) {
    dropped.set(job.cron_id, await clearTheWay(trx, job, plan, live.get(job.cron_id) ?? []));
  }
  const runs = await insertCronRuns(
    trx,
    projectId,
    planned.flatMap(({ job, plan }) => plan.runs.map((run) => ({ ...(isMonitor(job) ? awaited(run) : run), job }))),
  );
  await watchFires(trx, projectId, jobs, runs);
  const started = runs.filter(({ state }) => state === "pending");
  const { runs: after, queues, failed } = await publishRuns(trx, projectId, jobs, started);
  await moveJobs(
    trx,
    projectId,
    planned.map(({ job, plan }) => ({
      cron_id: job.cron_id,
      next_run_at: plan.next ?? null,
      state: plan.next === undefined ? "completed" : "active",
      accounted_until: plan.accountedUntil,
      started: started.filter((run) => run.cron_id === job.cron_id).length - (dropped.get(job.cron_id) ?? 0),
    })),
  );
  return { runs: after.filter(({ state, waiting }) => state === "pending" && !waiting).length + failed, queues };
}

/** The run of a monitor is not made here: its record waits for a ping. */
function awaited(run: PlannedRun): Omit<PlannedRun, "trigger"> & { readonly trigger: RunTrigger } {
  return run.state === "pending" ? { ...run, trigger: "ping", waiting: true } : run;
}

async function lockDueJobs(
  trx: Db,
  projectId: string,
  due: readonly DueCronJob[],
): Promise<{ readonly jobs: readonly JobToFire[]; readonly now: Date | undefined }> {
  const wanted = JSON.stringify(due.map(({ cronId, nextRunAt }) => ({ cron_id: cronId, next_run_at: nextRunAt })));
  // Once more as an array: it leads to the rows by the primary key, whatever the planner expects of the project's jobs.
  const cronIds = due.map(({ cronId }) => cronId);
  const { rows } = await sql<JobToFire & { now: Date }>`
    select j.cron_id, j.project_id, j.name, j.url, j.queue, j.cron_expr, j.timezone, j.overlap_policy, j.max_runs,
      j.on_failure_webhook, j.retention_days, j.misfire_policy, j.misfire_window_seconds, j.state, j.next_run_at,
      j.run_count, j.dst_gap, j.dst_overlap, j.start_at, j.end_at, j.spread_seconds, j.jitter_seconds,
      j.accounted_until, j.expire_after_seconds, j.pause_after_failures,
      j.start_grace_seconds, j.finish_grace_seconds, j.ping_token, carillon_now() as now
    from jsonb_to_recordset(${wanted}::jsonb) as wanted (cron_id uuid, next_run_at timestamptz)
    join cron_jobs j on j.project_id = ${projectId} and j.cron_id = any(${cronIds}::uuid[])
      and j.cron_id = wanted.cron_id and j.next_run_at = wanted.next_run_at
    where j.state = 'active' order by j.cron_id for no key update of j skip locked`.execute(trx);
  return { jobs: rows, now: rows[0]?.now };
}

/** A publish ends at once, so that it is in nobody's way. */
function overlapPolicyOf({ queue, overlap_policy }: JobToFire): OverlapPolicy {
  return queue === null ? overlap_policy : "allow";
}

function planOf(job: JobToFire, live: LiveRuns, now: Date, onUnreadable: (error: unknown) => void): JobPlan {
  const nextRunAt = job.next_run_at ?? now;
  try {
    return planJob(
      {
        cronId: job.cron_id,
        schedule: scheduleOf(job),
        spreading: { spreadSeconds: job.spread_seconds, jitterSeconds: job.jitter_seconds },
        nextRunAt,
        misfirePolicy: job.misfire_policy,
        misfireWindowSeconds: job.misfire_window_seconds,
        overlapPolicy: overlapPolicyOf(job),
        live,
        runsLeft: job.max_runs === null ? undefined : job.max_runs - job.run_count,
        accountedUntil: job.accounted_until,
      },
      now,
    );
  } catch (error) {
    onUnreadable(error);
    const text = `the schedule cannot be read any more: ${error instanceof Error ? error.message : error}`;
    const missed: PlannedRun = {
      fireAt: nextRunAt,
      effectiveAt: nextRunAt,
      trigger: "schedule",
      state: "missed",
      waiting: false,
      error: text,
      ...SINGLE,
    };
    return {
      runs: [missed],
      giveWay: false,
      cancelPrevious: false,
      dropWaiting: 0,
      next: undefined,
      accountedUntil: now,
    };
  }
}
