import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  CancelCronBackfillResponseSchema,
  type CronBackfillSchema,
  CronBackfillState,
  StartCronBackfillResponseSchema,
} from "../../gen/scheduling/v1/cron_backfill_pb.js";
import type { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import type { BackfillRow } from "../db/schema.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  cancelBackfill,
  countBackfill,
  findBackfill,
  listBackfills,
  MAX_BACKFILL,
  startBackfill,
} from "../store/backfills.ts";
import { scheduleOf } from "../store/cron-jobs.ts";
import { type AppContext, projectOf } from "./context.ts";
import { fromOverlapPolicy, toOverlapPolicy } from "./convert-run.ts";
import { assertNoMonitor, requireCronJob, requireLocked } from "./find-cron-job.ts";
import { instantOf } from "./instant.ts";
import { lastIdOf, toPage } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";

const STATES = {
  running: CronBackfillState.RUNNING,
  succeeded: CronBackfillState.SUCCEEDED,
  canceled: CronBackfillState.CANCELED,
  failed: CronBackfillState.FAILED,
} as const;

type BackfillCalls = "startCronBackfill" | "getCronBackfill" | "listCronBackfills" | "cancelCronBackfill";

/** The calls on jobs that run the fires of a range afterwards. */
export function backfillHandlers(app: AppContext): Pick<ServiceImpl<typeof CronService>, BackfillCalls> {
  return {
    async startCronBackfill(req, ctx) {
      const answer = await once(app, ctx, StartCronBackfillResponseSchema, req, req.cronId, async (trx) => {
        const { job, now } = await requireLocked(trx, ctx, req.cronId);
        assertNoMonitor(job, "backfilled");
        if (req.since === undefined) throw Refusal.field("since", "is needed");
        const since = instantOf("since", req.since);
        const until = req.until === undefined ? now : instantOf("until", req.until);
        if (until > now) throw Refusal.field("until", "must not be in the future");
        if (since >= until) throw Refusal.field("since", "must be before until");
        const matched = await countBackfill(trx, job, scheduleOf(job), { since, until });
        if (matched === undefined) {
          throw Refusal.field("since", `the range has more than ${MAX_BACKFILL} fire times`);
        }
        if (req.dryRun) return { matched };
        const overlapPolicy = fromOverlapPolicy(req.overlapPolicy) ?? "queue";
        const runsPerSecond = req.runsPerSecond ?? null;
        const wanted = { since, until, overlapPolicy, runsPerSecond, matched };
        const { backfill, started } = await startBackfill(trx, job, wanted);
        if (!started) {
          throw new Refusal("BACKFILL_RUNNING", { backfill_id: formatId("bfl", backfill.backfill_id) });
        }
        return { matched, backfill: toBackfill(backfill) };
      });
      app.wakeups.wake("backfills");
      return answer;
    },

    async getCronBackfill(req, ctx) {
      const backfillId = parseId("bfl", req.backfillId);
      const found = backfillId && (await findBackfill(app.db, projectOf(ctx), backfillId));
      return { backfill: toBackfill(assertFound(req.backfillId, found)) };
    },

    async listCronBackfills(req, ctx) {
      const job = await requireCronJob(app.db, ctx, req.cronId);
      const limit = req.limit ?? PAGE_LIMIT;
      const list = { list: "backfills", scope: job.cron_id, prefix: "bfl" } as const;
      const found = await listBackfills(app.db, job, lastIdOf(list, req.cursor), limit + 1);
      return toPage(list, found, limit, ({ backfill_id }) => backfill_id, toBackfill);
    },

    async cancelCronBackfill(req, ctx: HandlerContext) {
      return once(app, ctx, CancelCronBackfillResponseSchema, req, req.backfillId, async (trx) => {
        const backfillId = parseId("bfl", req.backfillId);
        const canceled = backfillId && (await cancelBackfill(trx, projectOf(ctx), backfillId));
        return { backfill: toBackfill(assertFound(req.backfillId, canceled)) };
      });
    },
  };
}

function assertFound(id: string, backfill: BackfillRow | undefined | ""): BackfillRow {
  if (!backfill) throw new Refusal("BACKFILL_NOT_FOUND", { backfill_id: id });
  return backfill;
}

function toBackfill(row: BackfillRow): MessageInitShape<typeof CronBackfillSchema> {
  return {
    backfillId: formatId("bfl", row.backfill_id),
    cronId: formatId("cron", row.cron_id),
    since: timestampFromDate(row.since),
    until: timestampFromDate(row.until),
    overlapPolicy: toOverlapPolicy(row.overlap_policy),
    ...(row.runs_per_second !== null && { runsPerSecond: row.runs_per_second }),
    state: STATES[row.state],
    matched: row.matched,
    started: row.started,
    passedOver: row.passed_over,
    ...(row.error !== null && { error: row.error }),
    startedAt: timestampFromDate(row.started_at),
    ...(row.finished_at !== null && { finishedAt: timestampFromDate(row.finished_at) }),
  };
}
