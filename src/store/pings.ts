import { sql } from "kysely";
import type { CronJobRow, Db, RunPingRow, RunRow } from "../db/schema.ts";
import { isOfNextFire, type Ping } from "../domain/ping.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { nextFireAt } from "../domain/schedule.ts";
import { lockCronJob, readableScheduleOf } from "./cron-jobs.ts";
import { fireLockedJob } from "./cron-jobs-firing.ts";
import { isMonitor } from "./monitors.ts";
import type { PingedMonitor } from "./ping-tokens.ts";
import { applyTransition } from "./runs.ts";

/** For how long a run whose end is not watched may go on, in seconds. */
const LONGEST_RUN_SECONDS = 86_400;
/** Most pings of kind log that a run keeps. */
const MAX_LOGS = 20;

/** What became of a ping. */
export interface TakenPing {
  /** The run that it is of. Undefined when none was recorded. */
  readonly run: RunRow | undefined;
  /** What of it was not recorded, and why. Undefined when all was. */
  readonly note: string | undefined;
}

/**
 * Takes a ping of a monitor in one transaction: records the run that it tells of, or how that ended, with all that follows
 * from its end. Undefined when there is no such monitor any more.
 */
export async function takePing(
  db: Db,
  { projectId, cronId }: PingedMonitor,
  ping: Ping,
): Promise<TakenPing | undefined> {
  return db.transaction().execute(async (trx) => {
    const locked = await lockCronJob(trx, projectId, cronId);
    if (locked === undefined || locked.job.state === "deleted" || !isMonitor(locked.job)) return undefined;
    const job = await fireLockedJob(trx, locked.job, locked.now);
    switch (ping.signal) {
      case "start":
        return takeStart(trx, job, locked.now, ping);
      case "log":
        return takeLog(trx, job, ping);
      default:
        return takeEnd(trx, job, locked.now, ping);
    }
  });
}

async function takeStart(trx: Db, job: CronJobRow, now: Date, ping: Ping): Promise<TakenPing> {
  if (ping.rid !== null) {
    const known = await newestOfRid(trx, job, ping.rid);
    if (known !== undefined) return { run: known, note: "the run with this rid had started already" };
  } else {
    const earlier = await runningRun(trx, job, null);
    if (earlier !== undefined) {
      const transition = { to: "canceled", error: RUN_ERRORS.startedAnew } as const;
      await applyTransition(trx, keyOf(earlier), { states: ["running"] }, transition, job);
    }
  }
  const run = await beginRun(trx, job, await fireOf(trx, job, now), ping.rid);
  await keepPing(trx, run, ping);
  return { run, note: undefined };
}

async function takeEnd(trx: Db, job: CronJobRow, now: Date, ping: Ping): Promise<TakenPing> {
  const outcome = ping.signal === "success" ? "succeeded" : "failed";
  const running = await runningRun(trx, job, ping.rid);
  const fire = running ?? (await fireOf(trx, job, now));
  if (fire === undefined) {
    const before = await lastEndOf(trx, job, ping.rid);
    if (before?.state === outcome) return { run: before, note: "a repeat: this end was told before" };
  }
  const run = running ?? (await beginRun(trx, job, fire, ping.rid));
  await keepPing(trx, run, ping);
  if (ping.exitCode !== null) {
    await sql`
      update runs set exit_code = ${ping.exitCode}
      where project_id = ${run.project_id} and run_id = ${run.run_id}`.execute(trx);
  }
  const transition =
    outcome === "succeeded"
      ? ({ to: "succeeded", responseStatus: null } as const)
      : ({
          to: "failed",
          error: ping.exitCode === null ? RUN_ERRORS.toldFailed : `exit code ${ping.exitCode}`,
        } as const);
  return { run: await applyTransition(trx, keyOf(run), { states: ["running"] }, transition, job), note: undefined };
}

async function takeLog(trx: Db, job: CronJobRow, ping: Ping): Promise<TakenPing> {
  const run = (await runningRun(trx, job, ping.rid)) ?? (await newestRun(trx, job, ping.rid));
  if (run === undefined) return { run: undefined, note: "the log was not kept: there is no run that it could be of" };
  const { rows } = await sql<{ logs: number }>`
    select count(*)::int as logs from run_pings
    where project_id = ${run.project_id} and run_id = ${run.run_id} and kind = 'log'`.execute(trx);
  if ((rows[0]?.logs ?? 0) >= MAX_LOGS) {
    return { run, note: `the log was not kept: a run keeps ${MAX_LOGS}` };
  }
  await keepPing(trx, run, ping);
  return { run, note: undefined };
}

function keyOf(run: RunRow) {
  return { projectId: run.project_id, runId: run.run_id };
}

/** The newest run of the job that has started and not ended, by the pings of that rid, or by pings without one. */
async function runningRun(trx: Db, job: CronJobRow, rid: string | null): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and state = 'running'
      and ping_rid is not distinct from ${rid}
    order by fire_at desc, run_id desc limit 1`.execute(trx);
  return rows[0];
}

async function newestOfRid(trx: Db, job: CronJobRow, rid: string): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    select * from runs where project_id = ${job.project_id} and cron_id = ${job.cron_id} and ping_rid = ${rid}
    order by run_id desc limit 1`.execute(trx);
  return rows[0];
}

/** The newest run, or fire that waits for one: of a rid, or of any. */
async function newestRun(trx: Db, job: CronJobRow, rid: string | null): Promise<RunRow | undefined> {
  if (rid !== null) return newestOfRid(trx, job, rid);
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_until is null
    order by run_id desc limit 1`.execute(trx);
  return rows[0];
}

/** The newest fire of which there is a record, whatever became of it. */
async function newestFire(trx: Db, job: CronJobRow): Promise<RunRow | undefined> {
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and trigger <> 'manual' and fire_until is null
    order by fire_at desc limit 1`.execute(trx);
  return rows[0];
}

/** The run that pings have ended last since the newest fire, of a rid where there is one. */
async function lastEndOf(trx: Db, job: CronJobRow, rid: string | null): Promise<RunRow | undefined> {
  if (rid !== null) return newestOfRid(trx, job, rid);
  const fire = await newestFire(trx, job);
  const { rows } = await sql<RunRow>`
    select * from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and state in ('succeeded', 'failed') and attempt > 0
      and run_id >= ${fire?.run_id ?? "00000000-0000-0000-0000-000000000000"}
    order by finished_at desc, run_id desc limit 1`.execute(trx);
  return rows[0];
}

/**
 * The record of the fire that a new run at `now` is of: the newest, when nobody has told of it; or the one to come, when it is
 * near and nothing before it waits. Undefined when the run is beside the schedule.
 */
async function fireOf(trx: Db, job: CronJobRow, now: Date): Promise<RunRow | undefined> {
  const newest = await newestFire(trx, job);
  const isOpen = newest !== undefined && newest.attempt === 0 && ["pending", "missed"].includes(newest.state);
  if (isOpen && newest.state === "pending") return newest;
  const schedule = readableScheduleOf(job);
  if (job.state === "active" && job.next_run_at !== null && schedule !== undefined) {
    if (isOfNextFire(now, job.next_run_at, nextFireAt(schedule, job.next_run_at))) {
      await fireLockedJob(trx, job, job.next_run_at);
      return newestFire(trx, job);
    }
  }
  return isOpen ? newest : undefined;
}

/** Turns the record of a fire into a run that has started now, or makes one beside the schedule. */
async function beginRun(trx: Db, job: CronJobRow, fire: RunRow | undefined, rid: string | null): Promise<RunRow> {
  const lease = sql`carillon_now() + make_interval(secs => ${job.finish_grace_seconds ?? LONGEST_RUN_SECONDS})`;
  const { rows } =
    fire === undefined
      ? await sql<RunRow>`
          insert into runs (project_id, kind, cron_id, state, trigger, fire_at, run_at, attempt, started_at, lease_token,
            lease_expires_at, ping_rid)
          values (${job.project_id}, 'cron', ${job.cron_id}, 'running', 'manual', carillon_now(), carillon_now(), 1,
            carillon_now(), gen_random_uuid(), ${lease}, ${rid})
          returning *`.execute(trx)
      : await sql<RunRow>`
          update runs set state = 'running', trigger = 'ping', waiting = false, attempt = 1, started_at = carillon_now(),
            lease_token = gen_random_uuid(), lease_expires_at = ${lease}, ping_rid = ${rid}, error = null,
            finished_at = null, expires_at = null
          where project_id = ${fire.project_id} and run_id = ${fire.run_id}
          returning *`.execute(trx);
  if (rows[0] === undefined) throw new Error("the run of a ping was not written");
  return rows[0];
}

async function keepPing(trx: Db, run: RunRow, { signal, exitCode, body }: Ping): Promise<void> {
  await trx
    .insertInto("run_pings")
    .values({ project_id: run.project_id, run_id: run.run_id, kind: signal, exit_code: exitCode, body })
    .execute();
}

/** The pings that told of a run, oldest first. */
export async function listPings(db: Db, projectId: string, runId: string): Promise<RunPingRow[]> {
  return db
    .selectFrom("run_pings")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .orderBy("ping_id")
    .execute();
}
