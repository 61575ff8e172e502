import { backoffMs, honourRetryAfter, type RetryPolicy, scheduleMs } from "./backoff.ts";

/** What became of one attempt, as far as the run is concerned. */
export type AttemptResult =
  | { readonly kind: "delivered"; readonly status: number }
  | {
      readonly kind: "rejected";
      readonly status: number;
      /** What the receiver asked for in Retry-After. */
      readonly retryAfterMs?: number;
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

/** How failed attempts are made again: by a formula, or after the waits of a list, in milliseconds. */
export type RunRetryPolicy = RetryPolicy | { readonly waitsMs: readonly number[] };

/**
 * A change to a run, as a value; `applyTransition` of store/runs.ts carries it out. `responseStatus` is that of the
 * newest attempt, null when no answer came, and undefined where there was no attempt.
 */
export type RunTransition =
  | { readonly to: "succeeded"; readonly responseStatus: number }
  | {
      readonly to: "retrying";
      /** From now to the next attempt. */
      readonly waitMs: number;
      readonly error: string;
      readonly responseStatus: number | null;
    }
  | {
      readonly to: "failed" | "canceled" | "skipped" | "expired";
      readonly error: string;
      readonly responseStatus?: number | null;
    };

/** Reasons that a run carries when no attempt is to blame. */
export const RUN_ERRORS = {
  skipped: "an earlier run was still live",
  queueFull: "too many runs were waiting for their turn",
  gaveWay: "gave way to the next fire time",
  replaced: "canceled for a newer run by the overlap policy",
  jobDeleted: "the cron job was deleted",
  taskCanceled: "the task was canceled",
  expired: "expired",
  leaseExpired: "lease_expired",
} as const;

/**
 * Decides what follows attempt number `attempt` (the first is 1): success, another attempt, or failure when the retries
 * are used up or the receiver answered 410. An attempt that this server cut off in order to stop is no fault of the
 * target: it is made again at once, even when it was the last. A Retry-After makes a wait longer, up to the policy's longest.
 * `random` gives numbers from 0 up to 1.
 */
export function settle(
  attempt: number,
  result: AttemptResult,
  policy: RunRetryPolicy,
  random: () => number = Math.random,
): RunTransition {
  if (result.kind === "delivered") return { to: "succeeded", responseStatus: result.status };

  const responseStatus = result.kind === "rejected" ? result.status : null;
  const error = errorText(result);
  if (result.kind === "failed" && result.error === "cancelled") {
    return { to: "retrying", waitMs: 0, error, responseStatus };
  }
  const byList = "waitsMs" in policy;
  const waitMs = byList ? scheduleMs(policy.waitsMs, attempt, random) : backoffMs(policy, attempt, random);
  const capMs = byList ? Math.max(...policy.waitsMs) : policy.capMs;
  const askedMs = result.kind === "rejected" ? result.retryAfterMs : undefined;
  const nextMs = honourRetryAfter(waitMs, askedMs, capMs);
  if (nextMs === undefined || (result.kind === "rejected" && result.permanent)) {
    return { to: "failed", error, responseStatus };
  }
  return { to: "retrying", waitMs: nextMs, error, responseStatus };
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
 * Whether a task that was to start at `fireAt` is too late to start at `now`. Counted in whole seconds, so that a grace
 * of 0 leaves a second for the way to the server and through it.
 */
export function isTooLate(fireAt: Date, now: Date, graceSeconds: number | null): boolean {
  return graceSeconds !== null && Math.floor((now.getTime() - fireAt.getTime()) / 1_000) > graceSeconds;
}
