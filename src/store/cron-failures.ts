import { sql } from "kysely";
import type { CronJobRow, Db } from "../db/schema.ts";
import { targetData } from "../domain/events.ts";
import { formatId } from "../domain/ids.ts";
import { forgetFires } from "./cron-watch.ts";
import { emitEvent } from "./events.ts";

/** What the count of a cron job's failures goes by. */
export type CountedJob = Pick<
  CronJobRow,
  "project_id" | "cron_id" | "name" | "url" | "queue" | "state" | "pause_after_failures"
>;

/**
 * Counts the end of a run of a cron job that is to be paused after so many failed ones in a row, and pauses it. A success
 * begins the count anew. The caller holds the job's lock.
 */
export async function countOutcome(trx: Db, job: CountedJob, outcome: "succeeded" | "failed"): Promise<void> {
  if (job.pause_after_failures === null) return;
  const { rows } = await sql<{ failures_in_a_row: number; state: string }>`
    update cron_jobs set failures_in_a_row = ${outcome === "failed" ? sql`failures_in_a_row + 1` : sql.lit(0)}
    where project_id = ${job.project_id} and cron_id = ${job.cron_id}
    returning failures_in_a_row, state`.execute(trx);
  const [counted] = rows;
  if (counted === undefined || counted.state !== "active" || counted.failures_in_a_row < job.pause_after_failures)
    return;
  const reason = `${counted.failures_in_a_row} runs in a row failed`;
  await sql`
    update cron_jobs set state = 'paused', next_run_at = null, pause_reason = ${reason}, failures_in_a_row = 0,
      overdue_since = null, overdue_fire_at = null, overdue_reason = null, overdue_fires = 0
    where project_id = ${job.project_id} and cron_id = ${job.cron_id}`.execute(trx);
  await forgetFires(trx, job);
  await emitEvent(trx, job.project_id, {
    type: "cron.paused",
    data: { cron_id: formatId("cron", job.cron_id), name: job.name, ...targetData(job), reason },
    aboutUrl: job.url ?? undefined,
  });
}
