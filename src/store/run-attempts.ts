import { type RawBuilder, sql } from "kysely";
import type { Db, RunAttemptRow } from "../db/schema.ts";

/** What an attempt's record says in the end. */
export interface AttemptRecord {
  readonly responseStatus: number | null;
  /** Class of the failure; null after a 2xx. */
  readonly error: string | null;
  readonly durationMs: number;
  /** Milliseconds of the phases that happened. */
  readonly timings: {
    readonly dnsMs?: number;
    readonly connectMs?: number;
    readonly tlsMs?: number;
    readonly firstByteMs?: number;
  };
  /** As far as they may be shown. */
  readonly requestHeaders: Readonly<Record<string, string>>;
  readonly responseHeaders: Readonly<Record<string, string>> | null;
  readonly responseBody: Buffer | null;
  /** The receiver wants no more requests. */
  readonly disable: boolean;
}

/** Names an attempt. */
export interface AttemptId {
  readonly projectId: string;
  readonly runId: string;
  readonly attempt: number;
}

/**
 * The statement that completes the record of an attempt.
 *
 * @param nextAttemptAt when the next attempt is to follow, as SQL; null for none.
 */
export function recordOutcome(
  { projectId, runId, attempt }: AttemptId,
  { timings, ...record }: AttemptRecord,
  nextAttemptAt: RawBuilder<Date | null>,
): RawBuilder<unknown> {
  return sql`
    update run_attempts
    set finished_at = carillon_now(), response_status = ${record.responseStatus}, error = ${record.error},
        duration_ms = ${record.durationMs}, dns_ms = ${timings.dnsMs ?? null}, connect_ms = ${timings.connectMs ?? null},
        tls_ms = ${timings.tlsMs ?? null}, first_byte_ms = ${timings.firstByteMs ?? null},
        request_headers = ${JSON.stringify(record.requestHeaders)},
        response_headers = ${record.responseHeaders && JSON.stringify(record.responseHeaders)},
        response_body = ${record.responseBody}, next_attempt_at = ${nextAttemptAt}
    where project_id = ${projectId} and run_id = ${runId} and attempt = ${attempt}`;
}

/**
 * Records the newest attempt of a run that is sent, when it has been settled; nothing for runs of other kinds.
 *
 * @param deliveryId the token of the lease that it was made under.
 * @param record how it ended; where nobody knows, as its node was lost, only why, and it stays without an end.
 * @param nextAttemptAt when the next one is to follow; null for none.
 */
export async function recordAttempt(
  trx: Db,
  { projectId, runId }: Pick<AttemptId, "projectId" | "runId">,
  deliveryId: string,
  record: AttemptRecord | { readonly error: string | null },
  nextAttemptAt: Date | null,
): Promise<void> {
  const ended = "durationMs" in record ? record : undefined;
  await sql`
    insert into run_attempts (project_id, run_id, attempt, delivery_id, url, started_at, finished_at, response_status, error,
      duration_ms, dns_ms, connect_ms, tls_ms, first_byte_ms, request_headers, response_headers, response_body, next_attempt_at)
    select project_id, run_id, attempt, ${deliveryId}, attempt_url, attempt_at,
      ${ended === undefined ? null : sql`carillon_now()`}, ${ended?.responseStatus ?? null}::int, ${record.error},
      ${ended?.durationMs ?? null}::int, ${ended?.timings.dnsMs ?? null}::real, ${ended?.timings.connectMs ?? null}::real,
      ${ended?.timings.tlsMs ?? null}::real, ${ended?.timings.firstByteMs ?? null}::real,
      ${ended === undefined ? null : JSON.stringify(ended.requestHeaders)}::jsonb,
      ${ended?.responseHeaders ? JSON.stringify(ended.responseHeaders) : null}::jsonb, ${ended?.responseBody ?? null}::bytea,
      ${nextAttemptAt}::timestamptz
    from runs where project_id = ${projectId} and run_id = ${runId} and attempt_url is not null`.execute(trx);
}

/** The attempts of a run, oldest first, with the one under way. */
export async function listAttempts(db: Db, projectId: string, runId: string): Promise<RunAttemptRow[]> {
  return db
    .selectFrom("attempts")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .orderBy("attempt")
    .execute();
}
