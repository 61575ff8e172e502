import {
  type CreateCronJobRequest,
  TaskType,
  type UpdateCronJobRequest,
} from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow } from "../db/schema.ts";
import { nextFireAt, parseSchedule, type Schedule } from "../domain/schedule.ts";
import type { KeyOwner } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import { CRON_JOB_DEFAULTS, type CronJobChanges, type NewCronJob, scheduleOf } from "../store/cron-jobs.ts";
import { isMonitor } from "../store/monitors.ts";
import { checkTarget } from "../webhook/target.ts";
import type { AppContext } from "./context.ts";
import { fromMisfirePolicy } from "./convert-cron.ts";
import { fromOverlapPolicy } from "./convert-run.ts";
import { rulesOf, type SchedulePolicies, schedulePolicies, updatedPolicies } from "./cron-policies.ts";
import { type CronTarget, nameOf, newTarget, updatedTarget } from "./cron-target.ts";
import { monitorPolicies, refuseSending } from "./monitor-settings.ts";
import { checkPayload } from "./payload.ts";
import { sealedPingToken } from "./ping-path.ts";
import { backoffToStore, defaultRetries } from "./retry-policy.ts";
import { checkSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";

/** Fields that give a job another next fire time. */
const SCHEDULE_FIELDS = ["cron_expr", "timezone", "dst_gap", "dst_overlap", "start_at", "end_at"];
const NEVER_FIRES = "leaves the schedule without a fire time to come";

/**
 * The cron job that a request describes, with its first fire time, and what its schedule may surprise with.
 *
 * @param at the id of the new job and the instant it is created at.
 * @returns the job, for a monitor with the hash of the token that it is pinged by.
 * @throws Refusal CRON_EXPR_INVALID, TIMEZONE_INVALID, TARGET_REFUSED, PAYLOAD_TOO_LARGE, FIELD_INVALID
 */
export function newCronJob(
  app: AppContext,
  projectId: string,
  req: CreateCronJobRequest,
  at: { readonly cronId: string; readonly now: Date },
): {
  readonly job: NewCronJob;
  readonly target: CronTarget;
  readonly pingTokenHash: Buffer | undefined;
  readonly warnings: readonly string[];
} {
  const monitors = req.taskType === TaskType.MONITOR;
  if (monitors) refuseSending(req);
  const policies = monitors ? monitorPolicies(schedulePolicies(req)) : schedulePolicies(req);
  const rules = rulesOf(policies);
  const given = { expression: req.cronExpr, timezone: req.timezone, seed: at.cronId };
  const schedule = parseSchedule({ ...given, now: at.now, rules });
  const next = nextFireAt(schedule, at.now);
  if (next === undefined) throw Refusal.field(policies.end_at === null ? "start_at" : "end_at", NEVER_FIRES);
  const target = newTarget(app, req);
  const ping = monitors ? sealedPingToken(app.vault, { project_id: projectId, cron_id: at.cronId }) : undefined;
  const contentType = req.contentType || CRON_JOB_DEFAULTS.content_type;
  if (req.payload !== undefined) checkPayload(app.limits, "payload", req.payload, contentType);
  checkSecret(req.secret);
  const job: NewCronJob = {
    project_id: projectId,
    cron_id: at.cronId,
    name: req.name || nameOf(target),
    cron_expr: req.cronExpr,
    timezone: schedule.timezone,
    ...target,
    payload: req.payload === undefined ? null : Buffer.from(req.payload),
    content_type: contentType,
    headers: JSON.stringify(headersToStore(app.vault, { projectId, ownerId: at.cronId }, "headers", req.headers)),
    retries: monitors ? 0 : (req.retries ?? defaultRetries(req.retryPolicy, CRON_JOB_DEFAULTS.retries)),
    backoff: backoffToStore(req.retryPolicy),
    timeout_seconds: req.timeoutSeconds ?? CRON_JOB_DEFAULTS.timeout_seconds,
    overlap_policy: monitors ? "allow" : (fromOverlapPolicy(req.overlapPolicy) ?? CRON_JOB_DEFAULTS.overlap_policy),
    max_runs: req.maxRuns ?? null,
    on_failure_webhook: webhookOf(app, req.onFailureWebhook),
    retention_days: req.retentionDays ?? CRON_JOB_DEFAULTS.retention_days,
    misfire_policy: fromMisfirePolicy(req.misfirePolicy) ?? CRON_JOB_DEFAULTS.misfire_policy,
    misfire_window_seconds: req.misfireWindowSeconds ?? CRON_JOB_DEFAULTS.misfire_window_seconds,
    next_run_at: next,
    ping_token: ping?.sealed ?? null,
    ...policies,
  };
  return { job, target, pingTokenHash: ping?.tokenHash, warnings: schedule.warnings };
}

/**
 * What an update writes, with the next fire time where that follows: from `now` for a new schedule or zone, and for a
 * completed job that may run again.
 *
 * @param written the contract names of the fields to write, of which there is at least one.
 * @throws Refusal as newCronJob
 */
export function cronJobChanges(
  app: AppContext,
  req: UpdateCronJobRequest,
  written: ReadonlySet<string>,
  job: CronJobRow,
  now: Date,
): { readonly changes: CronJobChanges; readonly target: CronTarget; readonly warnings: readonly string[] } {
  if (isMonitor(job)) refuseSending(req, written);
  if (written.has("cron_expr") && req.cronExpr === undefined) throw Refusal.field("cron_expr", "cannot be cleared");
  if (written.has("secret")) checkSecret(req.secret ?? "");
  const updated = updatedPolicies(req, written, job);
  const policies = isMonitor(job) ? monitorPolicies(updated) : updated;
  const schedule = updatedSchedule(req, written, { ...job, ...policies }, now);
  const target = updatedTarget(app, req, written, job);
  const maxRuns = written.has("max_runs") ? (req.maxRuns ?? null) : job.max_runs;
  const changes: CronJobChanges = {
    ...(written.has("name") && { name: req.name || nameOf(target) }),
    ...(written.has("cron_expr") && { cron_expr: req.cronExpr ?? job.cron_expr }),
    ...(schedule !== undefined && { timezone: schedule.timezone }),
    ...target,
    ...bodyChanges(app, req, written, job),
    ...(written.has("headers") && {
      headers: JSON.stringify(headersToStore(app.vault, ownerOf(job), "headers", req.headers)),
    }),
    ...(written.has("retries") && { retries: req.retries ?? CRON_JOB_DEFAULTS.retries }),
    ...(written.has("retry_policy") && { backoff: backoffToStore(req.retryPolicy) }),
    ...(written.has("timeout_seconds") && { timeout_seconds: req.timeoutSeconds ?? CRON_JOB_DEFAULTS.timeout_seconds }),
    ...(written.has("overlap_policy") && {
      overlap_policy: fromOverlapPolicy(req.overlapPolicy) ?? CRON_JOB_DEFAULTS.overlap_policy,
    }),
    ...(written.has("max_runs") && { max_runs: maxRuns }),
    ...(written.has("on_failure_webhook") && { on_failure_webhook: webhookOf(app, req.onFailureWebhook ?? "") }),
    ...(written.has("misfire_policy") && {
      misfire_policy: fromMisfirePolicy(req.misfirePolicy) ?? CRON_JOB_DEFAULTS.misfire_policy,
    }),
    ...(written.has("misfire_window_seconds") && {
      misfire_window_seconds: req.misfireWindowSeconds ?? CRON_JOB_DEFAULTS.misfire_window_seconds,
    }),
    ...policies,
    ...((schedule !== undefined || written.has("max_runs")) &&
      nextOf({ ...job, max_runs: maxRuns }, schedule ?? scheduleOf(job), schedule !== undefined, now)),
  };
  return { changes, target, warnings: schedule?.warnings ?? [] };
}

/** Whom the keys of a cron job belong to. */
export function ownerOf(job: Pick<CronJobRow, "project_id" | "cron_id">): KeyOwner {
  return { projectId: job.project_id, ownerId: job.cron_id };
}

/** State and next fire time of a cron job that is to fire by schedule again. */
export function armed(job: CronJobRow, schedule: Schedule, now: Date): Pick<CronJobChanges, "state" | "next_run_at"> {
  const spent = job.max_runs !== null && job.run_count >= job.max_runs;
  const next = spent ? undefined : nextFireAt(schedule, now);
  return next === undefined ? { state: "completed", next_run_at: null } : { state: "active", next_run_at: next };
}

function nextOf(
  job: CronJobRow,
  schedule: Schedule,
  isNewSchedule: boolean,
  now: Date,
): Pick<CronJobChanges, "state" | "next_run_at"> {
  if (job.state === "paused") return {};
  const again = armed(job, schedule, now);
  // A fire time that is due must not be lost to a change of max_runs alone.
  const keepsNext = job.state === "active" && again.state === "active" && !isNewSchedule;
  return keepsNext ? {} : again;
}

function updatedSchedule(
  req: UpdateCronJobRequest,
  written: ReadonlySet<string>,
  job: CronJobRow & SchedulePolicies,
  now: Date,
): Schedule | undefined {
  if (!SCHEDULE_FIELDS.some((field) => written.has(field))) return undefined;
  const expression = written.has("cron_expr") ? (req.cronExpr ?? "") : job.cron_expr;
  // The stored zone may come from the prefix of the old expression, and a new prefix is not to be held against it.
  const storedZone = /^\s*(CRON_)?TZ=/i.test(expression) && written.has("cron_expr") ? "" : job.timezone;
  const timezone = written.has("timezone") ? (req.timezone ?? "") : storedZone;
  const given = { expression, timezone, seed: job.cron_id, rules: rulesOf(job) };
  return parseSchedule({ ...given, ...(written.has("cron_expr") && { now }) });
}

function bodyChanges(
  app: AppContext,
  req: UpdateCronJobRequest,
  written: ReadonlySet<string>,
  job: CronJobRow,
): Pick<CronJobChanges, "payload" | "content_type"> {
  if (!written.has("payload") && !written.has("content_type")) return {};
  const payload = written.has("payload") ? req.payload : (job.payload ?? undefined);
  const contentType = written.has("content_type")
    ? req.contentType || CRON_JOB_DEFAULTS.content_type
    : job.content_type;
  // Each may be at odds with the one that stays.
  if (payload !== undefined) checkPayload(app.limits, "payload", payload, contentType);
  return {
    content_type: contentType,
    ...(written.has("payload") && { payload: payload === undefined ? null : Buffer.from(payload) }),
  };
}

function webhookOf(app: AppContext, url: string): string | null {
  return url === "" ? null : checkTarget("on_failure_webhook", url, app.targets);
}
