import type { CronJobState, Db, TaskState } from "../db/schema.ts";
import { RUN_ERRORS, type RunTransition, withoutRetry } from "../domain/run.ts";
import { publishRun } from "./cron-publishing.ts";
import { disableWebhookOf } from "./event-webhooks.ts";
import { type AttemptRecord, recordAttempt } from "./run-attempts.ts";
import { lockOwner, releaseWaiting } from "./run-owners.ts";
import { applyTransition, type RunKey } from "./runs.ts";
import type { AttemptKey } from "./runs-leasing.ts";

/** `stale`: the lease was lost, and nothing is changed. `due`: settled, and another run is due by that. */
export type SettleOutcome = "stale" | "settled" | "due";

/**
 * Settles an attempt in one transaction: the transition, the attempt's record, and the turn of the run that waits
 * longest where the overlap policy made it wait. The lease's token is the fence: without it nothing changes.
 *
 * @param record undefined when the attempt's node died, so that nobody knows how it ended.
 */
export async function settleRun(
  db: Db,
  run: AttemptKey,
  transition: RunTransition,
  record: AttemptRecord | undefined,
): Promise<SettleOutcome> {
  return db.transaction().execute(async (trx) => {
    const job = run.cronId === null ? undefined : await lockOwner(trx, run.projectId, run.cronId);
    const taskState = run.taskId === null ? undefined : await lockTask(trx, run.projectId, run.taskId);
    const isWanted = run.kind !== "callback" || transition.to !== "retrying" || (await isWebhookThere(trx, run));
    const next = isWanted
      ? allowed(transition, job?.state, taskState)
      : withoutRetry(transition, RUN_ERRORS.webhookGone);
    const settledRun = await applyTransition(trx, run, run, next, job);
    if (settledRun === undefined) return "stale";
    // What is to be tried again goes where its job now points.
    const settled = job === undefined ? settledRun : await publishRun(trx, job, settledRun);
    const nextAttemptAt = record !== undefined && settled.state === "retrying" ? settled.run_at : null;
    await recordAttempt(trx, run, run.leaseToken, record ?? { error: RUN_ERRORS.leaseExpired }, nextAttemptAt);
    if (run.kind === "callback" && record?.disable) await disableWebhookOf(trx, run.projectId, run.runId);

    if (settled.finished_at === null) return "settled";
    const released = run.cronId !== null && (await releaseWaiting(trx, run.projectId, [run.cronId])).size > 0;
    // A failure may have put events on their way.
    return released || (settled.state === "failed" && run.kind !== "callback") ? "due" : "settled";
  });
}

/** Whether the webhook that an event is for is still there and enabled, and is to stay so until the transaction ends. */
async function isWebhookThere(trx: Db, run: RunKey): Promise<boolean> {
  const callback = await trx
    .selectFrom("callbacks as b")
    .innerJoin("runs as r", (join) =>
      join.onRef("r.project_id", "=", "b.project_id").onRef("r.callback_id", "=", "b.callback_id"),
    )
    .select("b.webhook_id")
    .where("r.project_id", "=", run.projectId)
    .where("r.run_id", "=", run.runId)
    .executeTakeFirst();
  if (callback === undefined || callback.webhook_id === null) return true;
  const webhook = await trx
    .selectFrom("event_webhooks")
    .select("enabled")
    .where("project_id", "=", run.projectId)
    .where("webhook_id", "=", callback.webhook_id)
    .forShare()
    .executeTakeFirst();
  return webhook?.enabled === true;
}

function allowed(transition: RunTransition, job: CronJobState | undefined, task: TaskState | undefined): RunTransition {
  if (job === "deleted") return withoutRetry(transition, RUN_ERRORS.jobDeleted);
  if (task === "canceled") return withoutRetry(transition, RUN_ERRORS.taskCanceled);
  return transition;
}

async function lockTask(trx: Db, projectId: string, taskId: string): Promise<TaskState | undefined> {
  const task = await trx
    .selectFrom("tasks")
    .select("state")
    .where("project_id", "=", projectId)
    .where("task_id", "=", taskId)
    .forNoKeyUpdate()
    .executeTakeFirst();
  return task?.state;
}
