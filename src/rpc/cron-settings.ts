import type { CreateCronJobRequest, UpdateCronJobRequest } from "../../gen/scheduling/v1/cron_service_pb.js";
import type { CronJobRow } from "../db/schema.ts";
import { nextFireAt, parseSchedule, type Schedule } from "../domain/schedule.ts";
import { Refusal } from "../errors.ts";
import { CRON_JOB_DEFAULTS, type CronJobChanges, type NewCronJob } from "../store/cron-jobs.ts";
import { checkTarget } from "../webhook/target.ts";
import type { AppContext } from "./context.ts";
import { fromMisfirePolicy } from "./convert-cron.ts";
import { fromOverlapPolicy } from "./convert-run.ts";
import { checkPayload } from "./payload.ts";
import { checkSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";

const MAX_NAME_LENGTH = 256;

/**
 * The cron job that a request describes, with its first fire time, and what its schedule may surprise with.
 *
 * @param at the id of the new job and the instant it is created at.
 * @throws Refusal CRON_EXPR_INVALID, TIMEZONE_INVALID, TARGET_REFUSED, PAYLOAD_TOO_LARGE, FIELD_INVALID
 */
export function newCronJob(
  app: AppContext,
  projectId: string,
  req: CreateCronJobRequest,
  at: { readonly cronId: string; readonly now: Date },
): { readonly job: NewCronJob; readonly warnings: readonly string[] } {
  const schedule = parseSchedule({ expression: req.cronExpr, timezone: req.timezone, seed: at.cronId, now: at.now });
  const url = checkTarget("url", req.url, app.targets);
  const contentType = req.contentType || CRON_JOB_DEFAULTS.content_type;
  if (req.payload !== undefined) checkPayload(app.limits, "payload", req.payload, contentType);
  checkSecret(req.secret);
  const job: NewCronJob = {
    project_id: projectId,
    cron_id: at.cronId,
    name: req.name || nameOf(url),
    cron_expr: req.cronExpr,
    timezone: schedule.timezone,
    url,
    payload: req.payload === undefined ? null : Buffer.from(req.payload),
    content_type: contentType,
    headers: JSON.stringify(headersToStore("headers", req.headers)),
    secret: req.secret || null,
    retries: req.retries ?? CRON_JOB_DEFAULTS.retries,
    timeout_seconds: req.timeoutSeconds ?? CRON_JOB_DEFAULTS.timeout_seconds,
    overlap_policy: fromOverlapPolicy(req.overlapPolicy) ?? CRON_JOB_DEFAULTS.overlap_policy,
    max_runs: req.maxRuns ?? null,
    on_failure_webhook: webhookOf(app, req.onFailureWebhook),
    retention_days: req.retentionDays ?? CRON_JOB_DEFAULTS.retention_days,
    misfire_policy: fromMisfirePolicy(req.misfirePolicy) ?? CRON_JOB_DEFAULTS.misfire_policy,
    misfire_window_seconds: req.misfireWindowSeconds ?? CRON_JOB_DEFAULTS.misfire_window_seconds,
    next_run_at: nextFireAt(schedule, at.now) ?? null,
  };
  return { job, warnings: schedule.warnings };
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
): { readonly changes: CronJobChanges; readonly warnings: readonly string[] } {
  for (const [field, value] of [["cron_expr", req.cronExpr] as const, ["url", req.url] as const]) {
    if (written.has(field) && value === undefined) throw Refusal.field(field, "cannot be cleared");
  }
  if (written.has("secret")) checkSecret(req.secret ?? "");
  const schedule = updatedSchedule(req, written, job, now);
  const url = written.has("url") ? checkTarget("url", req.url ?? "", app.targets) : job.url;
  const maxRuns = written.has("max_runs") ? (req.maxRuns ?? null) : job.max_runs;
  const changes: CronJobChanges = {
    ...(written.has("name") && { name: req.name || nameOf(url) }),
    ...(written.has("cron_expr") && { cron_expr: req.cronExpr ?? job.cron_expr }),
    ...(schedule !== undefined && { timezone: schedule.timezone }),
    ...(written.has("url") && { url }),
    ...bodyChanges(app, req, written, job),
    ...(written.has("headers") && { headers: JSON.stringify(headersToStore("headers", req.headers)) }),
    ...(written.has("secret") && { secret: req.secret || null }),
    ...(written.has("retries") && { retries: req.retries ?? CRON_JOB_DEFAULTS.retries }),
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
    ...((schedule !== undefined || written.has("max_runs")) &&
      nextOf({ ...job, max_runs: maxRuns }, schedule ?? scheduleOf(job), schedule !== undefined, now)),
  };
  return { changes, warnings: schedule?.warnings ?? [] };
}

/** The schedule of a stored cron job. */
export function scheduleOf(job: Pick<CronJobRow, "cron_id" | "cron_expr" | "timezone">): Schedule {
  return parseSchedule({ expression: job.cron_expr, timezone: job.timezone, seed: job.cron_id });
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
  job: CronJobRow,
  now: Date,
): Schedule | undefined {
  if (!written.has("cron_expr") && !written.has("timezone")) return undefined;
  const expression = written.has("cron_expr") ? (req.cronExpr ?? "") : job.cron_expr;
  // The stored zone may come from the prefix of the old expression, and a new prefix is not to be held against it.
  const storedZone = /^\s*(CRON_)?TZ=/i.test(expression) && written.has("cron_expr") ? "" : job.timezone;
  const timezone = written.has("timezone") ? (req.timezone ?? "") : storedZone;
  return parseSchedule({ expression, timezone, seed: job.cron_id, ...(written.has("cron_expr") && { now }) });
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

/** Host and path of a URL, for people. */
function nameOf(url: string): string {
  const { host, pathname } = new URL(url);
  return `${host}${pathname === "/" ? "" : pathname}`.slice(0, MAX_NAME_LENGTH);
}
