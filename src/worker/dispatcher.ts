import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { type RunTransition, settle } from "../domain/run.ts";
import type { AttemptRecord } from "../store/run-attempts.ts";
import {
  dueRuns,
  expireTask,
  LEASE_MARGIN_SECONDS,
  type LeasedRun,
  leaseRuns,
  msUntilNextRun,
  type SettleOutcome,
  settleRun,
} from "../store/runs-leasing.ts";
import type { AttemptOutcome, Egress } from "../webhook/post.ts";
import type { TickResult } from "./loop.ts";
import { attemptRecord, outboundPost, retryPolicyOf } from "./outbound-run.ts";

export interface DispatcherOptions {
  readonly db: Db;
  readonly egress: Egress;
  readonly wakeups?: Wakeups;
  /** Told of what went wrong on our side with one run; the run itself is retried or left to the reaper. */
  readonly onError: (error: unknown, context: { readonly projectId: string; readonly runId: string }) => void;
  /** Most attempts of this node at a time. Default 64. */
  readonly concurrency?: number;
  /** How long disposal waits for attempts under way before it cuts them off, in milliseconds. Default 20 000. */
  readonly graceMs?: number;
  /** Jitter of retries: numbers from 0 up to 1. */
  readonly random?: () => number;
}

/** Makes the attempts of due runs of cron jobs, tasks and failure events. */
export interface Dispatcher extends AsyncDisposable {
  /**
   * Leases as many due runs as there is room for and starts their attempts, without waiting for their end. With no room
   * it waits until there is some.
   */
  tick(signal: AbortSignal): Promise<TickResult>;
  /** Resolves when no attempt is under way. */
  settled(): Promise<void>;
}

/** How long disposal waits for the last outcomes to be recorded, after attempts were cut off. */
const RECORD_MS = 2_000;
/** Waits between attempts to record an outcome; then it is tried every last one of them until the lease is over. */
const RECORD_RETRY_MS = [50, 200, 1_000, 5_000];

/** Opens a dispatcher. Disposing it waits for the attempts under way, for a time; what is left then, the reaper takes. */
export function createDispatcher({
  db,
  egress,
  wakeups,
  onError,
  concurrency = 64,
  graceMs = 20_000,
  random = Math.random,
}: DispatcherOptions): Dispatcher {
  const inFlight = new Set<Promise<void>>();
  const cut = new AbortController();
  const closed = new AbortController();
  let stopping = false;
  let ticking: Promise<unknown> = Promise.resolve();
  /** Replaced at the end of each attempt: a race over the attempts themselves would leave a trace on the slow ones. */
  let room = Promise.withResolvers<void>();

  function tick(signal: AbortSignal): Promise<TickResult> {
    const ticked = takeDue(signal);
    ticking = ticked.catch(() => {});
    return ticked;
  }

  async function takeDue(signal: AbortSignal): Promise<TickResult> {
    if (inFlight.size >= concurrency) await orAborted(room.promise, signal);
    if (signal.aborted || stopping) return { done: 0 };

    const due = await dueRuns(db, concurrency - inFlight.size);
    let done = 0;
    for (const [projectId, dueOfProject] of Map.groupBy(due, (run) => run.projectId)) {
      if (signal.aborted || stopping) break;
      for (const run of dueOfProject) {
        if (run.tooLate && run.taskId !== null && (await expireTask(db, run, run.taskId))) done++;
      }
      const inTime = dueOfProject.filter(({ tooLate }) => !tooLate);
      if (inTime.length === 0) continue;
      for (const run of await leaseRuns(db, projectId, inTime)) {
        done++;
        const attempt = make(run).finally(() => {
          inFlight.delete(attempt);
          room.resolve();
          room = Promise.withResolvers();
        });
        inFlight.add(attempt);
      }
    }
    return done > 0 ? { done } : { done, nextDueInMs: await msUntilNextRun(db) };
  }

  /** One attempt, from the dial to the record of its outcome. Never rejects. */
  async function make(run: LeasedRun): Promise<void> {
    const deadlineMs = performance.now() + (run.timeoutSeconds + LEASE_MARGIN_SECONDS) * 1_000;
    try {
      const outcome = await post(run);
      const transition = settle(run.attempt, outcome, retryPolicyOf(run), random);
      const settled = await record(run, transition, attemptRecord(outcome), deadlineMs);
      if (settled === "due") wakeups?.wake("runs");
    } catch (error) {
      onError(error, run);
    }
  }

  async function post(run: LeasedRun): Promise<AttemptOutcome> {
    try {
      return await egress.post(outboundPost(run, cut.signal));
    } catch (error) {
      // What was accepted from the caller cannot be sent: our fault, and still an attempt with an end.
      onError(error, run);
      return { kind: "failed", error: "request_invalid", detail: "the request could not be made", durationMs: 0 };
    }
  }

  /** Records an outcome, again and again while the database fails: it is known here only, until the lease ends. */
  async function record(
    run: LeasedRun,
    transition: RunTransition,
    attempt: AttemptRecord,
    deadlineMs: number,
  ): Promise<SettleOutcome> {
    for (let tries = 0; ; tries++) {
      try {
        return await settleRun(db, run, transition, attempt);
      } catch (error) {
        if (performance.now() >= deadlineMs || closed.signal.aborted) throw error;
        const waitMs = RECORD_RETRY_MS[Math.min(tries, RECORD_RETRY_MS.length - 1)];
        await delay(waitMs, undefined, { signal: closed.signal }).catch(() => {});
      }
    }
  }

  async function settled(): Promise<void> {
    while (inFlight.size > 0) await Promise.all(inFlight);
  }

  return {
    tick,
    settled,
    async [Symbol.asyncDispose]() {
      stopping = true;
      // A tick in hand may still be leasing what it then starts.
      await Promise.race([ticking, after(graceMs)]);
      if (inFlight.size > 0) await Promise.race([settled(), after(graceMs)]);
      cut.abort();
      if (inFlight.size > 0) await Promise.race([settled(), after(RECORD_MS)]);
      closed.abort();
    },
  };
}

function after(ms: number): Promise<void> {
  return delay(ms, undefined, { ref: false });
}

/** Resolves with the promise or when the signal aborts, and leaves no listener behind. */
async function orAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  const { promise: aborted, resolve } = Promise.withResolvers<void>();
  const onAbort = () => resolve();
  signal.addEventListener("abort", onAbort, { once: true });
  await Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", onAbort));
}
