import type { RunKind } from "../db/schema.ts";
import { DEFAULT_RETRY_POLICY, WEBHOOK_SCHEDULE_MS } from "../domain/backoff.ts";
import { formatId } from "../domain/ids.ts";
import type { RunRetryPolicy } from "../domain/run.ts";
import type { AttemptRecord } from "../store/run-attempts.ts";
import type { LeasedRun } from "../store/runs-leasing.ts";
import type { AttemptOutcome, OutboundPost } from "../webhook/post.ts";

const EMPTY_BODY = Buffer.from("{}");

/** The request of a run's attempt. Its webhook-id is the run's id, the same for every attempt. */
export function outboundPost(run: LeasedRun, signal: AbortSignal): OutboundPost {
  const id = formatId("run", run.runId);
  return {
    url: run.url,
    body: run.payload ?? EMPTY_BODY,
    contentType: run.payload === null ? "application/json" : run.contentType,
    headers: run.headers,
    about: {
      "run-id": id,
      ...(run.cronId !== null && { "cron-id": formatId("cron", run.cronId) }),
      ...(run.taskId !== null && { "task-id": formatId("task", run.taskId) }),
      attempt: `${run.attempt}`,
      "scheduled-at": run.fireAt.toISOString(),
      trigger: run.trigger,
    },
    id,
    secrets: [run.secret],
    timeoutMs: run.timeoutSeconds * 1_000,
    signal,
  };
}

/** How often and how far apart failed attempts of a run are made again. Failure events have the waits of webhooks. */
export function retryPolicyOf(run: { readonly kind: RunKind; readonly retries: number }): RunRetryPolicy {
  return run.kind === "callback" ? { waitsMs: WEBHOOK_SCHEDULE_MS } : { ...DEFAULT_RETRY_POLICY, retries: run.retries };
}

/** What is recorded of an attempt. */
export function attemptRecord(outcome: AttemptOutcome): AttemptRecord {
  if (outcome.kind === "failed") {
    return { responseStatus: null, error: outcome.error, durationMs: outcome.durationMs, responseBody: null };
  }
  return {
    responseStatus: outcome.status,
    error: outcome.kind === "delivered" ? null : "rejected",
    durationMs: outcome.durationMs,
    responseBody: Buffer.from(outcome.responseBody),
  };
}
