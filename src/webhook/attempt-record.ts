import type { AttemptOutcome } from "./post.ts";
import type { Timings } from "./timings.ts";

/** What is recorded of an attempt. */
export interface AttemptRecord {
  /** Null when no answer came. */
  readonly responseStatus: number | null;
  /** Class of the failure; null after a 2xx. */
  readonly error: string | null;
  readonly durationMs: number;
  readonly timings: Timings;
  readonly requestHeaders: Readonly<Record<string, string>>;
  readonly responseHeaders: Readonly<Record<string, string>> | null;
  readonly responseBody: Buffer | null;
  readonly disable: boolean;
}

/** The record of an attempt. */
export function attemptRecord(outcome: AttemptOutcome): AttemptRecord {
  const { durationMs, timings, requestHeaders } = outcome;
  const attempted = { durationMs, timings, requestHeaders };
  if (outcome.kind === "failed") {
    const { error } = outcome;
    return { ...attempted, responseStatus: null, error, responseHeaders: null, responseBody: null, disable: false };
  }
  return {
    ...attempted,
    responseStatus: outcome.status,
    error: outcome.kind === "delivered" ? null : "rejected",
    responseHeaders: outcome.responseHeaders,
    responseBody: Buffer.from(outcome.responseBody),
    disable: outcome.disable,
  };
}
