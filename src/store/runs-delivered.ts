import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { DEFAULT_RETENTION_DAYS, retentionSeconds } from "../domain/run.ts";
import { countOutcome } from "./cron-failures.ts";
import { keepFires } from "./cron-watch.ts";
import type { AttemptRecord } from "./run-attempts.ts";
import { lockOwners, releaseWaiting } from "./run-owners.ts";
import type { RunOwner } from "./runs.ts";
import type { AttemptKey } from "./runs-leasing.ts";
import type { SettleOutcome } from "./runs-settling.ts";

/** An attempt that the receiver took. */
export interface DeliveredAttempt {
  readonly run: AttemptKey;
  readonly responseStatus: number;
  readonly record: AttemptRecord;
}

/**
 * Settles attempts of one project that the receivers took, as settleRun does each: in one transaction, and in a number of
 * statements that does not grow with theirs. What became of each comes in their order.
 */
export async function settleDelivered(
  db: Db,
  projectId: string,
  attempts: readonly DeliveredAttempt[],
): Promise<SettleOutcome[]> {
  const cronIds = ownersOf(attempts, "cronId");
  const outcomes = (settled: ReadonlyMap<string, unknown>, released: ReadonlySet<string>): SettleOutcome[] =>
    attempts.map(({ run }) => {
      if (!settled.has(run.runId)) return "stale";
      return run.cronId !== null && released.has(run.cronId) ? "due" : "settled";
    });
  // One statement is a transaction by itself.
  if (cronIds.length === 0) return outcomes(await recordAll(db, projectId, attempts, new Map()), new Set());
  return db.transaction().execute(async (trx) => {
    const jobs = await lockOwners(trx, projectId, cronIds);
    const settled = await recordAll(trx, projectId, attempts, jobs);
    const ended = [...settled.values()];
    for (const { cron_id: cronId, replay_of: replayOf, fire_at: fireAt } of ended) {
      const job = cronId === null || replayOf !== null ? undefined : jobs.get(cronId);
      if (job === undefined) continue;
      await countOutcome(trx, job, "succeeded");
      await keepFires(trx, job, fireAt);
    }
    const endedIds = new Set(ended.flatMap(({ cron_id: cronId }) => cronId ?? []));
    return outcomes(settled, await releaseWaiting(trx, projectId, [...endedIds]));
  });
}

/** In one order everywhere, so that those who lock several do not wait for each other. */
function ownersOf(attempts: readonly DeliveredAttempt[], owner: "cronId" | "taskId"): string[] {
  return [...new Set(attempts.flatMap(({ run }) => run[owner] ?? []))].sort();
}

interface SettledRun {
  readonly run_id: string;
  readonly cron_id: string | null;
  readonly replay_of: string | null;
  readonly fire_at: Date;
}

/** The runs whose lease still held, by their ids; with the ends of their tasks and the records of their attempts. */
async function recordAll(
  db: Db,
  projectId: string,
  attempts: readonly DeliveredAttempt[],
  jobs: ReadonlyMap<string, RunOwner>,
): Promise<Map<string, SettledRun>> {
  const list = <T>(of: (attempt: DeliveredAttempt) => T): T[] => attempts.map(of);
  // Once more as arrays: they lead to the rows by the primary keys, whatever the planner expects of the project's rows.
  const runIds = list(({ run }) => run.runId);
  const tokens = list(({ run }) => run.leaseToken);
  const statuses = list(({ responseStatus }) => responseStatus);
  const keptSeconds = list(({ run }) =>
    retentionSeconds(jobs.get(run.cronId ?? "")?.retention_days ?? DEFAULT_RETENTION_DAYS),
  );
  const taskIds = ownersOf(attempts, "taskId");
  const { rows } = await sql<SettledRun>`
    with ends as materialized (
      select * from unnest(
        ${runIds}::uuid[], ${tokens}::uuid[], ${statuses}::int[],
        ${list(({ record }) => record.durationMs)}::int[], ${list(({ record }) => record.timings.dnsMs ?? null)}::real[],
        ${list(({ record }) => record.timings.connectMs ?? null)}::real[],
        ${list(({ record }) => record.timings.tlsMs ?? null)}::real[],
        ${list(({ record }) => record.timings.firstByteMs ?? null)}::real[],
        ${list(({ record }) => JSON.stringify(record.requestHeaders))}::jsonb[],
        ${list(({ record }) => record.responseHeaders && JSON.stringify(record.responseHeaders))}::jsonb[],
        ${list(({ record }) => record.responseBody)}::bytea[]
      ) as e (run_id, token, response_status, duration_ms, dns_ms, connect_ms, tls_ms,
              first_byte_ms, request_headers, response_headers, response_body)),
    -- Tasks are locked before their runs, as everywhere.
    held as materialized (
      select from tasks where project_id = ${projectId} and task_id = any(${taskIds}::uuid[])
      order by task_id for no key update),
    settled as (
      update runs set state = 'succeeded', error = null, lease_token = null, lease_expires_at = null, waiting = false,
        parked = false, finished_at = carillon_now(),
        -- By their places in the lists: a join of so few rows reads all of them for each of them.
        response_status = (${statuses}::int[])[array_position(${tokens}::uuid[], lease_token)],
        expires_at = carillon_now() +
          make_interval(secs => (${keptSeconds}::int[])[array_position(${tokens}::uuid[], lease_token)])
      -- Who has a token is running; said in words, the index of all that are running would seem good enough.
      where (select count(*) from held) is not null
        and project_id = ${projectId} and run_id = any(${runIds}::uuid[]) and lease_token = any(${tokens}::uuid[])
      returning run_id, cron_id, task_id, replay_of, fire_at, attempt, attempt_url, attempt_at),
    done as (
      update tasks set state = 'succeeded'
      where project_id = ${projectId} and task_id = any(array(select task_id from settled))
        and state in ('scheduled', 'running', 'retrying')),
    recorded as (
      insert into run_attempts (project_id, run_id, attempt, delivery_id, url, started_at, finished_at, response_status,
        duration_ms, dns_ms, connect_ms, tls_ms, first_byte_ms, request_headers, response_headers, response_body)
      select ${projectId}, run_id, s.attempt, e.token, s.attempt_url, s.attempt_at, carillon_now(), e.response_status,
        e.duration_ms, e.dns_ms, e.connect_ms, e.tls_ms, e.first_byte_ms, e.request_headers, e.response_headers,
        e.response_body
      from settled s join ends e using (run_id))
    select run_id, cron_id, replay_of, fire_at from settled`.execute(db);
  return new Map(rows.map((row) => [row.run_id, row]));
}
