import { sql } from "kysely";
import type { Db, ReplayRow, ReplayState } from "../db/schema.ts";
import { countReplayable, type DeliveryFilter, findReplayable, newestDelivery } from "./deliveries.ts";
import { replayRun } from "./replayed-runs.ts";

/** Not a parameter, so that the indexes of running replays are found by every plan. */
const RUNNING = sql.lit<ReplayState>("running");

/** The id that every other lies above: the cut of a project without deliveries. */
const NO_DELIVERY = "00000000-0000-0000-0000-000000000000";

/**
 * How many runs a replay would make once more.
 *
 * @throws Refusal DELIVERIES_TOO_MANY when `within` is aborted before they are counted
 */
export async function countReplay(
  db: Db,
  projectId: string,
  filter: DeliveryFilter,
  within?: AbortSignal,
): Promise<number> {
  const cut = await newestDelivery(db, projectId);
  return cut === undefined ? 0 : countReplayable(db, projectId, filter, cut, within);
}

/** A replay to start. */
export interface NewReplay {
  readonly projectId: string;
  readonly filter: DeliveryFilter;
  /** Null: as fast as it goes. */
  readonly runsPerSecond: number | null;
  /** Aborted when the count of what it finds has taken too long. Without it the count takes what it takes. */
  readonly within?: AbortSignal | undefined;
}

/**
 * Starts a replay of what is over now, and says whether it could: a project has one at a time, and the one that runs is
 * returned instead.
 *
 * @throws Refusal DELIVERIES_TOO_MANY when `within` is aborted first
 */
export async function startReplay(
  trx: Db,
  wanted: NewReplay,
): Promise<{ readonly replay: ReplayRow; readonly started: boolean }> {
  const { projectId, filter, runsPerSecond, within } = wanted;
  const running = await runningReplay(trx, projectId);
  if (running !== undefined) return { replay: running, started: false };
  const cut = await newestDelivery(trx, projectId);
  const matched = cut === undefined ? 0 : await countReplayable(trx, projectId, filter, cut, within);
  const started = await trx
    .insertInto("replays")
    .values({
      project_id: projectId,
      filter: JSON.stringify(filter),
      runs_per_second: runsPerSecond,
      cut_id: cut ?? NO_DELIVERY,
      matched,
    })
    .onConflict((conflict) => conflict.column("project_id").where("state", "=", RUNNING).doNothing())
    .returningAll()
    .executeTakeFirst();
  if (started !== undefined) return { replay: started, started: true };
  // The one that came first may end in between; then the next try finds the place free.
  return startReplay(trx, wanted);
}

async function runningReplay(db: Db, projectId: string): Promise<ReplayRow | undefined> {
  return db
    .selectFrom("replays")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("state", "=", RUNNING)
    .executeTakeFirst();
}

/** The filter of a stored replay. */
export function filterOfReplay(row: ReplayRow): DeliveryFilter {
  const { since, until, ...rest } = row.filter as Omit<DeliveryFilter, "since" | "until"> & {
    since?: string;
    until?: string;
  };
  return {
    ...rest,
    ...(since !== undefined && { since: new Date(since) }),
    ...(until !== undefined && { until: new Date(until) }),
  };
}

/** The project's replay of that id, or undefined. */
export async function findReplay(db: Db, projectId: string, replayId: string): Promise<ReplayRow | undefined> {
  return db
    .selectFrom("replays")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("replay_id", "=", replayId)
    .executeTakeFirst();
}

/** Up to `limit` replays of a project, newest first, from the one after `before`. */
export async function listReplays(
  db: Db,
  projectId: string,
  before: string | undefined,
  limit: number,
): Promise<ReplayRow[]> {
  return db
    .selectFrom("replays")
    .selectAll()
    .where("project_id", "=", projectId)
    .$if(before !== undefined, (query) => query.where("replay_id", "<", before ?? ""))
    .orderBy("replay_id", "desc")
    .limit(limit)
    .execute();
}

/** Ends a replay that runs and returns it as it is then; one that has ended is returned as it is. Undefined for none. */
export async function cancelReplay(trx: Db, projectId: string, replayId: string): Promise<ReplayRow | undefined> {
  await trx
    .updateTable("replays")
    .set({ state: "canceled", finished_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", projectId)
    .where("replay_id", "=", replayId)
    .where("state", "=", RUNNING)
    .execute();
  return findReplay(trx, projectId, replayId);
}

/** Names a replay. */
export type ReplayKey = Pick<ReplayRow, "project_id" | "replay_id">;

/** Up to `limit` replays whose next step is due, the longest due first. */
export async function dueReplays(db: Db, limit: number): Promise<ReplayKey[]> {
  return db
    .selectFrom("replays")
    .select(["project_id", "replay_id"])
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .orderBy("next_step_at")
    .limit(limit)
    .execute();
}

/** In how many milliseconds the next step of any replay is due, or undefined when none runs. */
export async function msUntilNextReplayStep(db: Db): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select ceil(extract(epoch from min(next_step_at) - carillon_now()) * 1000)::int as ms
    from replays where state = 'running'`.execute(db);
  return rows[0]?.ms ?? undefined;
}

/** Most runs that one step makes. */
const STEP = 200;
/** Steps of a replay with a speed limit in a second. */
const STEPS_PER_SECOND = 4;

/**
 * Makes the next step of a replay, where it is due: makes some runs once more and records how far it has come. Undefined
 * when it is not due, has ended, or another node makes its step. Returns how many runs it made.
 */
export async function stepReplay(trx: Db, key: ReplayKey): Promise<number | undefined> {
  const replay = await trx
    .selectFrom("replays")
    .selectAll()
    .where("project_id", "=", key.project_id)
    .where("replay_id", "=", key.replay_id)
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .forUpdate()
    .skipLocked()
    .executeTakeFirst();
  if (replay === undefined) return undefined;

  const speed = replay.runs_per_second;
  const { runIds, walkedId } = await findReplayable(
    trx,
    replay.project_id,
    filterOfReplay(replay),
    replay.walked_id === null ? { from: replay.cut_id } : { below: replay.walked_id },
    speed === null ? STEP : Math.min(STEP, Math.ceil(speed / STEPS_PER_SECOND)),
  );
  let replayed = 0;
  for (const runId of runIds) {
    const { run } = await replayRun(trx, replay.project_id, runId);
    if (run !== undefined) replayed++;
  }
  await trx
    .updateTable("replays")
    .set({
      replayed: replay.replayed + replayed,
      refused: replay.refused + runIds.length - replayed,
      ...(walkedId === undefined
        ? { state: "succeeded", finished_at: sql<Date>`carillon_now()` }
        : {
            walked_id: walkedId,
            next_step_at: sql<Date>`carillon_now() + make_interval(secs => ${speed === null ? 0 : replayed / speed})`,
          }),
    })
    .where("project_id", "=", replay.project_id)
    .where("replay_id", "=", replay.replay_id)
    .execute();
  return replayed;
}

/** Days for which a replay is kept after its end. */
const KEPT_DAYS = 7;

/** Deletes up to `limit` replays that ended long enough ago and returns how many. */
export async function pruneReplays(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from replays where ctid = any(array(
      select ctid from replays where finished_at <= carillon_now() - make_interval(days => ${KEPT_DAYS})
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
