import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { RunCronRunResponseSchema } from "../../gen/scheduling/v1/cron_ledger_pb.js";
import type { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow, RunRow } from "../db/schema.ts";
import { explainFire, type LedgerRecord } from "../domain/explain.ts";
import { parseId } from "../domain/ids.ts";
import { nextFireAt } from "../domain/schedule.ts";
import { Refusal } from "../errors.ts";
import { readableScheduleOf, scheduleNow } from "../store/cron-jobs.ts";
import { findLedgerRecord } from "../store/cron-ledger.ts";
import { runCronRun } from "../store/cron-runs-by-hand.ts";
import { findRun } from "../store/runs.ts";
import { type AppContext, projectOf } from "./context.ts";
import { fromOverlapPolicy, fromRunDisposition, fromRunState, toRun, toRunDisposition } from "./convert-run.ts";
import { wakeTarget } from "./cron-target.ts";
import { assertNoMonitor, requireKnownCronJob, requireLocked } from "./find-cron-job.ts";
import { instantOf } from "./instant.ts";
import { once } from "./once.ts";
import { runsPage } from "./runs-page.ts";

const SECOND_MS = 1000;

/** The calls on what became of the fires of a cron job. */
export function cronLedgerHandlers(
  app: AppContext,
): Pick<ServiceImpl<typeof CronService>, "listCronRuns" | "runCronRun" | "explainCronFire"> {
  return {
    async listCronRuns(req, ctx) {
      const job = await requireKnownCronJob(app.db, ctx, req.cronId);
      const filter = {
        cronId: job.cron_id,
        state: fromRunState(req.state),
        disposition: fromRunDisposition(req.disposition),
        since: req.since && instantOf("since", req.since),
        until: req.until && instantOf("until", req.until),
      };
      return runsPage(app.db, projectOf(ctx), "cron_runs", filter, req);
    },

    async runCronRun(req, ctx) {
      const resource = `${req.cronId}/${req.runId}`;
      let queue: string | null = null;
      const answer = await once(app, ctx, RunCronRunResponseSchema, req, resource, async (trx) => {
        const { job } = await requireLocked(trx, ctx, req.cronId);
        assertNoMonitor(job, "run");
        queue = job.queue;
        const { run_id: runId } = await requireRun(app, ctx, job, req.runId);
        const run = await runCronRun(trx, job, runId, fromOverlapPolicy(req.overlapPolicy) ?? job.overlap_policy);
        if (run === "skip") throw new Refusal("RUN_NOT_RUNNABLE", { why: "an earlier run is still live" });
        if (run === undefined) {
          const why = "it ran, is to run, was attempted, or the record stands for several fires";
          throw new Refusal("RUN_NOT_RUNNABLE", { why });
        }
        return { run: toRun(run) };
      });
      wakeTarget(app, ctx, queue);
      return answer;
    },

    async explainCronFire(req, ctx) {
      const job = await requireKnownCronJob(app.db, ctx, req.cronId);
      if (req.at === undefined) throw Refusal.field("at", "is needed");
      const at = new Date(Math.floor(instantOf("at", req.at).getTime() / SECOND_MS) * SECOND_MS);
      const now = await scheduleNow(app.db);
      const record = await findLedgerRecord(app.db, job, at, new Date(at.getTime() + SECOND_MS));
      const schedule = readableScheduleOf(job);
      const answer = explainFire({
        at,
        now,
        schedule,
        state: job.state,
        pauseReason: job.pause_reason,
        createdAt: job.created_at,
        deletedAt: job.deleted_at,
        accountedUntil: job.accounted_until,
        retentionDays: job.retention_days,
        record: record && ledgerRecord(record),
      });
      const next = schedule && nextFireAt(schedule, at);
      return {
        at: timestampFromDate(record?.fire_until === null ? record.fire_at : at),
        due: answer.due,
        disposition: toRunDisposition(answer.disposition),
        explanation: answer.explanation,
        ...(record !== undefined && answer.due && { run: toRun(record) }),
        ...(next !== undefined && { nextFireAt: timestampFromDate(next) }),
      };
    },
  };
}

async function requireRun(app: AppContext, ctx: HandlerContext, job: CronJobRow, id: string): Promise<RunRow> {
  const runId = parseId("run", id);
  const run = runId === undefined ? undefined : await findRun(app.db, projectOf(ctx), runId);
  if (run === undefined || run.cron_id !== job.cron_id) throw new Refusal("RUN_NOT_FOUND", { run_id: id });
  return run;
}

function ledgerRecord(run: RunRow): LedgerRecord {
  return {
    disposition: run.disposition,
    state: run.state,
    trigger: run.trigger,
    error: run.error,
    fireAt: run.fire_at,
    fireUntil: run.fire_until,
    fireCount: run.fire_count,
  };
}
