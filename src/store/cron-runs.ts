import { sql } from "kysely";
import type { CronJobRow, Db, RunRow, RunState, RunTrigger } from "../db/schema.ts";
import type { JobPlan, LiveRuns, PlannedRun } from "../domain/firing.ts";
import { ON_TIME_MS } from "../domain/misfire.ts";
import { RUN_ERRORS, type RunTransition, retentionSeconds } from "../domain/run.ts";
import { awaitedSeconds } from "./monitors.ts";
import { recordAttempt } from "./run-attempts.ts";
import { applyTransition, type RunOwner } from "./runs.ts";

/** Stops leasing of the live runs of these jobs, whose locks the caller holds, and gives them by job, oldest first. */
export async function lockLiveRuns(
  trx: Db,
  projectId: string,
  cronIds: readonly string[],
): Promise<Map<string, readonly RunRow[]>> {
  if (cronIds.length === 0) return new Map();
  const { rows } = await sql<RunRow>`
    select r.* from unnest(${cronIds}::uuid[]) as job (cron_id)
    -- Job by job: as one condition, a plan from a time when there were few runs reads all that there are now.
    cross join lateral (
      select * from runs
      where project_id = ${projectId} and cron_id = job.cron_id and state in ('pending', 'running', 'retrying')
      for no key update) r
    order by r.fire_at, r.run_id`.execute(trx);
  return Map.groupBy(rows, ({ cron_id }) => cron_id ?? "");
}

/** How the live runs of a job stand. */
export function countLive(runs: readonly RunRow[] = []): LiveRuns {
  const waiting = runs.filter((run) => run.waiting).length;
  const retrying = runs.filter((run) => run.state === "retrying").length;
  return { underWay: runs.length - waiting - retrying, retrying, waiting };
}

/** Ends the live runs that a plan ends. Returns how many of those that it drops had counted against max_runs. */
export async function clearTheWay(
  trx: Db,
  job: RunOwner,
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

async function endRuns(trx: Db, job: RunOwner, runs: readonly RunRow[], transition: RunTransition): Promise<void> {
  for (const run of runs) {
    const key = { projectId: job.project_id, runId: run.run_id };
    await applyTransition(trx, key, { states: ["pending", "running", "retrying"] }, transition, job);
    if (run.lease_token !== null) await recordAttempt(trx, key, run.lease_token, { error: null }, null);
  }
}

interface NewCronRun {
  readonly job: Pick<
    CronJobRow,
    "cron_id" | "url" | "retention_days" | "expire_after_seconds" | "start_grace_seconds" | "finish_grace_seconds"
  >;
  readonly fireAt: Date;
  readonly effectiveAt: Date;
  readonly trigger: RunTrigger;
  readonly state: RunState;
  readonly waiting: boolean;
  readonly error: string | null;
  readonly cause: PlannedRun["cause"];
  readonly fireCount: number;
  readonly fireUntil: Date | null;
}

/** Records runs of cron jobs; those that a scheduler has recorded before are left as they are. */
export async function insertCronRuns(trx: Db, projectId: string, runs: readonly NewCronRun[]): Promise<RunRow[]> {
  if (runs.length === 0) return [];
  const records = runs.map(({ job, fireAt, effectiveAt, fireCount, fireUntil, ...run }) => ({
    ...run,
    cron_id: job.cron_id,
    url: job.url,
    fire_at: fireAt,
    effective_at: effectiveAt > fireAt ? effectiveAt : null,
    fire_count: fireCount,
    fire_until: fireUntil,
    kept_seconds: retentionSeconds(job.retention_days),
    start_within: startWithin(run.trigger, job),
  }));
  // As one parameter, so that the statement's text is the same for any number of runs.
  const { rows } = await sql<RunRow>`
    insert into runs (project_id, kind, cron_id, endpoint_id, state, trigger, fire_at, effective_at, run_at, start_by,
      waiting, error, cause, fire_count, fire_until, finished_at, expires_at)
    select ${projectId}, 'cron', n.cron_id, carillon_endpoint_id(n.url), n.state, n.trigger, n.fire_at, n.effective_at,
      coalesce(n.effective_at, n.fire_at),
      case when n.trigger <> 'ping' or carillon_now() > n.fire_at + make_interval(secs => ${ON_TIME_MS / 1_000})
        then greatest(coalesce(n.effective_at, n.fire_at), carillon_now()) else n.fire_at
      end + make_interval(secs => n.start_within), n.waiting,
      n.error, n.cause, n.fire_count, n.fire_until,
      case when n.state <> 'pending' then carillon_now() end,
      case when n.state <> 'pending' then carillon_now() + make_interval(secs => n.kept_seconds) end
    from jsonb_to_recordset(${JSON.stringify(records)}::jsonb) as n (cron_id uuid, url text, state text, trigger text,
      fire_at timestamptz, effective_at timestamptz, waiting boolean, error text,
      cause text, fire_count int, fire_until timestamptz, kept_seconds float8, start_within float8)
    on conflict do nothing returning *`.execute(trx);
  return rows;
}

/** Within how many seconds a run has to start, or be pinged of, before it is given up; null for no end. */
function startWithin(trigger: RunTrigger, job: NewCronRun["job"]): number | null {
  if (trigger === "ping") return awaitedSeconds(job);
  return trigger === "manual" ? null : job.expire_after_seconds;
}

/** Writes where jobs stand after their fires; `started` runs count against max_runs. The caller holds their locks. */
export async function moveJobs(
  trx: Db,
  projectId: string,
  moves: readonly {
    cron_id: string;
    next_run_at: Date | null;
    state: string;
    accounted_until: Date;
    started: number;
  }[],
): Promise<void> {
  await sql`
    update cron_jobs j set accounted_until = m.accounted_until,
      -- A run that ended in this transaction may have paused the job.
      next_run_at = case when j.state = 'paused' then null else m.next_run_at end,
      state = case when j.state = 'paused' then j.state else m.state end,
      run_count = j.run_count + m.started
    from jsonb_to_recordset(${JSON.stringify(moves)}::jsonb)
      as m (cron_id uuid, next_run_at timestamptz, state text, accounted_until timestamptz, started int)
    -- The array leads to the rows by the primary key, whatever the planner expects of the project's jobs.
    where j.project_id = ${projectId} and j.cron_id = any(${moves.map(({ cron_id }) => cron_id)}::uuid[])
      and j.cron_id = m.cron_id`.execute(trx);
}
