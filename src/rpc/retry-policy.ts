import type { MessageInitShape } from "@bufbuild/protobuf";
import { RetryJitter, type RetryPolicy, type RetryPolicySchema } from "../../gen/scheduling/v1/retry_pb.js";
import type { Backoff } from "../domain/backoff.ts";
import { Refusal } from "../errors.ts";
import { storedName } from "./convert-run.ts";

const JITTERS = { full: RetryJitter.FULL, partial: RetryJitter.PARTIAL, none: RetryJitter.NONE } as const;

/** A formula of which nothing is said. */
const FORMULA = { baseSeconds: 5, factor: 2, capSeconds: 3_600 };

/**
 * The waits that a caller wants, as they are stored: the text of a Backoff, or null for the default.
 *
 * @throws Refusal FIELD_INVALID
 */
export function backoffToStore(policy: RetryPolicy | undefined): string | null {
  return policy === undefined ? null : JSON.stringify(toBackoff(policy));
}

/** The most retries of a cron job or task. */
const MAX_RETRIES = 10;

/** How many retries there are where nobody says: as many as a list has waits, or `usual`. */
export function defaultRetries(policy: RetryPolicy | undefined, usual: number): number {
  const waits = policy?.waitsSeconds.length ?? 0;
  return waits === 0 ? usual : Math.min(waits, MAX_RETRIES);
}

function toBackoff(policy: RetryPolicy): Backoff {
  const { waitsSeconds, baseSeconds, factor, capSeconds } = policy;
  const jitter = storedName(JITTERS, policy.jitter);
  if (waitsSeconds.length > 0) {
    for (const [field, value] of [
      ["base_seconds", baseSeconds],
      ["factor", factor],
      ["cap_seconds", capSeconds],
    ] as const) {
      if (value !== undefined) throw Refusal.field(`retry_policy.${field}`, "cannot come together with waits_seconds");
    }
    return { waitsMs: waitsSeconds.map((seconds) => seconds * 1_000), jitter: jitter ?? "partial" };
  }
  return {
    baseMs: (baseSeconds ?? FORMULA.baseSeconds) * 1_000,
    factor: factor ?? FORMULA.factor,
    capMs: (capSeconds ?? FORMULA.capSeconds) * 1_000,
    jitter: jitter ?? "full",
  };
}

/** Stored waits as callers see them. */
export function toRetryPolicy(backoff: Backoff): MessageInitShape<typeof RetryPolicySchema> {
  const jitter = JITTERS[backoff.jitter];
  if ("waitsMs" in backoff) return { waitsSeconds: backoff.waitsMs.map((ms) => ms / 1_000), jitter };
  return { baseSeconds: backoff.baseMs / 1_000, factor: backoff.factor, capSeconds: backoff.capMs / 1_000, jitter };
}
