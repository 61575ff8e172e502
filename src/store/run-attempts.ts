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

/** Completes the record of an attempt. `nextAttemptAt`: when the next one is to follow; null for none. */
export async function finishAttempt(
  trx: Db,
  attempt: AttemptId,
  record: AttemptRecord,
  nextAttemptAt: Date | null,
): Promise<void> {
  await recordOutcome(attempt, record, sql`${nextAttemptAt}::timestamptz`).execute(trx);
}

/** Notes why an attempt has no outcome: its node died under it. Its end stays open, because nobody knows it. */
export async function abandonAttempt(trx: Db, attempt: AttemptId, error: string): Promise<void> {
  await trx
    .updateTable("run_attempts")
    .set({ error })
    .where("project_id", "=", attempt.projectId)
    .where("run_id", "=", attempt.runId)
    .where("attempt", "=", attempt.attempt)
    .where("finished_at", "is", null)
    .execute();
}

/** The attempts of a run, oldest first. */
export async function listAttempts(db: Db, projectId: string, runId: string): Promise<RunAttemptRow[]> {
  return db
    .selectFrom("run_attempts")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("run_id", "=", runId)
    .orderBy("attempt")
    .execute();
}
