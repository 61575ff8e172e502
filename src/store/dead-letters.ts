import { type SqlBool, sql } from "kysely";
import type { Db, DeathRecord, QueueRow } from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import { type DeadLetterFilter, fromDied, fromKept, isSelective, isWanted, walkByIndex } from "./dead-letter-filter.ts";
import { emitEvents } from "./events.ts";
import { headStart, lockLane, type MessageRow, TURN_SEQ } from "./messages.ts";
import { recordWithTransaction } from "./queue-history.ts";
import { holdQueue } from "./queues.ts";

/** What a message dies of. */
export interface Death {
  readonly messageId: string;
  readonly reason: "max_retries" | "rejected";
  /** Null: the error that it has already. */
  readonly error: string | null;
}

/** Deaths of one message that are remembered: the first, and the latest of the others. */
const MAX_DEATHS = 50;

/**
 * Makes messages dead letters: they move to the queue's dead letter queue, or to its graveyard when it has none or that
 * one is deleted, and remember where they died and why, and every death before. Their retention starts anew, so that a
 * late death does not shorten it. The time of death is kept to the millisecond, which is all that the API shows, so that
 * `since` and `until` can name it exactly. `chosenQueueId` is where they go instead of the queue's own choice.
 */
export async function buryMessages(
  trx: Db,
  queue: QueueRow,
  deaths: readonly Death[],
  chosenQueueId?: string,
): Promise<void> {
  const messageIds = deaths.map(({ messageId }) => messageId);
  await recordWithTransaction(trx, queue, "dead", messageIds.length);
  const deadLetterQueue = await holdDeadLetterQueue(trx, queue, chosenQueueId);
  const grave = deadLetterQueue?.queue_id ?? queue.graveyard_id;
  if (deadLetterQueue !== undefined) await lockLane(trx, queue.project_id, grave);
  // One that dies by a nack is still leased, and that failure is not counted yet.
  const failures = sql`died.failure_count + (died.lease_expires_at is not null)::int`;
  await sql`
    with turn as (select ${TURN_SEQ} as seq),
    gone as (
      delete from messages
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${messageIds}::uuid[])
      returning *
    ),
    died as (
      select gone.*, death.reason, coalesce(death.error, gone.error) as last_error,
             date_trunc('milliseconds', carillon_now()) as died_at
      from gone join unnest(
        ${messageIds}::uuid[], ${deaths.map(({ reason }) => reason)}::text[], ${deaths.map(({ error }) => error)}::text[]
      ) as death (message_id, reason, error) using (message_id)
    ),
    bodies as (
      delete from message_bodies
      where project_id = ${queue.project_id} and queue_id = ${queue.queue_id} and message_id = any(${messageIds}::uuid[])
      returning *
    ),
    buried as (
      insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                            error, published_at, expires_at, source_queue_id, dead_reason, dead_lettered_at)
      select project_id, ${grave}::uuid, message_id, turn.seq + row_number() over (order by died.seq), group_id,
             carillon_now() - ${headStart(deadLetterQueue ?? queue)}, priority, carillon_now(), receive_count, last_error, published_at,
             carillon_now() + make_interval(days => ${queue.message_retention_days}), queue_id, died.reason, died_at
      from died, turn
    )
    insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
    select bodies.project_id, ${grave}::uuid, bodies.message_id, payload, content_type, headers,
      case when jsonb_array_length(deaths) >= ${MAX_DEATHS}::int then deaths - 1 else coalesce(deaths, '[]') end
      || jsonb_build_object('queue', ${queue.name}::text, 'reason', died.reason, 'error', died.last_error,
           'died_at', died.died_at, 'attempts', died.receive_count, 'failures', ${failures},
           'returns', died.return_count, 'expiries', died.expiry_count)
    from bodies join died using (message_id)`.execute(trx);
  await tellOfDeaths(trx, queue, grave, messageIds, deadLetterQueue?.name);
}

/** Puts an event for each of the dead on its way. Nothing is read or written while nobody subscribes. */
async function tellOfDeaths(
  trx: Db,
  queue: QueueRow,
  grave: string,
  messageIds: readonly string[],
  deadLetterQueue: string | undefined,
): Promise<void> {
  await emitEvents(trx, queue.project_id, "message.dead_lettered", async () => {
    const dead = await trx
      .selectFrom("messages")
      .select(["message_id", "group_id", "receive_count", "dead_reason", "error", "published_at", "dead_lettered_at"])
      .where("project_id", "=", queue.project_id)
      .where("queue_id", "=", grave)
      .where(sql<SqlBool>`message_id = any(${messageIds}::uuid[])`)
      .execute();
    return dead.map((message) => ({
      message_id: formatId("msg", message.message_id),
      queue: queue.name,
      dead_letter_queue: deadLetterQueue,
      group_id: message.group_id === "" ? undefined : message.group_id,
      reason: message.dead_reason ?? "",
      error: message.error ?? undefined,
      attempts: message.receive_count,
      enqueued_at: message.published_at.toISOString(),
      dead_lettered_at: message.dead_lettered_at?.toISOString(),
    }));
  });
}

/**
 * The queue that is to take the dead letters, held against deletion until the transaction ends; undefined for the
 * graveyard. The row of the dying messages' queue may have been read long ago, before the other was deleted, and what is
 * put into a deleted queue is deleted with it.
 */
async function holdDeadLetterQueue(
  trx: Db,
  queue: QueueRow,
  chosenQueueId: string | undefined,
): Promise<QueueRow | undefined> {
  const chosen = chosenQueueId ?? queue.dead_letter_queue_id;
  return chosen === null ? undefined : holdQueue(trx, queue.project_id, chosen);
}

/**
 * A dead letter's place in the order of death. Of those that died in one millisecond, seq says which came first: it is
 * drawn anew at each death, from one sequence for all queues.
 */
export interface DeathPosition {
  readonly deadLetteredAt: Date;
  readonly seq: string;
}

export interface DeadLetterPage {
  readonly rows: readonly MessageRow[];
  /** Where the next page goes on. Undefined: this is the last one. */
  readonly next: DeathPosition | undefined;
}

/** How many dead letters one page of a filtered list looks at. */
const LIST_STEP = 5_000;

/**
 * Up to `limit` dead letters, newest first, from the one after `after`. Scope `source`: those that died in this queue,
 * wherever they are kept; `self`: those that this queue keeps for others. With a filter it looks at a bounded number, so
 * a page may hold fewer than asked for and still not be the last.
 */
export async function listDeadLetters(
  db: Db,
  queue: QueueRow,
  scope: "source" | "self",
  filter: DeadLetterFilter,
  after: DeathPosition | undefined,
  limit: number,
): Promise<DeadLetterPage> {
  const step = isSelective(filter) ? LIST_STEP : limit + 1;
  const page =
    after === undefined
      ? sql``
      : sql`and (m.dead_lettered_at, m.seq) < (${after.deadLetteredAt}::timestamptz, ${after.seq}::bigint)`;
  const { rows } = await inTransaction(db, async (trx) => {
    await walkByIndex(trx);
    return sql<MessageRow & { seq: string; walked: number; walked_at: Date; walked_seq: string }>`
    with walk as materialized (
      select m.* ${scope === "source" ? fromDied(queue, filter) : fromKept(queue, filter)} ${page}
      order by m.dead_lettered_at desc, m.seq desc limit ${step}
    ),
    wanted as materialized (
      select m.* from walk m where ${isWanted(filter)} order by m.dead_lettered_at desc, m.seq desc limit ${limit + 1}
    )
    select m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
           m.return_count, m.expiry_count, m.published_at, m.visible_at, null as lease_token, null as lease_expires_at, m.error, m.dead_reason,
           m.dead_lettered_at, source.name as source_queue, m.seq,
           edge.walked, edge.dead_lettered_at as walked_at, edge.seq as walked_seq
    from (
      select dead_lettered_at, seq, (count(*) over ())::int as walked from walk order by dead_lettered_at, seq limit 1
    ) edge
    left join wanted m on true
    left join message_bodies b
      on b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id
    left join queues source on source.project_id = m.project_id and source.queue_id = m.source_queue_id
    order by m.dead_lettered_at desc, m.seq desc`.execute(trx);
  });
  const found = rows.filter((row) => row.message_id !== null);
  const [edge] = rows;
  const last = found.length > limit ? found[limit - 1] : undefined;
  const walkedOn = edge !== undefined && isSelective(filter) && edge.walked === step;
  return {
    rows: found.slice(0, limit),
    next:
      last !== undefined
        ? { deadLetteredAt: last.dead_lettered_at ?? new Date(0), seq: last.seq }
        : walkedOn
          ? { deadLetteredAt: edge.walked_at, seq: edge.walked_seq }
          : undefined,
  };
}

/** Runs `work` in the transaction that `db` is, or in one of its own. */
function inTransaction<T>(db: Db, work: (trx: Db) => Promise<T>): Promise<T> {
  return db.isTransaction ? work(db) : db.transaction().execute(work);
}

/** A dead letter with its past. */
export interface DeadLetterRow extends MessageRow {
  readonly project_id: string;
  /** The lane that keeps it. */
  readonly queue_id: string;
  readonly deaths: readonly DeathRecord[];
  /** A consumer of the queue that keeps it holds it. */
  readonly leased: boolean;
}

/** The dead letter of that id that died in this queue, or that this queue keeps for another. */
export async function findDeadLetter(db: Db, queue: QueueRow, messageId: string): Promise<DeadLetterRow | undefined> {
  return deadLetter(db, queue, messageId, false);
}

/** As findDeadLetter, and locks it until the transaction ends. */
export async function lockDeadLetter(trx: Db, queue: QueueRow, messageId: string): Promise<DeadLetterRow | undefined> {
  return deadLetter(trx, queue, messageId, true);
}

async function deadLetter(
  db: Db,
  queue: QueueRow,
  messageId: string,
  lock: boolean,
): Promise<DeadLetterRow | undefined> {
  const { rows } = await sql<DeadLetterRow>`
    select m.project_id, m.queue_id, m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority,
           m.receive_count, m.failure_count, m.expiry_count, m.return_count, m.published_at, m.visible_at,
           null as lease_token, null as lease_expires_at, m.error, m.dead_reason, m.dead_lettered_at,
           source.name as source_queue, coalesce(b.deaths, '[]') as deaths,
           coalesce(m.lease_expires_at > carillon_now(), false) as leased
    from messages m
    join message_bodies b using (project_id, queue_id, message_id)
    left join queues source on source.project_id = m.project_id and source.queue_id = m.source_queue_id
    where m.project_id = ${queue.project_id} and m.message_id = ${messageId} and m.source_queue_id is not null
      and not m.acked and m.queue_id = coalesce((
        select d.queue_id from messages d
        where d.project_id = ${queue.project_id} and d.source_queue_id = ${queue.queue_id} and d.message_id = ${messageId}
      ), ${queue.queue_id})
    ${lock ? sql`for update of m` : sql``}`.execute(db);
  return rows[0];
}

/** What an edit of a dead letter writes. */
export interface DeadLetterChanges {
  readonly payload?: Uint8Array;
  readonly contentType?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly priority?: number;
  readonly groupId?: string;
}

/** Writes the changes. The dead letter is to be locked. */
export async function updateDeadLetter(trx: Db, row: DeadLetterRow, changes: DeadLetterChanges): Promise<void> {
  const { payload, contentType, headers, priority, groupId } = changes;
  const key = sql`project_id = ${row.project_id} and queue_id = ${row.queue_id} and message_id = ${row.message_id}`;
  if (priority !== undefined || groupId !== undefined) {
    await replaceDeadLetter(trx, row, priority ?? row.priority, groupId ?? row.group_id);
  }
  if (payload === undefined && contentType === undefined && headers === undefined) return;
  await sql`
    update message_bodies
    set payload = coalesce(${payload === undefined ? null : Buffer.from(payload)}::bytea, payload),
        content_type = coalesce(${contentType ?? null}::text, content_type),
        headers = coalesce(${headers === undefined ? null : JSON.stringify(headers)}::jsonb, headers)
    where ${key}`.execute(trx);
}

/**
 * Writes a dead letter's priority and group by taking it out and putting it in again, as the rows of groups follow
 * messages that come and go. In another group of a queue it stands last: the group may have one in flight already.
 */
async function replaceDeadLetter(trx: Db, row: DeadLetterRow, priority: number, groupId: string): Promise<void> {
  const keeper = await holdQueue(trx, row.project_id, row.queue_id);
  const start = headStart(keeper ?? { enable_priority: false });
  const movesLast = keeper !== undefined && groupId !== row.group_id;
  if (movesLast) await lockLane(trx, row.project_id, row.queue_id);
  await sql`
    with gone as (
      delete from messages
      where project_id = ${row.project_id} and queue_id = ${row.queue_id} and message_id = ${row.message_id}
      returning *
    )
    insert into messages
    select changed.* from gone cross join lateral jsonb_populate_record(null::messages, to_jsonb(gone) || jsonb_build_object(
      'group_id', ${groupId}::text, 'priority', ${priority}::int, 'seq', ${movesLast ? TURN_SEQ : sql`gone.seq`},
      'rank', gone.rank + ${start} - (select ${start} from (select ${priority}::int as priority) new_priority)
    )) changed`.execute(trx);
}

/** Whether any message died in this queue and is still kept, wherever that is. */
export async function hasDeadLetters(db: Db, queue: QueueRow): Promise<boolean> {
  const { rows } = await sql<{ found: boolean }>`
    select exists (select from messages
                   where project_id = ${queue.project_id} and source_queue_id = ${queue.queue_id} and not acked) as found`.execute(
    db,
  );
  return rows[0]?.found ?? false;
}
