import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CreateCronJobResponseSchema,
  type CronService,
  DeleteCronJobResponseSchema,
  PauseCronJobResponseSchema,
  ResumeCronJobResponseSchema,
  SetCronRetentionResponseSchema,
  TriggerCronJobResponseSchema,
  UpdateCronJobRequestSchema,
  UpdateCronJobResponseSchema,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow, Db } from "../db/schema.ts";
import { parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  deleteCronJob,
  findCronJob,
  insertCronJob,
  listCronJobs,
  lockCronJob,
  newCronId,
  setRetention,
  updateCronJob,
  viewCronJob,
} from "../store/cron-jobs.ts";
import { triggerCronJob } from "../store/cron-jobs-firing.ts";
import { listAttempts } from "../store/run-attempts.ts";
import { findRun } from "../store/runs.ts";
import { type AppContext, projectOf, warn } from "./context.ts";
import { toCronJob } from "./convert-cron.ts";
import { fromOverlapPolicy, toRun } from "./convert-run.ts";
import { armed, cronJobChanges, newCronJob, scheduleOf } from "./cron-settings.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { writtenFields } from "./update-mask.ts";

const LIST = { list: "cron_jobs", scope: "", prefix: "cron" } as const;

/** The calls on cron jobs. */
export function cronService(app: AppContext): ServiceImpl<typeof CronService> {
  return {
    async createCronJob(req, ctx) {
      const answer = await once(app, ctx, CreateCronJobResponseSchema, req, "", async (trx) => {
        const { job, warnings } = newCronJob(app, projectOf(ctx), req, await newCronId(trx));
        for (const warning of warnings) warn(ctx, warning);
        return { cronJob: toCronJob({ job: await insertCronJob(trx, job), lastRun: undefined }) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    async listCronJobs(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const views = await listCronJobs(app.db, projectOf(ctx), lastIdOf(LIST, req.cursor), limit + 1);
      return toPage(LIST, views, limit, ({ job }) => job.cron_id, toCronJob);
    },

    async getCronJob(req, ctx) {
      return { cronJob: toCronJob(await viewCronJob(app.db, await requireCronJob(app.db, ctx, req.cronId))) };
    },

    async updateCronJob(req, ctx) {
      const answer = await once(app, ctx, UpdateCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        const written = writtenFields(UpdateCronJobRequestSchema, req);
        if (written.size === 0) return { cronJob: toCronJob(await viewCronJob(trx, job)) };
        const { changes, warnings } = cronJobChanges(app, req, written, job, now);
        for (const warning of warnings) warn(ctx, warning);
        return { cronJob: toCronJob(await viewCronJob(trx, await updateCronJob(trx, job, changes))) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    async deleteCronJob(req, ctx) {
      return once(app, ctx, DeleteCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job } = await lockKnown(trx, ctx, req.cronId);
        if (job.state !== "deleted") await deleteCronJob(trx, job);
        return { cronId: req.cronId, deleted: job.state !== "deleted" };
      });
    },

    async pauseCronJob(req, ctx) {
      return once(app, ctx, PauseCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job } = await requireLocked(trx, ctx, req.cronId);
        const paused =
          job.state === "active" ? await updateCronJob(trx, job, { state: "paused", next_run_at: null }) : job;
        return { cronJob: toCronJob(await viewCronJob(trx, paused)) };
      });
    },

    async resumeCronJob(req, ctx) {
      const answer = await once(app, ctx, ResumeCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        const resumed = job.state === "paused" ? await updateCronJob(trx, job, armed(job, scheduleOf(job), now)) : job;
        return { cronJob: toCronJob(await viewCronJob(trx, resumed)) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    async triggerCronJob(req, ctx) {
      const answer = await once(app, ctx, TriggerCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        const policy = fromOverlapPolicy(req.overlapPolicy) ?? job.overlap_policy;
        return { run: toRun(await triggerCronJob(trx, job, policy, now)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async getCronRun(req, ctx) {
      const cronId = parseId("cron", req.cronId);
      const runId = parseId("run", req.runId);
      const run = runId === undefined ? undefined : await findRun(app.db, projectOf(ctx), runId);
      if (run === undefined || run.cron_id === null || run.cron_id !== cronId) {
        throw new Refusal("RUN_NOT_FOUND", { run_id: req.runId });
      }
      return { run: toRun(run, await listAttempts(app.db, run.project_id, run.run_id)) };
    },

    async getCronRetention(req, ctx) {
      const job = await requireCronJob(app.db, ctx, req.cronId);
      return { cronId: req.cronId, retentionDays: job.retention_days };
    },

    async setCronRetention(req, ctx) {
      return once(app, ctx, SetCronRetentionResponseSchema, req, req.cronId, async (trx) => {
        const { job } = await requireLocked(trx, ctx, req.cronId);
        const retentionDays = req.retentionDays ?? job.retention_days;
        if (retentionDays !== job.retention_days) await setRetention(trx, job, retentionDays);
        return { cronId: req.cronId, retentionDays };
      });
    },
  };
}

/** The caller's cron job. @throws Refusal CRON_JOB_NOT_FOUND, also when it is deleted */
async function requireCronJob(db: Db, ctx: HandlerContext, id: string): Promise<CronJobRow> {
  const cronId = parseId("cron", id);
  const job = cronId === undefined ? undefined : await findCronJob(db, projectOf(ctx), cronId);
  return assertThere(id, job);
}

/** The caller's cron job, locked, deleted or not. @throws Refusal CRON_JOB_NOT_FOUND when it never existed */
async function lockKnown(trx: Db, ctx: HandlerContext, id: string): Promise<{ job: CronJobRow; now: Date }> {
  const cronId = parseId("cron", id);
  const locked = cronId === undefined ? undefined : await lockCronJob(trx, projectOf(ctx), cronId);
  if (locked === undefined) throw notFound(id, null);
  return locked;
}

/** The caller's cron job, locked. @throws Refusal CRON_JOB_NOT_FOUND, also when it is deleted */
async function requireLocked(trx: Db, ctx: HandlerContext, id: string): Promise<{ job: CronJobRow; now: Date }> {
  const { job, now } = await lockKnown(trx, ctx, id);
  return { job: assertThere(id, job), now };
}

function assertThere(id: string, job: CronJobRow | undefined): CronJobRow {
  if (job === undefined || job.state === "deleted") throw notFound(id, job?.deleted_at ?? null);
  return job;
}

function notFound(id: string, deletedAt: Date | null): Refusal {
  if (deletedAt === null) return new Refusal("CRON_JOB_NOT_FOUND", { cron_id: id, hint: "" });
  const at = deletedAt.toISOString();
  return new Refusal("CRON_JOB_NOT_FOUND", { cron_id: id, deleted_at: at, hint: ": it was deleted at ".concat(at) });
}
