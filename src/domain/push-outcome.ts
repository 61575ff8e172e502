import { type Backoff, backoffMs, honourRetryAfter, longestWaitMs, WEBHOOK_POLICY } from "./backoff.ts";

/** Why a message was not taken by a subscription. */
export interface PushFailure {
  /** In a few words, as the tenant sees it. */
  readonly error: string;
  /** The least wait that the receiver asked for. */
  readonly retryAfterMs?: number | undefined;
  /** The exact wait that the receiver asked for. */
  readonly retryInMs?: number | undefined;
  /** The receiver wants no further attempt. */
  readonly permanent?: boolean | undefined;
}

/** What an attempt came to for one message: undefined is delivered; `cancelled` is no fault of the receiver. */
export type PushResult = PushFailure | "cancelled" | undefined;

/** What is to become of a message that was pushed. */
export type PushDecision =
  | { readonly kind: "ack" }
  /** Back, without a failure. */
  | { readonly kind: "release" }
  | { readonly kind: "retry"; readonly delaySeconds: number; readonly error: string }
  /** The group waits until somebody resumes it. */
  | { readonly kind: "park"; readonly error: string }
  | { readonly kind: "bury"; readonly error: string };

/** Why a message was not taken whose lease ran out: its node died, or could not record the outcome. */
export const LEASE_RAN_OUT = "the lease ran out";

/** What a message may do before it is given up. */
export interface PushRules {
  /** Failures of the message so far. */
  readonly failures: number;
  readonly maxRetries: number;
  /** How far apart its attempts are; null for the default. */
  readonly backoff: Backoff | null;
  /** What becomes of its group then. Undefined: it has none, and becomes a dead letter. */
  readonly groupPolicy: "block" | "skip" | "park" | undefined;
}

/** Decides what becomes of a message. `random` gives numbers from 0 up to 1. */
export function decidePush(result: PushResult, rules: PushRules, random: () => number = Math.random): PushDecision {
  if (result === undefined) return { kind: "ack" };
  if (result === "cancelled") return { kind: "release" };
  const { error } = result;
  const failures = rules.failures + 1;
  const isSpent = failures > rules.maxRetries && rules.groupPolicy !== "block";
  if (isSpent || result.permanent) {
    return { kind: rules.groupPolicy === "park" ? "park" : "bury", error };
  }
  const backoff = rules.backoff ?? WEBHOOK_POLICY.backoff;
  const waitMs =
    result.retryInMs ??
    honourRetryAfter(backoffMs(backoff, failures, random), result.retryAfterMs, longestWaitMs(backoff));
  return { kind: "retry", delaySeconds: Math.ceil(waitMs / 1_000), error };
}

/**
 * Whether a message is to be given up whose last lease ran out, and how; undefined when it may be tried again.
 * `rules.failures` counts that lease already.
 */
export function decideLost(rules: PushRules): Extract<PushDecision, { kind: "park" | "bury" }> | undefined {
  const decision = decidePush({ error: LEASE_RAN_OUT }, { ...rules, failures: rules.failures - 1 });
  return decision.kind === "park" || decision.kind === "bury" ? decision : undefined;
}
