/** How often and how far apart failed attempts are made again. */
export interface RetryPolicy {
  /** Further attempts after the first; 0 or more. */
  readonly retries: number;
  /** The wait after the first attempt, before jitter. */
  readonly baseMs: number;
  /** The longest wait, jitter included. */
  readonly capMs: number;
}

/** Up to a fifth more or less, so that what failed together is not tried again together. */
const JITTER = 0.2;

/** Cron jobs and tasks: 5 s, 10 s, 20 s and so on, at most an hour. */
export const DEFAULT_RETRY_POLICY: RetryPolicy = { retries: 3, baseMs: 5_000, capMs: 3_600_000 };

/**
 * The waits after each failed push, eight attempts over about 28 hours: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h.
 * The schedule that Svix publishes for its webhooks.
 */
export const WEBHOOK_SCHEDULE_MS: readonly number[] = [
  5_000, 300_000, 1_800_000, 7_200_000, 18_000_000, 36_000_000, 36_000_000,
];

/**
 * The wait in milliseconds after `attempt` (1 is the first) has failed: base * 2^(attempt - 1), a fifth more or less,
 * at most the cap. Waits at the cap lie in the third below it, so that they are spread too.
 * Undefined when no retry is left. `random` gives numbers from 0 up to 1.
 */
export function backoffMs(
  policy: RetryPolicy,
  attempt: number,
  random: () => number = Math.random,
): number | undefined {
  if (attempt > policy.retries) return undefined;
  // 2^52 times a millisecond is already beyond every cap; more would end in Infinity.
  const waitMs = policy.baseMs * 2 ** Math.min(attempt - 1, 52);
  return jittered(Math.min(waitMs, policy.capMs / (1 + JITTER)), random);
}

/**
 * The wait in milliseconds after `attempt` (1 is the first) has failed, from a list of waits, a fifth more or less.
 * Undefined when the list is used up.
 */
export function scheduleMs(
  list: readonly number[],
  attempt: number,
  random: () => number = Math.random,
): number | undefined {
  const waitMs = list[attempt - 1];
  return waitMs === undefined ? undefined : jittered(waitMs, random);
}

/**
 * The wait when the receiver asked for one itself: the longer of both, but no more than `capMs` for its sake.
 * Undefined when no retry is left, whatever the receiver asks.
 */
export function honourRetryAfter(
  waitMs: number | undefined,
  retryAfterMs: number | undefined,
  capMs: number,
): number | undefined {
  if (waitMs === undefined || retryAfterMs === undefined) return waitMs;
  return Math.max(waitMs, Math.min(retryAfterMs, capMs));
}

function jittered(waitMs: number, random: () => number): number {
  return Math.round(waitMs * (1 - JITTER + 2 * JITTER * random()));
}
