import type { HandlerContext } from "@connectrpc/connect";
import type { CronJobRow, Db } from "../db/schema.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { findCronJob, lockCronJob } from "../store/cron-jobs.ts";
import { isMonitor } from "../store/monitors.ts";
import { projectOf } from "./context.ts";

/** The caller's cron job. @throws Refusal CRON_JOB_NOT_FOUND, also when it is deleted */
export async function requireCronJob(db: Db, ctx: HandlerContext, id: string): Promise<CronJobRow> {
  return assertThere(id, await requireKnownCronJob(db, ctx, id));
}

/** The caller's cron job, deleted or not. @throws Refusal CRON_JOB_NOT_FOUND when it never existed */
export async function requireKnownCronJob(db: Db, ctx: HandlerContext, id: string): Promise<CronJobRow> {
  const cronId = parseId("cron", id);
  const job = cronId === undefined ? undefined : await findCronJob(db, projectOf(ctx), cronId);
  if (job === undefined) throw notFound(id, null);
  return job;
}

/** The caller's cron job, locked, deleted or not. @throws Refusal CRON_JOB_NOT_FOUND when it never existed */
export async function lockKnown(trx: Db, ctx: HandlerContext, id: string): Promise<{ job: CronJobRow; now: Date }> {
  const cronId = parseId("cron", id);
  const locked = cronId === undefined ? undefined : await lockCronJob(trx, projectOf(ctx), cronId);
  if (locked === undefined) throw notFound(id, null);
  return locked;
}

/** The caller's cron job, locked. @throws Refusal CRON_JOB_NOT_FOUND, also when it is deleted */
export async function requireLocked(trx: Db, ctx: HandlerContext, id: string): Promise<{ job: CronJobRow; now: Date }> {
  const { job, now } = await lockKnown(trx, ctx, id);
  return { job: assertThere(id, job), now };
}

/** @throws Refusal CRON_JOB_IS_MONITOR for a monitor, which cannot be `asked` */
export function assertNoMonitor(job: CronJobRow, asked: string): void {
  if (isMonitor(job)) throw new Refusal("CRON_JOB_IS_MONITOR", { cron_id: formatId("cron", job.cron_id), asked });
}

function assertThere(id: string, job: CronJobRow): CronJobRow {
  if (job.state === "deleted") throw notFound(id, job.deleted_at);
  return job;
}

function notFound(id: string, deletedAt: Date | null): Refusal {
  if (deletedAt === null) return new Refusal("CRON_JOB_NOT_FOUND", { cron_id: id, hint: "" });
  const at = deletedAt.toISOString();
  return new Refusal("CRON_JOB_NOT_FOUND", { cron_id: id, deleted_at: at, hint: ": it was deleted at ".concat(at) });
}
