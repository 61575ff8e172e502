import { sql, type UpdateObject } from "kysely";
import type { BackfillRow, BackfillState, CronJobRow, Database, Db } from "../db/schema.ts";
import { MAX_QUEUED_RUNS, type OverlapPolicy } from "../domain/overlap.ts";
import { nextFireAt, type Schedule } from "../domain/schedule.ts";
import { lockCronJob, readableScheduleOf } from "./cron-jobs.ts";
import { countWaiting, runFireAfterwards } from "./cron-runs-by-hand.ts";

/** Not a parameter, so that the indexes of running backfills are found by every plan. */
const RUNNING = sql.lit<BackfillState>("running");

/** Most fire times of one backfill. */
export const MAX_BACKFILL = 10_000;

/** The fire times to run afterwards: not before `since`, before `until`, by the schedule as it is. */
export interface BackfillRange {
  readonly since: Date;
  readonly until: Date;
}

/** How many fires of the range did not run; undefined when it has more than 10000 fire times. */
export async function countBackfill(
  db: Db,
  job: CronJobRow,
  schedule: Schedule,
  { since, until }: BackfillRange,
): Promise<number | undefined> {
  const ran = await firesThatRan(db, job, since, until);
  let matched = 0;
  let walked = 0;
  for (const fireAt of firesFrom(schedule, new Date(since.getTime() - 1), until)) {
    if (++walked > MAX_BACKFILL) return undefined;
    if (!ran.has(fireAt.getTime())) matched++;
  }
  return matched;
}

function* firesFrom(schedule: Schedule, after: Date, until: Date): Generator<Date, void> {
  for (let at = nextFireAt(schedule, after); at !== undefined && at < until; at = nextFireAt(schedule, at)) yield at;
}

/** The fire times of the range that ran or are to run, in milliseconds. */
async function firesThatRan(db: Db, job: CronJobRow, since: Date, until: Date): Promise<Set<number>> {
  const { rows } = await sql<{ fire_at: Date }>`
    select fire_at from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and fire_at >= ${since} and fire_at < ${until}
      and trigger <> 'manual' and fire_until is null
      and (disposition in ('ran', 'caught_up') and state <> 'failed' or attempt > 0)`.execute(db);
  return new Set(rows.map(({ fire_at }) => fire_at.getTime()));
}

/** What to run, and how. */
export interface NewBackfill extends BackfillRange {
  readonly overlapPolicy: OverlapPolicy;
  /** Null: as fast as it goes. */
  readonly runsPerSecond: number | null;
  readonly matched: number;
}

/** Starts a backfill of a job that the caller has locked, and says whether it could: a job has one at a time. */
export async function startBackfill(
  trx: Db,
  job: CronJobRow,
  { since, until, overlapPolicy, runsPerSecond, matched }: NewBackfill,
): Promise<{ readonly backfill: BackfillRow; readonly started: boolean }> {
  const running = await trx
    .selectFrom("backfills")
    .selectAll()
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .where("state", "=", RUNNING)
    .executeTakeFirst();
  if (running !== undefined) return { backfill: running, started: false };
  const backfill = await trx
    .insertInto("backfills")
    .values({
      project_id: job.project_id,
      cron_id: job.cron_id,
      since,
      until,
      overlap_policy: overlapPolicy,
      runs_per_second: runsPerSecond,
      matched,
    })
    .returningAll()
    .executeTakeFirstOrThrow();
  return { backfill, started: true };
}

/** The project's backfill of that id, or undefined. */
export async function findBackfill(db: Db, projectId: string, backfillId: string): Promise<BackfillRow | undefined> {
  return db
    .selectFrom("backfills")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("backfill_id", "=", backfillId)
    .executeTakeFirst();
}

/** Up to `limit` backfills of a job, newest first, from the one after `before`. */
export async function listBackfills(
  db: Db,
  job: CronJobRow,
  before: string | undefined,
  limit: number,
): Promise<BackfillRow[]> {
  return db
    .selectFrom("backfills")
    .selectAll()
    .where("project_id", "=", job.project_id)
    .where("cron_id", "=", job.cron_id)
    .$if(before !== undefined, (query) => query.where("backfill_id", "<", before ?? ""))
    .orderBy("backfill_id", "desc")
    .limit(limit)
    .execute();
}

/** Ends a backfill that runs and returns it as it is then; one that has ended is returned as it is. Undefined for none. */
export async function cancelBackfill(trx: Db, projectId: string, backfillId: string): Promise<BackfillRow | undefined> {
  await trx
    .updateTable("backfills")
    .set({ state: "canceled", finished_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", projectId)
    .where("backfill_id", "=", backfillId)
    .where("state", "=", RUNNING)
    .execute();
  return findBackfill(trx, projectId, backfillId);
}

/** Names a backfill. */
export type BackfillKey = Pick<BackfillRow, "project_id" | "backfill_id">;

/** Up to `limit` backfills whose next step is due, the longest due first. */
export async function dueBackfills(db: Db, limit: number): Promise<BackfillKey[]> {
  return db
    .selectFrom("backfills")
    .select(["project_id", "backfill_id"])
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .orderBy("next_step_at")
    .limit(limit)
    .execute();
}

/** In how many milliseconds the next step of any backfill is due, or undefined when none runs. */
export async function msUntilNextBackfillStep(db: Db): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select ceil(extract(epoch from min(next_step_at) - carillon_now()) * 1000)::int as ms
    from backfills where state = 'running'`.execute(db);
  return rows[0]?.ms ?? undefined;
}

/** Most fire times that one step looks at. */
const STEP = 100;
/** Steps of a backfill with a speed limit in a second. */
const STEPS_PER_SECOND = 4;
/** Wait for the runs that wait for their turn to become fewer, in seconds. */
const FULL_SECONDS = 1;

/**
 * Makes the next step of a backfill, where it is due: lets some fires run and records how far it has come. Undefined when it
 * is not due, has ended, or another node makes its step. Returns how many runs it started.
 */
export async function stepBackfill(trx: Db, key: BackfillKey): Promise<number | undefined> {
  const backfill = await trx
    .selectFrom("backfills")
    .selectAll()
    .where("project_id", "=", key.project_id)
    .where("backfill_id", "=", key.backfill_id)
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .forUpdate()
    .skipLocked()
    .executeTakeFirst();
  if (backfill === undefined) return undefined;
  const job = (await lockCronJob(trx, backfill.project_id, backfill.cron_id))?.job;
  const schedule = job === undefined || job.state === "deleted" ? undefined : readableScheduleOf(job);
  if (job === undefined || schedule === undefined) {
    await update(trx, key, { ...ended("failed"), error: "the cron job is deleted, or its schedule cannot be read" });
    return 0;
  }

  const speed = backfill.runs_per_second;
  const most = speed === null ? STEP : Math.min(STEP, Math.ceil(speed / STEPS_PER_SECOND));
  const after = backfill.walked_to ?? new Date(backfill.since.getTime() - 1);
  // So many may be let wait that nothing which waits is dropped for them.
  let room = backfill.overlap_policy === "queue" ? MAX_QUEUED_RUNS - (await countWaiting(trx, job)) : most;
  let [looked, started] = [0, 0];
  let walkedTo: Date | undefined = after;
  for (const fireAt of firesFrom(schedule, after, backfill.until)) {
    if (looked >= most || room <= 0) break;
    looked++;
    room--;
    walkedTo = fireAt;
    if (await runFireAfterwards(trx, job, fireAt, backfill.overlap_policy)) started++;
  }
  const counts = {
    started: backfill.started + started,
    passed_over: backfill.passed_over + looked - started,
    walked_to: walkedTo,
  };
  const isDone = looked < most && room > 0;
  const waitSeconds =
    speed === null ? (room <= 0 && backfill.overlap_policy === "queue" ? FULL_SECONDS : 0) : looked / speed;
  await update(trx, key, {
    ...counts,
    ...(isDone
      ? ended("succeeded")
      : { next_step_at: sql<Date>`carillon_now() + make_interval(secs => ${waitSeconds})` }),
  });
  return started;
}

function ended(state: "succeeded" | "failed") {
  return { state, finished_at: sql<Date>`carillon_now()` };
}

async function update(trx: Db, key: BackfillKey, changes: UpdateObject<Database, "backfills">): Promise<void> {
  await trx
    .updateTable("backfills")
    .set(changes)
    .where("project_id", "=", key.project_id)
    .where("backfill_id", "=", key.backfill_id)
    .execute();
}

/** Days for which a backfill is kept after its end. */
const KEPT_DAYS = 7;

/** Deletes up to `limit` backfills that ended long enough ago and returns how many. */
export async function pruneBackfills(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from backfills where ctid = any(array(
      select ctid from backfills where finished_at <= carillon_now() - make_interval(days => ${KEPT_DAYS})
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
