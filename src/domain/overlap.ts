/**
 * What a fire does while earlier runs of the same cron job are live:
 * run beside them, be recorded as skipped, wait its turn, or cancel them and run.
 */
export type OverlapPolicy = "allow" | "skip" | "queue" | "cancel_previous";

/** Most runs that wait under `queue`; one more drops the oldest, which is recorded. */
export const MAX_QUEUED_RUNS = 100;

/** What to do with a new run. */
export type OverlapDecision =
  | { readonly kind: "start" }
  | { readonly kind: "skip" }
  /** `dropOldest`: the queue is full, so the run that has waited longest is to be recorded as skipped. */
  | { readonly kind: "enqueue"; readonly dropOldest: boolean }
  /** Cancel every live run, then start. */
  | { readonly kind: "cancel_previous" };

/**
 * Decides about a new run.
 *
 * @param liveCount runs of the job that have started and are not settled, those waiting for a retry included.
 * @param queuedCount runs of the job that wait for a live one under `queue`.
 */
export function decideOverlap(policy: OverlapPolicy, liveCount: number, queuedCount: number): OverlapDecision {
  switch (policy) {
    case "allow":
      return { kind: "start" };
    case "skip":
      return { kind: liveCount > 0 ? "skip" : "start" };
    case "queue":
      // A run must not overtake those that already wait.
      if (liveCount === 0 && queuedCount === 0) return { kind: "start" };
      return { kind: "enqueue", dropOldest: queuedCount >= MAX_QUEUED_RUNS };
    case "cancel_previous":
      return { kind: liveCount > 0 ? "cancel_previous" : "start" };
  }
}
