import { backoffMs, honourRetryAfter, longestWaitMs, type RetryPolicy } from "./backoff.ts";

/** What became of one attempt, as far as the run is concerned. */
export type AttemptResult =
  | { readonly kind: "delivered"; readonly status: number }
  | {
      readonly kind: "rejected";
      readonly status: number;
      /** The least wait that the receiver asked for. */
      readonly retryAfterMs?: number;
      /** The exact wait that the receiver asked for. */
      readonly retryInMs?: number;
      /** The receiver wants no more of these, so that no retry is made. */
      readonly permanent: boolean;
    }
  | {
      readonly kind: "failed";
      /** Class of the failure. */
      readonly error: string;
      /** The same in words. */
      readonly detail?: string;
    };

/**
 * A change to a run, as a value; `applyTransition` of store/runs.ts carries it out. `responseStatus` is that of the
 * newest attempt, null when no answer came, and undefined where there was no attempt.
 */
export type RunTransition =
  | { readonly to: "succeeded" /** Null where a ping told of it. */; readonly responseStatus: number | null }
  | {
      readonly to: "retrying";
      /** From now to the next attempt. */
      readonly waitMs: number;
      readonly error: string;
      readonly responseStatus: number | null;
    }
  | {
      readonly to: "failed" | "canceled" | "skipped" | "missed" | "expired";
      readonly error: string;
      readonly responseStatus?: number | null;
    };

/** Reasons that a run carries when no attempt is to blame. */
export const RUN_ERRORS = {
  skipped: "an earlier run was still live",
  dstGap: "a clock change skipped this local time",
  paused: "the cron job was paused",
  maxRuns: "max_runs was reached",
  queueFull: "too many runs were waiting for their turn",
  gaveWay: "gave way to the next fire time",
  replaced: "canceled for a newer run by the overlap policy",
  jobDeleted: "the cron job was deleted",
  taskCanceled: "the task was canceled",
  webhookGone: "the webhook was deleted or disabled",
  expired: "expired",
  leaseExpired: "lease_expired",
  /** Followed by its name. */
  noQueue: "there is no queue",
  noPing: "no ping came in time",
  noEnd: "no ping told of its end in time",
  startedAnew: "another start came before its end",
  toldFailed: "the job said that it failed",
} as const;

/**
 * Decides what follows attempt number `attempt` (the first is 1): success, another attempt, or failure when the retries
 * are used up or the receiver wants no more. An attempt that this server cut off in order to stop is no fault of the
 * target: it is made again at once, even when it was the last. A Retry-After makes a wait longer, up to the policy's
 * longest; an instant that the receiver named takes its place.
 * `random` gives numbers from 0 up to 1.
 */
export function settle(
  attempt: number,
  result: AttemptResult,
  { retries, backoff }: RetryPolicy,
  random: () => number = Math.random,
): RunTransition {
  if (result.kind === "delivered") return { to: "succeeded", responseStatus: result.status };

  const error = errorText(result);
  if (result.kind === "failed") {
    if (result.error === "cancelled") return { to: "retrying", waitMs: 0, error, responseStatus: null };
    if (attempt > retries) return { to: "failed", error, responseStatus: null };
    return { to: "retrying", waitMs: backoffMs(backoff, attempt, random), error, responseStatus: null };
  }
  const responseStatus = result.status;
  if (result.permanent || attempt > retries) return { to: "failed", error, responseStatus };
  const waitMs =
    result.retryInMs ??
    honourRetryAfter(backoffMs(backoff, attempt, random), result.retryAfterMs, longestWaitMs(backoff));
  return { to: "retrying", waitMs, error, responseStatus };
}

/** The transition of a run whose job or task was called off while an attempt was under way: it is not retried. */
export function withoutRetry(transition: RunTransition, error: string): RunTransition {
  if (transition.to !== "retrying") return transition;
  return { to: "canceled", error, responseStatus: transition.responseStatus };
}

function errorText(result: Exclude<AttemptResult, { kind: "delivered" }>): string {
  if (result.kind === "rejected") return `HTTP ${result.status}`;
  return result.detail === undefined ? result.error : `${result.error}: ${result.detail}`;
}

/** How long finished runs of tasks and of failure webhooks are kept, in days. */
export const DEFAULT_RETENTION_DAYS = 30;

/** How long a finished run is kept, in seconds: an hour for 0 days, null (for ever) for -1. */
export function retentionSeconds(days: number): number | null {
  if (days < 0) return null;
  return days === 0 ? 3_600 : days * 86_400;
}

/**
 * The instant from which on a task that is to start at `fireAt` is too late to start; null for never. Lateness is counted in
 * whole seconds, so that a grace of 0 leaves a second for the way to the server and through it.
 */
export function startBy(fireAt: Date, graceSeconds: number | null): Date | null {
  return graceSeconds === null ? null : new Date(fireAt.getTime() + (graceSeconds + 1) * 1_000);
}
