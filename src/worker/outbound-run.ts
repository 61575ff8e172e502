import type { RunKind } from "../db/schema.ts";
import { type Backoff, DEFAULT_BACKOFF, type RetryPolicy, WEBHOOK_POLICY } from "../domain/backoff.ts";
import { formatId } from "../domain/ids.ts";
import type { LeasedRun } from "../store/runs-leasing.ts";
import type { OutboundPost } from "../webhook/outbound-post.ts";

const EMPTY_BODY = Buffer.from("{}");

/**
 * The request of a run's attempt. Its webhook-id names what is told: the run, the same for every attempt and for replays of
 * it, or the message of a push that is made once more.
 */
export function outboundPost(run: LeasedRun, signal: AbortSignal): OutboundPost {
  const first = formatId("run", run.replayOf ?? run.runId);
  return {
    url: run.url,
    body: run.payload ?? EMPTY_BODY,
    contentType: run.payload === null ? "application/json" : run.contentType,
    headers: run.headers,
    about: {
      "run-id": formatId("run", run.runId),
      ...(run.cronId !== null && { "cron-id": formatId("cron", run.cronId) }),
      ...(run.taskId !== null && { "task-id": formatId("task", run.taskId) }),
      ...(run.subscriptionId !== null && { "subscription-id": formatId("sub", run.subscriptionId) }),
      attempt: `${run.attempt}`,
      "scheduled-at": run.fireAt.toISOString(),
      "effective-at": run.effectiveAt.toISOString(),
      "attempted-at": run.leasedAt.toISOString(),
      "lateness-ms": `${Math.max(0, run.leasedAt.getTime() - run.effectiveAt.getTime())}`,
      trigger: run.replayOf === null ? run.trigger : "replay",
      ...(run.replayOf !== null && { "replay-of": first }),
    },
    id: run.messageId === null ? first : formatId("msg", run.messageId),
    signers: run.signers,
    owner: { projectId: run.projectId, ownerId: run.cronId ?? run.taskId ?? run.subscriptionId ?? run.projectId },
    at: run.leasedAt,
    timeoutMs: run.timeoutSeconds * 1_000,
    signal,
  };
}

/** How often and how far apart failed attempts of a run are made again. Events have the waits of webhooks. */
export function retryPolicyOf(run: {
  readonly kind: RunKind;
  readonly retries: number;
  readonly backoff: Backoff | null;
}): RetryPolicy {
  if (run.kind === "callback") return WEBHOOK_POLICY;
  return { retries: run.retries, backoff: run.backoff ?? DEFAULT_BACKOFF };
}
