import { sql } from "kysely";
import type { CronJobRow, Db, OverdueReason, RunRow } from "../db/schema.ts";
import { targetData } from "../domain/events.ts";
import { formatId } from "../domain/ids.ts";
import { ON_TIME_MS } from "../domain/misfire.ts";
import { emitEvent } from "./events.ts";
import { isMonitor } from "./monitors.ts";

/** What a job's dead man's switch goes by. */
export type WatchedJob = Pick<
  CronJobRow,
  "project_id" | "cron_id" | "name" | "url" | "queue" | "start_grace_seconds" | "finish_grace_seconds" | "ping_token"
>;

/** What a job that is not overdue says of it. */
export const NOT_OVERDUE = {
  overdue_since: null,
  overdue_fire_at: null,
  overdue_reason: null,
  overdue_fires: 0,
} as const;

/** Fires of one job that are judged by one statement. */
const JUDGED_AT_ONCE = 100;

/** Whether anybody is to be told when the job's fires are not kept. */
export function isWatched(job: Pick<WatchedJob, "start_grace_seconds" | "finish_grace_seconds">): boolean {
  return job.start_grace_seconds !== null || job.finish_grace_seconds !== null;
}

/**
 * Begins to wait for what the records of fires promise, of the jobs that are watched. A missed fire is waited for like any
 * other, for somebody may let it run; of a stretch that was missed the last. Not so of a monitor: nobody could have pinged. The
 * caller holds the jobs' locks.
 */
export async function watchFires(
  trx: Db,
  projectId: string,
  jobs: readonly WatchedJob[],
  records: readonly RunRow[],
): Promise<void> {
  const watched = new Map(jobs.filter(isWatched).map((job) => [job.cron_id, job]));
  const watches = records.flatMap((record) => {
    const job = watched.get(record.cron_id ?? "");
    const isMissed = record.state === "missed" && !isMonitor(job);
    const isExpected = record.cause === null && (record.state === "pending" || isMissed);
    return job !== undefined && isExpected ? [watchOf(job, record)] : [];
  });
  if (watches.length === 0) return;
  await sql`
    insert into cron_watches (project_id, cron_id, fire_at, awaits, due_at, success_due_at)
    select ${projectId}, w.cron_id, w.fire_at, case when w.start_due_at is null then 'success' else 'start' end,
      coalesce(w.start_due_at, w.success_due_at),
      case when w.start_due_at is not null then w.success_due_at end
    from jsonb_to_recordset(${JSON.stringify(watches)}::jsonb)
      as w (cron_id uuid, fire_at timestamptz, start_due_at timestamptz, success_due_at timestamptz)
    on conflict do nothing`.execute(trx);
}

function watchOf(job: WatchedJob, record: RunRow) {
  const fireAt = record.fire_until ?? record.fire_at;
  const effectiveAt = record.fire_until ?? record.effective_at ?? record.fire_at;
  // While no node was there to fire a monitor, none was there to take pings.
  const isLate = isMonitor(job) && record.created_at.getTime() > effectiveAt.getTime() + ON_TIME_MS;
  const from = isLate ? record.created_at : effectiveAt;
  const after = (seconds: number | null) => seconds && new Date(from.getTime() + seconds * 1_000);
  return {
    cron_id: job.cron_id,
    fire_at: fireAt,
    start_due_at: after(job.start_grace_seconds),
    success_due_at: after(job.finish_grace_seconds),
  };
}

interface DueWatch {
  readonly fire_at: Date;
  readonly awaits: "start" | "success";
  readonly due_at: Date;
  readonly success_due_at: Date | null;
  readonly started: boolean;
}

/**
 * Judges the job's fires whose time is up: those that are not kept make the job overdue, which is told of once, and a start
 * in time lets a job recover whose success is not watched. The caller holds the job's lock, so that each fire is judged once.
 */
export async function judgeFires(trx: Db, job: WatchedJob): Promise<void> {
  for (let due = await dueFires(trx, job); due.length > 0; due = await dueFires(trx, job)) {
    for (const { fire_at: fireAt, awaits, due_at: dueAt, success_due_at: successDueAt, started } of due) {
      if (!started) await markOverdue(trx, job, fireAt, dueAt, awaits === "start" ? "not_started" : "not_succeeded");
      else if (successDueAt === null) await recover(trx, job, fireAt);
    }
    await settleJudged(trx, job, due);
  }
}

async function dueFires(trx: Db, job: WatchedJob): Promise<DueWatch[]> {
  const { rows } = await sql<DueWatch>`
    select w.fire_at, w.awaits, w.due_at, w.success_due_at,
      w.awaits = 'start' and exists (
        select from runs r
        where r.project_id = w.project_id and r.cron_id = w.cron_id and r.fire_at >= w.fire_at
          and r.trigger <> 'manual' and r.fire_until is null and r.started_at <= w.due_at) as started
    from cron_watches w
    where w.project_id = ${job.project_id} and w.cron_id = ${job.cron_id} and w.due_at <= carillon_now()
    order by w.fire_at limit ${JUDGED_AT_ONCE}`.execute(trx);
  return rows;
}

/** What has started in time goes on to wait for its success, where that is watched; of the others the wait is over. */
async function settleJudged(trx: Db, job: WatchedJob, judged: readonly DueWatch[]): Promise<void> {
  const goesOn = ({ started, success_due_at }: DueWatch) => started && success_due_at !== null;
  const [on, over] = [judged.filter(goesOn), judged.filter((watch) => !goesOn(watch))];
  const fires = (watches: readonly DueWatch[]) => watches.map(({ fire_at }) => fire_at);
  await sql`
    with over as (
      delete from cron_watches where project_id = ${job.project_id} and cron_id = ${job.cron_id}
        and fire_at = any(${fires(over)}::timestamptz[]))
    update cron_watches set awaits = 'success', due_at = success_due_at, success_due_at = null
    where project_id = ${job.project_id} and cron_id = ${job.cron_id}
      and fire_at = any(${fires(on)}::timestamptz[])`.execute(trx);
}

async function markOverdue(trx: Db, job: WatchedJob, fireAt: Date, dueAt: Date, reason: OverdueReason): Promise<void> {
  const { rows } = await sql<{ overdue_fires: number }>`
    update cron_jobs set overdue_since = coalesce(overdue_since, ${dueAt}), overdue_reason = ${reason},
      overdue_fire_at = greatest(overdue_fire_at, ${fireAt}), overdue_fires = overdue_fires + 1
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} returning overdue_fires`.execute(trx);
  if (rows[0]?.overdue_fires !== 1) return;
  const fire = { scheduled_at: fireAt.toISOString(), due_at: dueAt.toISOString() };
  await emitEvent(trx, job.project_id, {
    type: "cron.overdue",
    data: { cron_id: formatId("cron", job.cron_id), name: job.name, ...targetData(job), reason, ...fire },
    aboutUrl: job.url ?? undefined,
  });
}

/**
 * Takes note that a run for the fire `fireAt` has succeeded: that fire and all before it are kept, and the job recovers when
 * it is overdue for none after it. What was due before is judged first, so that a success that is late counts as late
 * whenever a worker looks. The caller holds the job's lock.
 */
export async function keepFires(trx: Db, job: WatchedJob, fireAt: Date): Promise<void> {
  if (!isWatched(job)) return;
  await judgeFires(trx, job);
  await sql`
    delete from cron_watches
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_at <= ${fireAt}`.execute(trx);
  await recover(trx, job, fireAt);
}

async function recover(trx: Db, job: WatchedJob, fireAt: Date): Promise<void> {
  const { rows } = await sql<{ overdue_since: Date; overdue_fires: number }>`
    with was as (
      select overdue_since, overdue_fires from cron_jobs
      where project_id = ${job.project_id} and cron_id = ${job.cron_id})
    update cron_jobs j set overdue_since = null, overdue_fire_at = null, overdue_reason = null, overdue_fires = 0
    from was
    where j.project_id = ${job.project_id} and j.cron_id = ${job.cron_id} and j.overdue_fire_at <= ${fireAt}
    returning was.overdue_since, was.overdue_fires`.execute(trx);
  const [was] = rows;
  if (was === undefined) return;
  await emitEvent(trx, job.project_id, {
    type: "cron.recovered",
    data: {
      cron_id: formatId("cron", job.cron_id),
      name: job.name,
      ...targetData(job),
      scheduled_at: fireAt.toISOString(),
      overdue_since: was.overdue_since.toISOString(),
      overdue_fires: was.overdue_fires,
    },
    aboutUrl: job.url ?? undefined,
  });
}

/** Waits for nothing of the job any more. What the job says of being overdue is the caller's to clear. */
export async function forgetFires(trx: Db, job: Pick<WatchedJob, "project_id" | "cron_id">): Promise<void> {
  await trx
    .deleteFrom("cron_watches")
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .execute();
}
