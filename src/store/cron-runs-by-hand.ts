import { sql } from "kysely";
import type { CronJobRow, Db, RunRow } from "../db/schema.ts";
import { type Admission, admit, SINGLE } from "../domain/firing.ts";
import type { OverlapPolicy } from "../domain/overlap.ts";
import { RUN_ERRORS } from "../domain/run.ts";
import { findSingleRecord, isRunnable, runAfterwards } from "./cron-ledger.ts";
import { publishRun } from "./cron-publishing.ts";
import { clearTheWay, countLive, insertCronRuns, lockLiveRuns, moveJobs } from "./cron-runs.ts";
import { releaseWaiting } from "./run-owners.ts";

/**
 * Records a run of a cron job that was asked for, under the overlap policy. The caller holds the job's lock.
 * The run is pending, or skipped; where the target is a queue its message is published and the run over.
 */
export async function triggerCronJob(trx: Db, job: CronJobRow, policy: OverlapPolicy, now: Date): Promise<RunRow> {
  const admission = await admitByHand(trx, job, policy);
  const skipped = admission.kind === "skip";
  const [run] = await insertCronRuns(trx, job.project_id, [
    {
      job,
      fireAt: now,
      effectiveAt: now,
      trigger: "manual",
      state: skipped ? "skipped" : "pending",
      waiting: admission.kind === "wait",
      error: skipped ? RUN_ERRORS.skipped : null,
      ...SINGLE,
    },
  ]);
  if (run === undefined) throw new Error("a run by hand met another one");
  // Runs that wait although none is live are nobody's turn; it does not happen, and it would be for ever.
  if (run.waiting) await releaseWaiting(trx, job.project_id, [job.cron_id]);
  return publishRun(trx, job, run);
}

/**
 * Lets the fire of a record that did not run, run after all, under the overlap policy. The caller holds the job's lock.
 * `skip`: the policy lets it pass again. Undefined: it is no such record.
 */
export async function runCronRun(
  trx: Db,
  job: CronJobRow,
  runId: string,
  policy: OverlapPolicy,
): Promise<RunRow | "skip" | undefined> {
  const admission = await admitByHand(trx, job, policy);
  if (admission.kind === "skip") return "skip";
  const run = await runAfterwards(trx, job, runId, admission.kind === "wait");
  if (run?.waiting) await releaseWaiting(trx, job.project_id, [job.cron_id]);
  return run && publishRun(trx, job, run);
}

/**
 * Lets the fire at `fireAt` run after all, under the overlap policy, whether it has a record or not. The caller holds the
 * job's lock. False when it ran, is to run, was attempted, or the policy lets it pass.
 */
export async function runFireAfterwards(
  trx: Db,
  job: CronJobRow,
  fireAt: Date,
  policy: OverlapPolicy,
): Promise<boolean> {
  const record = await findSingleRecord(trx, job, fireAt);
  if (record !== undefined) {
    const run = isRunnable(record) ? await runCronRun(trx, job, record.run_id, policy) : undefined;
    return run !== undefined && run !== "skip";
  }
  const admission = await admitByHand(trx, job, policy);
  if (admission.kind === "skip") return false;
  const state = { state: "pending", waiting: admission.kind === "wait", error: null } as const;
  const planned = { job, fireAt, effectiveAt: fireAt, trigger: "backfill", ...state, ...SINGLE } as const;
  const [run] = await insertCronRuns(trx, job.project_id, [planned]);
  if (run?.waiting) await releaseWaiting(trx, job.project_id, [job.cron_id]);
  if (run !== undefined) await publishRun(trx, job, run);
  return true;
}

/** How many runs of a job wait for their turn. */
export async function countWaiting(db: Db, job: CronJobRow): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from runs
    where project_id = ${job.project_id} and cron_id = ${job.cron_id} and state = 'pending' and waiting`.execute(db);
  return rows[0]?.count ?? 0;
}

/** Asks the overlap policy about a run that somebody wants, and makes way for it where the policy says so. */
async function admitByHand(trx: Db, job: CronJobRow, policy: OverlapPolicy): Promise<Admission> {
  // A publish ends at once, so that it is in nobody's way.
  if (job.queue !== null) return { kind: "start", giveWay: false };
  const live = (await lockLiveRuns(trx, job.project_id, [job.cron_id])).get(job.cron_id) ?? [];
  const admission = admit(policy, countLive(live));
  const way = {
    giveWay: admission.kind === "start" && admission.giveWay,
    cancelPrevious: admission.kind === "cancel_previous",
    dropWaiting: admission.kind === "wait" && admission.dropOldest ? 1 : 0,
  };
  const dropped = await clearTheWay(trx, job, way, live);
  if (dropped > 0) {
    const { cron_id, next_run_at, state, accounted_until } = job;
    await moveJobs(trx, job.project_id, [{ cron_id, next_run_at, state, accounted_until, started: -dropped }]);
  }
  return admission;
}
