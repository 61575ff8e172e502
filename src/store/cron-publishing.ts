import { sql } from "kysely";
import type { Db, RunRow } from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import { RUN_ERRORS, retentionSeconds } from "../domain/run.ts";
import { countOutcome } from "./cron-failures.ts";
import { keepFires } from "./cron-watch.ts";
import { MINUTES_PER_PRIORITY } from "./messages.ts";
import { applyTransition, type RunOwner } from "./runs.ts";

/** What became of runs that were to publish. */
export interface PublishedRuns {
  /** The runs as they are now, in the order in which they were given. */
  readonly runs: readonly RunRow[];
  /** The names of the queues that have messages by them. */
  readonly queues: readonly string[];
  /** How many have failed, of which somebody may have to be told. */
  readonly failed: number;
}

/**
 * Publishes a message for each open run of a cron job whose target is a queue, and ends the runs, in the caller's
 * transaction: a message is there exactly when its run has succeeded. A run whose queue is gone fails. Runs that are over, or
 * of jobs whose target is a URL, are left as they are. The caller holds the locks of the jobs.
 *
 * The messages stand beside the queue's line, so that nobody who publishes to a standard queue waits for the transaction.
 */
export async function publishRuns(
  trx: Db,
  projectId: string,
  jobs: readonly RunOwner[],
  runs: readonly RunRow[],
): Promise<PublishedRuns> {
  const owners = new Map(jobs.filter(({ queue }) => queue !== null).map((job) => [job.cron_id, job]));
  const owned = runs.flatMap((run) => {
    const job = owners.get(run.cron_id ?? "");
    return job !== undefined && (run.state === "pending" || run.state === "retrying") ? [{ run, job }] : [];
  });
  if (owned.length === 0) return { runs, queues: [], failed: 0 };
  const ended = new Map<string, RunRow>();
  for (const some of await portions(trx, projectId, owned.toSorted(byFire))) {
    for (const run of await publishAll(trx, projectId, some)) ended.set(run.run_id, run);
  }
  const queues = new Set<string>();
  let failed = 0;
  for (const { run, job } of owned) {
    const published = ended.get(run.run_id);
    if (published === undefined) {
      failed++;
      ended.set(run.run_id, (await fail(trx, run, job)) ?? run);
      continue;
    }
    queues.add(job.queue ?? "");
    if (run.replay_of !== null) continue;
    await countOutcome(trx, job, "succeeded");
    await keepFires(trx, job, run.fire_at);
  }
  return { runs: runs.map((run) => ended.get(run.run_id) ?? run), queues: [...queues], failed };
}

/** `publishRuns` for one run, which is returned as it is then. */
export async function publishRun(trx: Db, job: RunOwner, run: RunRow): Promise<RunRow> {
  const { runs } = await publishRuns(trx, job.project_id, [job], [run]);
  return runs[0] ?? run;
}

interface OwnedRun {
  readonly run: RunRow;
  readonly job: RunOwner;
}

/** Most payload bytes of one statement; a message that has more is in one of its own. */
const MAX_BYTES = 4 * 1_048_576;

function byFire({ run: a }: OwnedRun, { run: b }: OwnedRun): number {
  return a.fire_at.getTime() - b.fire_at.getTime() || (a.run_id < b.run_id ? -1 : 1);
}

/** The runs in their order, as many together as may be in one statement. */
async function portions(trx: Db, projectId: string, owned: readonly OwnedRun[]): Promise<OwnedRun[][]> {
  if (owned.length === 1) return [[...owned]];
  const cronIds = [...new Set(owned.map(({ job }) => job.cron_id))];
  const { rows } = await sql<{ cron_id: string; bytes: number }>`
    select cron_id, coalesce(octet_length(payload), 0) as bytes from cron_jobs
    where project_id = ${projectId} and cron_id = any(${cronIds}::uuid[])`.execute(trx);
  const bytesOf = new Map(rows.map(({ cron_id, bytes }) => [cron_id, bytes]));
  const portioned: OwnedRun[][] = [[]];
  let room = MAX_BYTES;
  for (const one of owned) {
    const bytes = bytesOf.get(one.job.cron_id) ?? 0;
    if (bytes > room && portioned.at(-1)?.length !== 0) {
      portioned.push([]);
      room = MAX_BYTES;
    }
    portioned.at(-1)?.push(one);
    room -= bytes;
  }
  return portioned;
}

/** Publishes for the runs whose queue is there, and returns them: succeeded, with the ids of their messages. */
async function publishAll(trx: Db, projectId: string, owned: readonly OwnedRun[]): Promise<readonly RunRow[]> {
  const list = <T>(of: (one: OwnedRun) => T): T[] => owned.map(of);
  const runIds = list(({ run }) => run.run_id);
  // Like the ids an array of its own, which leads to the rows by an index, whatever the planner expects.
  const cronIds = [...new Set(list(({ job }) => job.cron_id))];
  const names = [...new Set(list(({ job }) => job.queue))];
  const { rows } = await sql<RunRow>`
    with given as materialized (
      select g.*, r.fire_at, r.cron_id, coalesce(r.effective_at, r.fire_at) as effective_at
      from unnest(${runIds}::uuid[], ${list(({ run }) => deduplicationKey(run))}::text[],
                  ${list(({ run }) => JSON.stringify(headersOf(run)))}::text[],
                  ${list(({ job }) => retentionSeconds(job.retention_days))}::int[])
        as g (run_id, key, headers, kept_seconds)
      join runs r on r.project_id = ${projectId} and r.run_id = any(${runIds}::uuid[]) and r.run_id = g.run_id
    ),
    -- Each queue with its messages, in the order of the fires.
    wanted as materialized (
      select q.queue_id, q.type = 'fifo' as fifo, q.enable_priority, q.message_retention_days, q.content_deduplication,
        q.deduplication_window_seconds, array_agg(m.run_id order by m.ord) as run_ids,
        array_agg(m.group_id order by m.ord) as group_ids, array_agg(m.priority order by m.ord) as priorities,
        array_agg(m.delay order by m.ord) as delays, array_agg(m.ttl_seconds order by m.ord) as ttls,
        array_agg(m.key order by m.ord) as keys, array_agg(m.payload order by m.ord) as payloads,
        array_agg(m.content_type order by m.ord) as content_types, array_agg(m.headers order by m.ord) as headers
      from (
        select given.run_id, given.key, c.queue, coalesce(c.group_id, '') as group_id, coalesce(c.priority, 0) as priority,
          c.ttl_seconds, coalesce(c.payload, '{}') as payload,
          case when c.payload is null then 'application/json' else c.content_type end as content_type,
          (c.headers || given.headers::jsonb || jsonb_build_object('carillon-lateness-ms',
            floor(extract(epoch from greatest(carillon_now() - given.effective_at, interval '0')) * 1000)::bigint::text
          ))::text as headers,
          greatest(ceil(extract(epoch from given.effective_at - carillon_now())), 0)::int as delay,
          row_number() over (order by given.fire_at, given.run_id) as ord
        from given join cron_jobs c on c.project_id = ${projectId} and c.cron_id = any(${cronIds}::uuid[])
          and c.cron_id = given.cron_id
      ) m
      join queues q on q.project_id = ${projectId} and q.name = any(${names}) and q.name = m.queue
      group by q.queue_id, q.type, q.enable_priority, q.message_retention_days, q.content_deduplication,
        q.deduplication_window_seconds
    ),
    published as materialized (
      select w.queue_id, w.run_ids[put.ord] as run_id, put.message_id, put.deduplicated
      from wanted w cross join lateral carillon_put_messages(
        ${projectId}, w.queue_id, w.fifo, case when w.enable_priority then ${MINUTES_PER_PRIORITY}::int else 0 end,
        w.message_retention_days, w.content_deduplication, w.deduplication_window_seconds, w.group_ids, w.priorities,
        w.delays, w.ttls, w.keys, w.payloads, w.content_types, w.headers
      ) with ordinality as put (message_id, deduplicated, ord)
    ),
    counted as (
      insert into queue_history (project_id, queue_id, published)
      select ${projectId}, queue_id, count(*) from published where not deduplicated group by queue_id
    )
    update runs r set state = 'succeeded', message_id = p.message_id, error = null, response_status = null, waiting = false,
      parked = false, started_at = coalesce(r.started_at, carillon_now()), finished_at = carillon_now(),
      expires_at = carillon_now() + make_interval(secs => g.kept_seconds)
    from published p join given g using (run_id)
    where r.project_id = ${projectId} and r.run_id = any(${runIds}::uuid[]) and r.run_id = p.run_id
    returning r.*`.execute(trx);
  return rows;
}

async function fail(trx: Db, run: RunRow, job: RunOwner): Promise<RunRow | undefined> {
  const key = { projectId: run.project_id, runId: run.run_id };
  const failed = { to: "failed", error: `${RUN_ERRORS.noQueue} ${job.queue}` } as const;
  return applyTransition(trx, key, { states: ["pending", "retrying"] }, failed, job);
}

/** One message for each fire, whatever has become of its record meanwhile; runs that are asked for are no fires. */
function deduplicationKey(run: RunRow): string {
  if (run.trigger === "manual") return formatId("run", run.run_id);
  return `${formatId("cron", run.cron_id ?? "")}/${run.fire_at.toISOString()}`;
}

/**
 * What a message says of its fire, beside its lateness. The run has a name of its own, as pushes of the message say
 * `carillon-run-id` of themselves.
 */
function headersOf(run: RunRow): Record<string, string> {
  return {
    "carillon-cron-id": formatId("cron", run.cron_id ?? ""),
    "carillon-cron-run-id": formatId("run", run.run_id),
    "carillon-trigger": run.replay_of === null ? run.trigger : "replay",
    "carillon-scheduled-at": run.fire_at.toISOString(),
    "carillon-effective-at": (run.effective_at ?? run.fire_at).toISOString(),
  };
}

/** Those of the queues, by name, whose publishers have taken turns for longer than the scheduler waits; it has the others' turns. */
export async function takeTurns(trx: Db, projectId: string, queues: readonly string[]): Promise<ReadonlySet<string>> {
  if (queues.length === 0) return new Set();
  const { rows } = await sql<{ name: string }>`
    with fifo as materialized (
      select queue_id, name from queues where project_id = ${projectId} and name = any(${queues}) and type = 'fifo'
    ),
    ours as materialized (
      select taken.queue_id from carillon_take_turns(${projectId}, array(select queue_id from fifo)) as taken (queue_id)
    )
    select name from fifo where queue_id not in (select queue_id from ours)`.execute(trx);
  return new Set(rows.map(({ name }) => name));
}
