import { sql } from "kysely";
import type { CronJobRow, Db, RunRow, RunState, RunTrigger } from "../db/schema.ts";
import { admit, type JobPlan, type LiveRuns, type PlannedRun, planJob } from "../domain/firing.ts";
import type { OverlapPolicy } from "../domain/overlap.ts";
import { RUN_ERRORS, type RunTransition, retentionSeconds } from "../domain/run.ts";
import { parseSchedule } from "../domain/schedule.ts";
import { applyTransition } from "./runs.ts";
import { releaseWaiting } from "./runs-leasing.ts";

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
  /** Runs that are to start. */
  readonly runs: number;
}

/**
 * Fires the project's due cron jobs in one transaction: records their runs and moves next_run_at. A job that another
 * node holds, or whose next_run_at is not what was read, is left alone: that node has fired it.
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
    const { jobs, now } = await lockDueJobs(trx, projectId, due);
    if (now === undefined) return { jobs: 0, runs: 0 };
    const overlapping = jobs.filter((job) => job.overlap_policy !== "allow").map(({ cron_id }) => cron_id);
    const live = await lockLiveRuns(trx, projectId, overlapping);

    const planned = jobs.map((job) => {
      const plan = planOf(job, countLive(live.get(job.cron_id)), now, (error) =>
        onUnreadable({ projectId, cronId: job.cron_id, nextRunAt: now }, error),
      );
      return { job, plan };
    });
    const dropped = new Map<string, number>();
    for (const { job, plan } of planned) {
      dropped.set(job.cron_id, await clearTheWay(trx, job, plan, live.get(job.cron_id) ?? []));
    }
    const runs = await insertCronRuns(
      trx,
      projectId,
      planned.flatMap(({ job, plan }) => plan.runs.map((run) => ({ ...run, job }))),
    );
    const started = runs.filter(({ state }) => state === "pending");
    await moveJobs(
      trx,
      projectId,
      planned.map(({ job, plan }) => ({
        cron_id: job.cron_id,
        next_run_at: plan.next ?? null,
        state: plan.next === undefined ? "completed" : "active",
        started: started.filter((run) => run.cron_id === job.cron_id).length - (dropped.get(job.cron_id) ?? 0),
      })),
    );
    return { jobs: jobs.length, runs: started.filter(({ waiting }) => !waiting).length };
  });
}

async function lockDueJobs(
  trx: Db,
  projectId: string,
  due: readonly DueCronJob[],
): Promise<{ readonly jobs: readonly JobToFire[]; readonly now: Date | undefined }> {
  const wanted = JSON.stringify(due.map(({ cronId, nextRunAt }) => ({ cron_id: cronId, next_run_at: nextRunAt })));
  const { rows } = await sql<JobToFire & { now: Date }>`
    select j.cron_id, j.project_id, j.name, j.cron_expr, j.timezone, j.secret, j.overlap_policy, j.max_runs,
      j.on_failure_webhook, j.retention_days, j.misfire_policy, j.misfire_window_seconds, j.state, j.next_run_at,
      j.run_count, carillon_now() as now
    from jsonb_to_recordset(${wanted}::jsonb) as wanted (cron_id uuid, next_run_at timestamptz)
    join cron_jobs j on j.project_id = ${projectId} and j.cron_id = wanted.cron_id
      and j.next_run_at = wanted.next_run_at
    where j.state = 'active' order by j.cron_id for no key update of j skip locked`.execute(trx);
  return { jobs: rows, now: rows[0]?.now };
}

/** Stops leasing of the live runs of these jobs, whose locks the caller holds, and gives them by job, oldest first. */
async function lockLiveRuns(
  trx: Db,
  projectId: string,
  cronIds: readonly string[],
): Promise<Map<string, readonly RunRow[]>> {
  if (cronIds.length === 0) return new Map();
  const { rows } = await sql<RunRow>`
    select * from runs where project_id = ${projectId} and cron_id = any(${cronIds}::uuid[])
      and state in ('pending', 'running', 'retrying')
    order by fire_at, run_id for no key update`.execute(trx);
  return Map.groupBy(rows, ({ cron_id }) => cron_id ?? "");
}

function countLive(runs: readonly RunRow[] = []): LiveRuns {
  const waiting = runs.filter((run) => run.waiting).length;
  const retrying = runs.filter((run) => run.state === "retrying").length;
  return { underWay: runs.length - waiting - retrying, retrying, waiting };
}

function planOf(job: JobToFire, live: LiveRuns, now: Date, onUnreadable: (error: unknown) => void): JobPlan {
  const nextRunAt = job.next_run_at ?? now;
  try {
    const schedule = parseSchedule({ expression: job.cron_expr, timezone: job.timezone, seed: job.cron_id });
    return planJob(
      {
        schedule,
        nextRunAt,
        misfirePolicy: job.misfire_policy,
        misfireWindowSeconds: job.misfire_window_seconds,
        overlapPolicy: job.overlap_policy,
        live,
        runsLeft: job.max_runs === null ? undefined : job.max_runs - job.run_count,
      },
      now,
    );
  } catch (error) {
    onUnreadable(error);
    const text = `the schedule cannot be read any more: ${error instanceof Error ? error.message : error}`;
    const missed: PlannedRun = {
      fireAt: nextRunAt,
      trigger: "schedule",
      state: "missed",
      waiting: false,
      error: text,
      fireCount: 1,
    };
    return { runs: [missed], giveWay: false, cancelPrevious: false, dropWaiting: 0, next: undefined };
  }
}

/** Ends the live runs that a plan ends. Returns how many of those that it drops had counted against max_runs. */
async function clearTheWay(
  trx: Db,
  job: JobToFire,
  plan: Pick<JobPlan, "giveWay" | "cancelPrevious" | "dropWaiting">,
  live: readonly RunRow[],
): Promise<number> {
  const end = (runs: readonly RunRow[], transition: RunTransition) => endRuns(trx, job, runs, transition);
  if (plan.giveWay) {
    const between = live.filter(({ state }) => state === "retrying");
    await end(between, { to: "failed", error: RUN_ERRORS.gaveWay });
  }
  if (plan.cancelPrevious) {
    const previous = live.filter(({ waiting }) => !waiting);
    await end(previous, { to: "canceled", error: RUN_ERRORS.replaced });
  }
  const dropped = live.filter(({ waiting }) => waiting).slice(0, plan.dropWaiting);
  await end(dropped, { to: "skipped", error: RUN_ERRORS.queueFull });
  return dropped.filter(({ trigger }) => trigger !== "manual").length;
}

async function endRuns(trx: Db, job: JobToFire, runs: readonly RunRow[], transition: RunTransition): Promise<void> {
  for (const run of runs) {
    const key = { projectId: job.project_id, runId: run.run_id };
    await applyTransition(trx, key, { states: ["pending", "running", "retrying"] }, transition, job);
  }
}

interface NewCronRun {
  readonly job: Pick<CronJobRow, "cron_id" | "retention_days">;
  readonly fireAt: Date;
  readonly trigger: RunTrigger;
  readonly state: RunState;
  readonly waiting: boolean;
  readonly error: string | null;
  readonly fireCount: number;
}

/** Records runs of cron jobs; those that a scheduler has recorded before are left as they are. */
async function insertCronRuns(trx: Db, projectId: string, runs: readonly NewCronRun[]): Promise<RunRow[]> {
  if (runs.length === 0) return [];
  const records = runs.map(({ job, fireAt, fireCount, ...run }) => ({
    ...run,
    cron_id: job.cron_id,
    fire_at: fireAt,
    fire_count: fireCount,
    kept_seconds: retentionSeconds(job.retention_days),
  }));
  // As one parameter, so that the statement's text is the same for any number of runs.
  const { rows } = await sql<RunRow>`
    insert into runs (project_id, kind, cron_id, state, trigger, fire_at, run_at, waiting, error, fire_count,
      finished_at, expires_at)
    select ${projectId}, 'cron', n.cron_id, n.state, n.trigger, n.fire_at, n.fire_at, n.waiting, n.error, n.fire_count,
      case when n.state <> 'pending' then carillon_now() end,
      case when n.state <> 'pending' then carillon_now() + make_interval(secs => n.kept_seconds) end
    from jsonb_to_recordset(${JSON.stringify(records)}::jsonb) as n (cron_id uuid, state text, trigger text,
      fire_at timestamptz, waiting boolean, error text, fire_count int, kept_seconds float8)
    on conflict do nothing returning *`.execute(trx);
  return rows;
}

async function moveJobs(
  trx: Db,
  projectId: string,
  moves: readonly { cron_id: string; next_run_at: Date | null; state: string; started: number }[],
): Promise<void> {
  await sql`
    update cron_jobs j set next_run_at = m.next_run_at, state = m.state, run_count = j.run_count + m.started
    from jsonb_to_recordset(${JSON.stringify(moves)}::jsonb)
      as m (cron_id uuid, next_run_at timestamptz, state text, started int)
    where j.project_id = ${projectId} and j.cron_id = m.cron_id`.execute(trx);
}

/**
 * Records a run of a cron job that was asked for, under the overlap policy. The caller holds the job's lock.
 * The run is pending, or skipped.
 */
export async function triggerCronJob(trx: Db, job: CronJobRow, policy: OverlapPolicy, now: Date): Promise<RunRow> {
  const live = (await lockLiveRuns(trx, job.project_id, [job.cron_id])).get(job.cron_id) ?? [];
  const admission = admit(policy, countLive(live));
  const dropped = await clearTheWay(
    trx,
    job,
    {
      giveWay: admission.kind === "start" && admission.giveWay,
      cancelPrevious: admission.kind === "cancel_previous",
      dropWaiting: admission.kind === "wait" && admission.dropOldest ? 1 : 0,
    },
    live,
  );
  if (dropped > 0) {
    await moveJobs(trx, job.project_id, [
      { cron_id: job.cron_id, next_run_at: job.next_run_at, state: job.state, started: -dropped },
    ]);
  }
  const skipped = admission.kind === "skip";
  const [run] = await insertCronRuns(trx, job.project_id, [
    {
      job,
      fireAt: now,
      trigger: "manual",
      state: skipped ? "skipped" : "pending",
      waiting: admission.kind === "wait",
      error: skipped ? RUN_ERRORS.skipped : null,
      fireCount: 1,
    },
  ]);
  if (run === undefined) throw new Error("a run by hand met another one");
  // Runs that wait although none is live are nobody's turn; it does not happen, and it would be for ever.
  if (run.waiting) await releaseWaiting(trx, job.project_id, job.cron_id);
  return run;
}
