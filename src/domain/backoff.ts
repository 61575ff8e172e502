/** How waits are spread, so that what failed together is not tried again together. */
export type Jitter =
  /** Anything from nothing to the wait. */
  | "full"
  /** A fifth more or less. */
  | "partial"
  | "none";

/** How far apart failed attempts are made again: after the waits of a list, or by a formula. */
export type Backoff =
  | {
      /** One wait or more, in milliseconds. The last is used again when the list is used up. */
      readonly waitsMs: readonly number[];
      readonly jitter: Jitter;
    }
  | {
      /** The wait after the first attempt, before jitter. */
      readonly baseMs: number;
      /** Each wait is as many times the one before; 1 or more. */
      readonly factor: number;
      /** The longest wait, jitter included. */
      readonly capMs: number;
      readonly jitter: Jitter;
    };

/** How often and how far apart failed attempts are made again. */
export interface RetryPolicy {
  /** Further attempts after the first; 0 or more. */
  readonly retries: number;
  readonly backoff: Backoff;
}

/** Cron jobs and tasks whose owner chose nothing: 5 s, 10 s, 20 s and so on, at most an hour, a fifth more or less. */
export const DEFAULT_BACKOFF: Backoff = { baseMs: 5_000, factor: 2, capMs: 3_600_000, jitter: "partial" };

/**
 * Pushes and events: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h, a fifth more or less, the schedule that Svix publishes for
 * its webhooks. As the policy of an event: eight attempts over about 28 hours.
 */
export const WEBHOOK_POLICY = {
  retries: 7,
  backoff: {
    waitsMs: [5_000, 300_000, 1_800_000, 7_200_000, 18_000_000, 36_000_000, 36_000_000],
    jitter: "partial",
  },
} as const satisfies RetryPolicy;

const PARTIAL = 0.2;

/**
 * The wait in milliseconds after `attempt` (1 is the first) has failed. By a formula: base * factor^(attempt - 1), at most
 * the cap; where a fifth more or less would pass it, the wait lies in the third below the cap, so that waits there are
 * spread too. `random` gives numbers from 0 up to 1.
 */
export function backoffMs(backoff: Backoff, attempt: number, random: () => number = Math.random): number {
  if ("waitsMs" in backoff) {
    return jittered(backoff.waitsMs[Math.min(attempt, backoff.waitsMs.length) - 1] ?? 0, backoff.jitter, random);
  }
  const { baseMs, factor, capMs, jitter } = backoff;
  // More steps would end in Infinity, and in NaN where the base is 0; every cap lies far below.
  const waitMs = baseMs * Math.min(factor ** Math.min(attempt - 1, 1_000), 2 ** 52);
  const longestMs = jitter === "partial" ? capMs / (1 + PARTIAL) : capMs;
  return jittered(Math.min(waitMs, longestMs), jitter, random);
}

/** The longest wait of a policy in milliseconds, jitter left out: no receiver can ask for more in Retry-After. */
export function longestWaitMs(backoff: Backoff): number {
  return "waitsMs" in backoff ? Math.max(...backoff.waitsMs) : backoff.capMs;
}

/** The wait when the receiver asked for one itself: the longer of both, but no more than `capMs` for its sake. */
export function honourRetryAfter(waitMs: number, retryAfterMs: number | undefined, capMs: number): number {
  return retryAfterMs === undefined ? waitMs : Math.max(waitMs, Math.min(retryAfterMs, capMs));
}

function jittered(waitMs: number, jitter: Jitter, random: () => number): number {
  switch (jitter) {
    case "none":
      return Math.round(waitMs);
    case "partial":
      return Math.round(waitMs * (1 - PARTIAL + 2 * PARTIAL * random()));
    case "full":
      return Math.round(waitMs * random());
  }
}
