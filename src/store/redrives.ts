import { sql, type UpdateObject } from "kysely";
import type { Database, Db, QueueRow, RedriveRow, RedriveState } from "../db/schema.ts";
import type { DeadLetterFilter } from "./dead-letter-filter.ts";
import { countDeadLetters, drawCut, findFreeDeadLetters, moveDeadLetters } from "./dead-letter-moves.ts";
import { holdQueue } from "./queues.ts";

/** Not a parameter, so that the indexes of running redrives are found by every plan. */
const RUNNING = sql.lit<RedriveState>("running");

/** What to put back, where to, and how fast. */
export interface NewRedrive {
  readonly queue: QueueRow;
  readonly to: QueueRow;
  readonly filter: DeadLetterFilter;
  /** Null: as fast as it goes. */
  readonly messagesPerSecond: number | null;
  /** Aborted when the count of what it finds has taken too long. Without it the count takes what it takes. */
  readonly within?: AbortSignal | undefined;
}

/**
 * Starts a redrive of the dead letters that there are now, and says whether it could: a queue has one at a time, and the
 * one that runs is returned instead.
 *
 * @throws Refusal DEAD_LETTERS_TOO_MANY when `within` is aborted first
 */
export async function startRedrive(
  trx: Db,
  wanted: NewRedrive,
): Promise<{ readonly redrive: RedriveRow; readonly started: boolean }> {
  const { queue, to, filter, messagesPerSecond, within } = wanted;
  const running = await runningRedrive(trx, queue);
  if (running !== undefined) return { redrive: running, started: false };
  const cut = await drawCut(trx);
  const matched = await countDeadLetters(trx, queue, filter, { cut, within });
  const started = await trx
    .insertInto("redrives")
    .values({
      project_id: queue.project_id,
      queue_id: queue.queue_id,
      queue_name: queue.name,
      to_queue_id: to.queue_id,
      to_queue_name: to.name,
      filter: JSON.stringify(filter),
      messages_per_second: messagesPerSecond,
      cut_seq: cut,
      matched,
    })
    .onConflict((conflict) => conflict.columns(["project_id", "queue_id"]).where("state", "=", RUNNING).doNothing())
    .returningAll()
    .executeTakeFirst();
  if (started !== undefined) return { redrive: started, started: true };
  // The one that came first may end in between; then the next try finds the place free.
  return startRedrive(trx, wanted);
}

async function runningRedrive(db: Db, queue: QueueRow): Promise<RedriveRow | undefined> {
  return db
    .selectFrom("redrives")
    .selectAll()
    .where("project_id", "=", queue.project_id)
    .where("queue_id", "=", queue.queue_id)
    .where("state", "=", RUNNING)
    .executeTakeFirst();
}

/** The filter of a stored redrive. */
export function filterOfRedrive(row: RedriveRow): DeadLetterFilter {
  const stored = row.filter as Omit<DeadLetterFilter, "since" | "until"> & { since?: string; until?: string };
  return {
    ...stored,
    since: stored.since === undefined ? undefined : new Date(stored.since),
    until: stored.until === undefined ? undefined : new Date(stored.until),
  };
}

/** The project's redrive of that id, or undefined. */
export async function findRedrive(db: Db, projectId: string, redriveId: string): Promise<RedriveRow | undefined> {
  return db
    .selectFrom("redrives")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("redrive_id", "=", redriveId)
    .executeTakeFirst();
}

/** Up to `limit` redrives of a queue, newest first, from the one after `after`. */
export async function listRedrives(
  db: Db,
  queue: QueueRow,
  after: string | undefined,
  limit: number,
): Promise<RedriveRow[]> {
  return db
    .selectFrom("redrives")
    .selectAll()
    .where("project_id", "=", queue.project_id)
    .where("queue_id", "=", queue.queue_id)
    .$if(after !== undefined, (query) => query.where("redrive_id", "<", after ?? ""))
    .orderBy("redrive_id", "desc")
    .limit(limit)
    .execute();
}

/**
 * Ends a redrive that runs, after the step that it is at, and returns it as it is then; one that has ended is returned as
 * it is. Undefined when there is none of that id.
 */
export async function cancelRedrive(trx: Db, projectId: string, redriveId: string): Promise<RedriveRow | undefined> {
  await trx
    .updateTable("redrives")
    .set({ state: "canceled", finished_at: sql<Date>`carillon_now()` })
    .where("project_id", "=", projectId)
    .where("redrive_id", "=", redriveId)
    .where("state", "=", RUNNING)
    .execute();
  return findRedrive(trx, projectId, redriveId);
}

/** Names a redrive. */
export type RedriveKey = Pick<RedriveRow, "project_id" | "redrive_id">;

/** Up to `limit` redrives whose next step is due, the longest due first. */
export async function dueRedrives(db: Db, limit: number): Promise<RedriveKey[]> {
  return db
    .selectFrom("redrives")
    .select(["project_id", "redrive_id"])
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .orderBy("next_step_at")
    .limit(limit)
    .execute();
}

/** In how many milliseconds the next step of any redrive is due, or undefined when none runs. */
export async function msUntilNextStep(db: Db): Promise<number | undefined> {
  const { rows } = await sql<{ ms: number | null }>`
    select ceil(extract(epoch from min(next_step_at) - carillon_now()) * 1000)::int as ms
    from redrives where state = 'running'`.execute(db);
  return rows[0]?.ms ?? undefined;
}

/** Most dead letters that one step moves. */
const STEP = 1_000;
/** Steps of a redrive with a speed limit in a second. */
const STEPS_PER_SECOND = 4;
/** Walks through the dead letters, when others were at some of them during the one before. */
const MAX_WALKS = 3;
const NEXT_WALK_SECONDS = 1;

/** What a step did. */
export interface RedriveStep {
  readonly moved: number;
  /** The name of the queue that it moved them to. */
  readonly toQueue: string;
}

/**
 * Makes the next step of a redrive, where it is due: moves some dead letters and records how far it has come. Undefined
 * when it is not due, has ended, or another node makes its step. Whatever becomes of the transaction, what was moved and
 * what was recorded agree.
 */
export async function stepRedrive(trx: Db, key: RedriveKey): Promise<RedriveStep | undefined> {
  const redrive = await trx
    .selectFrom("redrives")
    .selectAll()
    .where("project_id", "=", key.project_id)
    .where("redrive_id", "=", key.redrive_id)
    .where("state", "=", RUNNING)
    .where("next_step_at", "<=", sql<Date>`carillon_now()`)
    .forUpdate()
    .skipLocked()
    .executeTakeFirst();
  if (redrive === undefined) return undefined;
  const queue = await holdQueue(trx, redrive.project_id, redrive.queue_id);
  const to = await holdQueue(trx, redrive.project_id, redrive.to_queue_id);
  if (queue === undefined || to === undefined) {
    const gone = queue === undefined ? redrive.queue_name : redrive.to_queue_name;
    await update(trx, key, { ...ended("failed"), error: `queue ${gone} was deleted` });
    return { moved: 0, toQueue: redrive.to_queue_name };
  }

  const speed = redrive.messages_per_second;
  const found = await findFreeDeadLetters(trx, queue, filterOfRedrive(redrive), {
    after:
      redrive.walked_at === null || redrive.walked_seq === null
        ? undefined
        : { deadLetteredAt: redrive.walked_at, seq: redrive.walked_seq },
    cut: redrive.cut_seq,
    limit: speed === null ? STEP : Math.min(STEP, Math.ceil(speed / STEPS_PER_SECOND)),
  });
  const moved = await moveDeadLetters(trx, queue, to, found);
  const missed = redrive.missed + found.messageIds.length - moved;
  const restSeconds = speed === null ? 0 : moved / speed;
  const counted = { moved: redrive.moved + moved };
  if (found.next !== undefined) {
    await update(trx, key, {
      ...counted,
      missed,
      walked_at: found.next.deadLetteredAt,
      walked_seq: found.next.seq,
      next_step_at: inSeconds(restSeconds),
    });
  } else if (missed > 0 && redrive.walks + 1 < MAX_WALKS) {
    await update(trx, key, {
      ...counted,
      missed: 0,
      walked_at: null,
      walked_seq: null,
      walks: redrive.walks + 1,
      next_step_at: inSeconds(Math.max(restSeconds, NEXT_WALK_SECONDS)),
    });
  } else await update(trx, key, { ...counted, missed, ...ended("succeeded") });
  return { moved, toQueue: to.name };
}

const inSeconds = (seconds: number) => sql<Date>`carillon_now() + make_interval(secs => ${seconds})`;

function ended(state: "succeeded" | "failed") {
  return { state, finished_at: sql<Date>`carillon_now()` };
}

async function update(trx: Db, key: RedriveKey, changes: UpdateObject<Database, "redrives">): Promise<void> {
  await trx
    .updateTable("redrives")
    .set(changes)
    .where("project_id", "=", key.project_id)
    .where("redrive_id", "=", key.redrive_id)
    .execute();
}

/** Days for which a redrive is kept after its end. */
const KEPT_DAYS = 7;

/** Deletes up to `limit` redrives that ended long enough ago and returns how many. */
export async function pruneRedrives(db: Db, limit: number): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from redrives where ctid = any(array(
      select ctid from redrives where finished_at <= carillon_now() - make_interval(days => ${KEPT_DAYS})
      limit ${limit} for update skip locked))`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
