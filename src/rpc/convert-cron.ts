import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  type CronJobSchema,
  CronJobState,
  CronOverdueReason,
  MisfirePolicy,
  TaskType,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import { hideCredentials } from "../domain/credentials.ts";
import { formatId } from "../domain/ids.ts";
import type * as misfire from "../domain/misfire.ts";
import type { CronJobView } from "../store/cron-jobs.ts";
import { isMonitor } from "../store/monitors.ts";
import type { Vault } from "../vault/vault.ts";
import { storedName, toOverlapPolicy, toRun } from "./convert-run.ts";
import { toDstGap, toDstOverlap } from "./cron-policies.ts";
import { pingPathOf } from "./ping-path.ts";
import { toRetryPolicy } from "./retry-policy.ts";

const STATES = {
  active: CronJobState.ACTIVE,
  paused: CronJobState.PAUSED,
  completed: CronJobState.COMPLETED,
  deleted: CronJobState.UNSPECIFIED,
} as const;
const MISFIRE_POLICIES = { skip: MisfirePolicy.SKIP, once: MisfirePolicy.ONCE, all: MisfirePolicy.ALL } as const;
const OVERDUE_REASONS = {
  not_started: CronOverdueReason.NOT_STARTED,
  not_succeeded: CronOverdueReason.NOT_SUCCEEDED,
} as const;

/** The stored misfire policy, or undefined for unspecified. */
export function fromMisfirePolicy(policy: MisfirePolicy | undefined): misfire.MisfirePolicy | undefined {
  return storedName(MISFIRE_POLICIES, policy);
}

function taskTypeOf(job: CronJobView["job"]): TaskType {
  if (isMonitor(job)) return TaskType.MONITOR;
  return job.queue === null ? TaskType.HTTP_URL : TaskType.QUEUE;
}

/** A cron job as callers see it. The vault opens what a monitor is pinged by. */
export function toCronJob(vault: Vault, { job, lastRun }: CronJobView): MessageInitShape<typeof CronJobSchema> {
  return {
    cronId: formatId("cron", job.cron_id),
    name: job.name,
    cronExpr: job.cron_expr,
    url: job.url ?? "",
    taskType: taskTypeOf(job),
    ...(job.ping_token !== null && { pingPath: pingPathOf(vault, job, job.ping_token) }),
    ...(job.payload !== null && { payload: job.payload }),
    contentType: job.content_type,
    timezone: job.timezone,
    retries: job.retries,
    ...(job.backoff !== null && { retryPolicy: toRetryPolicy(job.backoff) }),
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
    dstGap: toDstGap(job.dst_gap),
    dstOverlap: toDstOverlap(job.dst_overlap),
    ...(job.start_at !== null && { startAt: timestampFromDate(job.start_at) }),
    ...(job.end_at !== null && { endAt: timestampFromDate(job.end_at) }),
    spreadSeconds: job.spread_seconds,
    jitterSeconds: job.jitter_seconds,
    ...(job.pause_reason !== null && { pauseReason: job.pause_reason }),
    ...(job.expire_after_seconds !== null && { expireAfterSeconds: job.expire_after_seconds }),
    ...(job.pause_after_failures !== null && { pauseAfterFailures: job.pause_after_failures }),
    failuresInARow: job.failures_in_a_row,
    ...(job.start_grace_seconds !== null && { startGraceSeconds: job.start_grace_seconds }),
    ...(job.finish_grace_seconds !== null && { finishGraceSeconds: job.finish_grace_seconds }),
    ...(job.overdue_since !== null && { overdueSince: timestampFromDate(job.overdue_since) }),
    ...(job.overdue_reason !== null && { overdueReason: OVERDUE_REASONS[job.overdue_reason] }),
    overdueFires: job.overdue_fires,
    ...(job.queue !== null && { queue: job.queue }),
    ...(job.group_id !== null && { groupId: job.group_id }),
    ...(job.priority !== null && { priority: job.priority }),
    ...(job.ttl_seconds !== null && { ttlSeconds: job.ttl_seconds }),
  };
}
