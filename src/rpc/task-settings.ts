import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { ScheduleTaskRequest } from "../../gen/scheduling/v1/task_service_pb.js";
import { Refusal } from "../errors.ts";
import { type NewTask, TASK_DEFAULTS, type TaskMoment } from "../store/tasks.ts";
import { checkTarget } from "../webhook/target.ts";
import type { AppContext } from "./context.ts";
import { instantOf } from "./instant.ts";
import { checkPayload } from "./payload.ts";
import { backoffToStore, defaultRetries } from "./retry-policy.ts";
import { checkSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";

/** The task that a request describes. @throws Refusal FIELD_INVALID, TARGET_REFUSED, PAYLOAD_TOO_LARGE */
export function newTask(app: AppContext, projectId: string, req: ScheduleTaskRequest, moment: TaskMoment): NewTask {
  const contentType = req.contentType || TASK_DEFAULTS.content_type;
  if (req.payload !== undefined) checkPayload(app.limits, "payload", req.payload, contentType);
  checkSecret(req.secret);
  const { newId } = moment;
  return {
    project_id: projectId,
    task_id: newId,
    name: req.name,
    url: checkTarget("url", req.url, app.targets),
    payload: req.payload === undefined ? null : Buffer.from(req.payload),
    content_type: contentType,
    headers: JSON.stringify(headersToStore(app.vault, { projectId, ownerId: newId }, "headers", req.headers)),
    retries: req.retries ?? defaultRetries(req.retryPolicy, TASK_DEFAULTS.retries),
    backoff: backoffToStore(req.retryPolicy),
    timeout_seconds: req.timeoutSeconds ?? TASK_DEFAULTS.timeout_seconds,
    grace_seconds: req.graceSeconds ?? null,
    on_failure_webhook:
      req.onFailureWebhook === "" ? null : checkTarget("on_failure_webhook", req.onFailureWebhook, app.targets),
    labels: JSON.stringify(req.labels),
    debounce_key: req.debounce?.key ?? null,
    debounce_max_wait_seconds: req.debounce?.maxWaitSeconds ?? null,
    run_at: runAtOf(req, moment),
  };
}

/** When a task is to run. @throws Refusal FIELD_INVALID */
export function runAtOf(
  { runAt, delaySeconds }: { readonly runAt?: Timestamp | undefined; readonly delaySeconds?: number | undefined },
  { now, latest }: TaskMoment,
): Date {
  if (delaySeconds !== undefined) {
    if (runAt !== undefined) throw Refusal.field("delay_seconds", "cannot be given beside run_at");
    return new Date(now.getTime() + delaySeconds * 1_000);
  }
  if (runAt === undefined) throw Refusal.field("run_at", "is required, or delay_seconds in its place");
  const instant = instantOf("run_at", runAt);
  if (instant > latest) throw Refusal.field("run_at", "must be at most 10 years ahead");
  return instant;
}
