import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type CronJobSchema, CronJobState, MisfirePolicy, TaskType } from "../../gen/scheduling/v1/cron_service_pb.js";
import { formatId } from "../domain/ids.ts";
import type * as misfire from "../domain/misfire.ts";
import type { CronJobView } from "../store/cron-jobs.ts";
import { storedName, toOverlapPolicy, toRun } from "./convert-run.ts";
import { hideCredentials } from "./secret-headers.ts";

const STATES = {
  active: CronJobState.ACTIVE,
  paused: CronJobState.PAUSED,
  completed: CronJobState.COMPLETED,
  deleted: CronJobState.UNSPECIFIED,
} as const;
const MISFIRE_POLICIES = { skip: MisfirePolicy.SKIP, once: MisfirePolicy.ONCE, all: MisfirePolicy.ALL } as const;

/** The stored misfire policy, or undefined for unspecified. */
export function fromMisfirePolicy(policy: MisfirePolicy | undefined): misfire.MisfirePolicy | undefined {
  return storedName(MISFIRE_POLICIES, policy);
}

/** A cron job as callers see it. */
export function toCronJob({ job, lastRun }: CronJobView): MessageInitShape<typeof CronJobSchema> {
  return {
    cronId: formatId("cron", job.cron_id),
    name: job.name,
    cronExpr: job.cron_expr,
    url: job.url,
    taskType: TaskType.HTTP_URL,
    ...(job.payload !== null && { payload: job.payload }),
    contentType: job.content_type,
    timezone: job.timezone,
    retries: job.retries,
    timeoutSeconds: job.timeout_seconds,
    overlapPolicy: toOverlapPolicy(job.overlap_policy),
    ...(job.max_runs !== null && { maxRuns: job.max_runs }),
    headers: hideCredentials(job.headers),
    ...(job.on_failure_webhook !== null && { onFailureWebhook: job.on_failure_webhook }),
    retentionDays: job.retention_days,
    misfirePolicy: MISFIRE_POLICIES[job.misfire_policy],
    misfireWindowSeconds: job.misfire_window_seconds,
    enabled: job.state === "active",
    state: STATES[job.state],
    ...(job.next_run_at !== null && { nextRunAt: timestampFromDate(job.next_run_at) }),
    runCount: job.run_count,
    ...(lastRun !== undefined && { lastRun: toRun(lastRun) }),
    createdAt: timestampFromDate(job.created_at),
    updatedAt: timestampFromDate(job.updated_at),
  };
}
