import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  CreateCronJobResponseSchema,
  type CronService,
  DeleteCronJobResponseSchema,
  PauseCronJobResponseSchema,
  ResumeCronJobResponseSchema,
  RotateCronSecretResponseSchema,
  RotatePingTokenResponseSchema,
  SetCronRetentionResponseSchema,
  TriggerCronJobResponseSchema,
  UpdateCronJobRequestSchema,
  UpdateCronJobResponseSchema,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow, Db } from "../db/schema.ts";
import { parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  type CronJobView,
  deleteCronJob,
  insertCronJob,
  listCronJobs,
  newCronId,
  scheduleOf,
  setRetention,
  updateCronJob,
  viewCronJob,
} from "../store/cron-jobs.ts";
import { accountFor } from "../store/cron-jobs-firing.ts";
import { triggerCronJob } from "../store/cron-runs-by-hand.ts";
import { isMonitor } from "../store/monitors.ts";
import { replacePingToken } from "../store/ping-tokens.ts";
import { listPings } from "../store/pings.ts";
import { listAttempts } from "../store/run-attempts.ts";
import { findRun } from "../store/runs.ts";
import { setSigningSecret } from "../store/signing-keys.ts";
import { backfillHandlers } from "./backfill-handlers.ts";
import { type AppContext, projectOf, warn } from "./context.ts";
import { toCronJob } from "./convert-cron.ts";
import { fromOverlapPolicy, toRun } from "./convert-run.ts";
import { cronLedgerHandlers } from "./cron-ledger-handlers.ts";
import { cronPreviewHandlers } from "./cron-preview-handlers.ts";
import { armed, cronJobChanges, newCronJob, ownerOf } from "./cron-settings.ts";
import { ensureTarget, wakeTarget } from "./cron-target.ts";
import { assertNoMonitor, lockKnown, requireCronJob, requireLocked } from "./find-cron-job.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { pingPathOf, sealedPingToken } from "./ping-path.ts";
import { checkSecret, ROTATION_OVERLAP_SECONDS, rotateAsAsked, sealSecret } from "./secret.ts";
import { writtenFields } from "./update-mask.ts";

const LIST = { list: "cron_jobs", scope: "", prefix: "cron" } as const;

/** The calls on cron jobs. */
export function cronService(app: AppContext): ServiceImpl<typeof CronService> {
  const show = (view: CronJobView) => toCronJob(app.vault, view);
  return {
    ...cronPreviewHandlers(app),
    ...cronLedgerHandlers(app),
    ...backfillHandlers(app),

    async createCronJob(req, ctx) {
      const answer = await once(app, ctx, CreateCronJobResponseSchema, req, "", async (trx) => {
        const { job, target, pingTokenHash, warnings } = newCronJob(app, projectOf(ctx), req, await newCronId(trx));
        for (const warning of warnings) warn(ctx, warning);
        await ensureTarget(app, trx, ctx, target);
        const row = await insertCronJob(trx, job);
        if (pingTokenHash !== undefined) await replacePingToken(trx, row, pingTokenHash, 0);
        if (req.secret !== "") await setSecret(app, trx, row, req.secret);
        return { cronJob: show({ job: row, lastRun: undefined }) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    async listCronJobs(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const views = await listCronJobs(app.db, projectOf(ctx), lastIdOf(LIST, req.cursor), limit + 1);
      return toPage(LIST, views, limit, ({ job }) => job.cron_id, show);
    },

    async getCronJob(req, ctx) {
      return { cronJob: show(await viewCronJob(app.db, await requireCronJob(app.db, ctx, req.cronId))) };
    },

    async updateCronJob(req, ctx) {
      const answer = await once(app, ctx, UpdateCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job: stored, now } = await requireLocked(trx, ctx, req.cronId);
        const written = writtenFields(UpdateCronJobRequestSchema, req);
        if (written.size === 0) return { cronJob: show(await viewCronJob(trx, stored)) };
        const job = await accountFor(trx, stored, now);
        const { changes, target, warnings } = cronJobChanges(app, req, written, job, now);
        for (const warning of warnings) warn(ctx, warning);
        if (written.has("queue") || written.has("priority")) await ensureTarget(app, trx, ctx, target);
        if (written.has("secret")) await setSecret(app, trx, job, req.secret ?? "");
        return { cronJob: show(await viewCronJob(trx, await updateCronJob(trx, job, changes))) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    async deleteCronJob(req, ctx) {
      return once(app, ctx, DeleteCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await lockKnown(trx, ctx, req.cronId);
        if (job.state !== "deleted") await deleteCronJob(trx, await accountFor(trx, job, now));
        return { cronId: req.cronId, deleted: job.state !== "deleted" };
      });
    },

    async pauseCronJob(req, ctx) {
      const answer = await once(app, ctx, PauseCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job: stored, now } = await requireLocked(trx, ctx, req.cronId);
        if (stored.state === "paused") return { cronJob: show(await viewCronJob(trx, stored)) };
        const job = await accountFor(trx, stored, now);
        const changes = { state: "paused", next_run_at: null, pause_reason: req.reason || null } as const;
        const paused = job.state === "active" ? await updateCronJob(trx, job, changes) : job;
        return { cronJob: show(await viewCronJob(trx, paused)) };
      });
      app.wakeups.wake("runs");
      return answer;
    },

    async resumeCronJob(req, ctx) {
      const answer = await once(app, ctx, ResumeCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        if (job.state !== "paused") return { cronJob: show(await viewCronJob(trx, job)) };
        const changes = { ...armed(job, scheduleOf(job), now), pause_reason: null };
        const resumed = await updateCronJob(trx, await accountFor(trx, job, now), changes);
        return { cronJob: show(await viewCronJob(trx, resumed)) };
      });
      app.wakeups.wake("crons");
      return answer;
    },

    rotateCronSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotateCronSecretResponseSchema, req, req.cronId, async (trx) => {
        const { job } = await requireLocked(trx, ctx, req.cronId);
        return { cronId: req.cronId, ...(await rotateAsAsked(app.vault, trx, ownerOf(job), req)) };
      });
    },

    async triggerCronJob(req, ctx) {
      let queue: string | null = null;
      const answer = await once(app, ctx, TriggerCronJobResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        assertNoMonitor(job, "triggered");
        queue = job.queue;
        const policy = fromOverlapPolicy(req.overlapPolicy) ?? job.overlap_policy;
        return { run: toRun(await triggerCronJob(trx, job, policy, now)) };
      });
      wakeTarget(app, ctx, queue);
      return answer;
    },

    async getCronRun(req, ctx) {
      const cronId = parseId("cron", req.cronId);
      const runId = parseId("run", req.runId);
      const run = runId === undefined ? undefined : await findRun(app.db, projectOf(ctx), runId);
      if (runId === undefined || run === undefined || run.cron_id === null || run.cron_id !== cronId) {
        throw new Refusal("RUN_NOT_FOUND", { run_id: req.runId });
      }
      const { project_id: projectId } = run;
      const [attempts, pings] = await Promise.all([
        listAttempts(app.db, projectId, runId),
        listPings(app.db, projectId, runId),
      ]);
      return { run: toRun(run, attempts, pings) };
    },

    async rotatePingToken(req, ctx) {
      return once(app, ctx, RotatePingTokenResponseSchema, req, req.cronId, async (trx) => {
        const { job } = await requireLocked(trx, ctx, req.cronId);
        if (!isMonitor(job)) throw new Refusal("CRON_JOB_IS_NO_MONITOR", { cron_id: req.cronId });
        const { sealed, tokenHash } = sealedPingToken(app.vault, job);
        await updateCronJob(trx, job, { ping_token: sealed });
        const overlapSeconds = req.overlapSeconds ?? ROTATION_OVERLAP_SECONDS;
        const validUntil = await replacePingToken(trx, job, tokenHash, overlapSeconds);
        return {
          pingPath: pingPathOf(app.vault, job, sealed),
          ...(validUntil !== undefined && { previousValidUntil: timestampFromDate(validUntil) }),
        };
      });
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

/** Sets the cron job's own secret; with none its project's signs. */
async function setSecret(app: AppContext, trx: Db, job: CronJobRow, secret: string): Promise<void> {
  await setSigningSecret(trx, ownerOf(job), secret === "" ? null : sealSecret(app.vault, ownerOf(job), secret));
}
