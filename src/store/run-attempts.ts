import { sql } from "kysely";
import type { Db, RunAttemptRow } from "../db/schema.ts";

/** What an attempt's record says in the end. */
export interface AttemptRecord {
  readonly responseStatus: number | null;
  /** Class of the failure; null after a 2xx. */
  readonly error: string | null;
  readonly durationMs: number;
  readonly responseBody: Buffer | null;
}

/** Completes the record of an attempt. */
export async function finishAttempt(
  trx: Db,
  run: { readonly projectId: string; readonly runId: string; readonly attempt: number },
  record: AttemptRecord,
): Promise<void> {
  await trx
    .updateTable("run_attempts")
    .set({
      finished_at: sql<Date>`carillon_now()`,
      response_status: record.responseStatus,
      error: record.error,
      duration_ms: record.durationMs,
      response_body: record.responseBody,
    })
    .where("project_id", "=", run.projectId)
    .where("run_id", "=", run.runId)
    .where("attempt", "=", run.attempt)
    .execute();
}

/** Notes why an attempt has no outcome: its node died under it. Its end stays open, because nobody knows it. */
export async function abandonAttempt(
  trx: Db,
  run: { readonly projectId: string; readonly runId: string; readonly attempt: number },
  error: string,
): Promise<void> {
  await trx
    .updateTable("run_attempts")
    .set({ error })
    .where("project_id", "=", run.projectId)
    .where("run_id", "=", run.runId)
    .where("attempt", "=", run.attempt)
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
