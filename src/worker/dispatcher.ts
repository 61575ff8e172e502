import { setTimeout as delay } from "node:timers/promises";
import { Batcher } from "../db/batcher.ts";
import type { Db } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { endpointOf } from "../domain/endpoint.ts";
import { type Room, type Standing, share } from "../domain/fair-share.ts";
import { type RunTransition, settle } from "../domain/run.ts";
import { releaseRoom } from "../store/endpoint-admission.ts";
import type { AttemptRecord } from "../store/run-attempts.ts";
import { expireRun } from "../store/run-expiry.ts";
import { type DeliveredAttempt, settleDelivered } from "../store/runs-delivered.ts";
import { type DueRun, dueRuns, msUntilNextRun } from "../store/runs-due.ts";
import { LEASE_MARGIN_SECONDS, type LeasedRun, leaseRuns } from "../store/runs-leasing.ts";
import { clearParked, parkRuns } from "../store/runs-parking.ts";
import { type SettleOutcome, settleRun } from "../store/runs-settling.ts";
import { attemptRecord } from "../webhook/attempt-record.ts";
import type { AttemptOutcome, Egress } from "../webhook/post.ts";
import { type EndpointWatch, flightEnd } from "./endpoint-watch.ts";
import { Horizon } from "./horizon.ts";
import { type Flight, type FlightEnd, InFlight } from "./in-flight.ts";
import type { TickResult } from "./loop.ts";
import { outboundPost, retryPolicyOf } from "./outbound-run.ts";
import { Pacer } from "./pacer.ts";

export interface DispatcherOptions {
  readonly db: Db;
  readonly egress: Egress;
  /** Told how every attempt ended. */
  readonly watch: EndpointWatch;
  readonly wakeups?: Wakeups;
  /** Told of what went wrong on our side with one run; the run itself is retried or left to the reaper. */
  readonly onError: (error: unknown, context: { readonly projectId: string; readonly runId: string }) => void;
  /** Most quick attempts of this node at a time; slow ones count apart, see InFlight. Default 64. */
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
   * it waits until there is some. What is due for an endpoint that takes no more, and is in the way of others, is set apart, so
   * that the next tick does not meet it again.
   */
  tick(signal: AbortSignal): Promise<TickResult>;
  /** Attempts under way. */
  readonly size: number;
  /** Resolves when no attempt is under way. */
  settled(): Promise<void>;
}

/** Due runs that are looked at beside one for each that there is room for. */
const WINDOW = 20;
/** How long a tick waits for more room than a little, in milliseconds: runs are leased in steps rather than one by one. */
const GATHER_MS = 10;
/** Requests that are begun in one turn of the event loop. */
const STARTS_PER_TURN = 8;
/** Most outcomes that wait to be recorded, in multiples of the quick attempts; while there are more, nothing is leased. */
const UNRECORDED_SHARE = 4;
/** How long disposal waits for the last outcomes to be recorded, after attempts were cut off. */
const RECORD_MS = 2_000;
/** Most deliveries, and most bytes of answers, that one transaction settles. */
const MAX_SETTLED = 200;
const MAX_SETTLED_BYTES = 1_048_576;
/** What a delivery counts towards those bytes beside the answer's body. */
const RECORD_BYTES = 1_024;
/** Waits between attempts to record an outcome; then it is tried every last one of them until the lease is over. */
const RECORD_RETRY_MS = [50, 200, 1_000, 5_000];

/** Opens a dispatcher. Disposing it waits for the attempts under way, for a time; what is left then, the reaper takes. */
export function createDispatcher({
  db,
  egress,
  watch,
  wakeups,
  onError,
  concurrency = 64,
  graceMs = 20_000,
  random = Math.random,
}: DispatcherOptions): Dispatcher {
  const attempts = new Set<Promise<void>>();
  const flying = new InFlight(concurrency);
  const pacer = new Pacer(STARTS_PER_TURN);
  const horizon = new Horizon();
  const deliveries = new Batcher<string, DeliveredAttempt, SettleOutcome>({
    run: (projectId, delivered) => settleDelivered(db, projectId, delivered),
    weigh: ({ record }) => RECORD_BYTES + (record.responseBody?.byteLength ?? 0),
    maxWeight: MAX_SETTLED_BYTES,
    maxItems: MAX_SETTLED,
  });
  const cut = new AbortController();
  const closed = new AbortController();
  /** What the newest look found too little room for. */
  let scarce: ReadonlySet<Standing> = new Set();
  let stopping = false;
  let ticking: Promise<unknown> = Promise.resolve();

  function tick(signal: AbortSignal): Promise<TickResult> {
    const ticked = takeDue(signal);
    ticking = ticked.catch(() => {});
    return ticked;
  }

  async function takeDue(signal: AbortSignal): Promise<TickResult> {
    const room = await untilRecordedAndRoom(signal);
    if (signal.aborted || stopping) return { done: 0 };

    const full = flying.full();
    const window = room.proven + WINDOW;
    const beyond = horizon.ahead();
    const found = await dueRuns(db, { limit: window, parkedLimit: window, full, beyond });
    const { runs, more, emptied } = found;
    for (const [projectId, endpoints] of Map.groupBy(emptied, (endpoint) => endpoint.projectId)) {
      const endpointIds = endpoints.map(({ endpointId }) => endpointId);
      await clearParked(db, projectId, endpointIds);
    }
    let done = 0;
    for (const run of runs) {
      if (run.tooLate && (await expireRun(db, run))) done++;
    }
    const inTime = runs.filter(({ tooLate }) => !tooLate);
    const shares = share(
      inTime,
      (run) => flying.loadOf(run),
      (projectId) => flying.busyOf(projectId),
      room,
    );
    scarce = shares.scarce;
    const hasTaken = shares.chosen.some((run) => run.beyond);
    horizon.note(found, beyond !== undefined, hasTaken);
    // Runs of a full endpoint are in the way only where others may be behind them, or where nothing else is to do.
    const crowding = more || shares.chosen.length === 0 ? shares.full.filter((run) => !run.beyond) : [];
    done += await setApart([...shares.blocked, ...crowding]);
    for (const [projectId, chosen] of Map.groupBy(shares.chosen, (run) => run.projectId)) {
      if (signal.aborted || stopping) break;
      for (const run of await leaseRuns(db, projectId, chosen)) {
        done++;
        start(run);
      }
    }
    return done > 0 ? { done } : { done, nextDueInMs: await msUntilNextRun(db, full) };
  }

  /** The room that there is, once few enough outcomes wait to be recorded: an answer that makes room is one more of them. */
  async function untilRecordedAndRoom(signal: AbortSignal): Promise<Room> {
    for (;;) {
      const room = await untilRoom(signal);
      if (attempts.size - flying.size < UNRECORDED_SHARE * concurrency || signal.aborted) return room;
      await orAborted(Promise.race(attempts), signal);
    }
  }

  /** The room that there is, once there is some, and more than a little of what is scarce unless that takes long. */
  async function untilRoom(signal: AbortSignal): Promise<Room> {
    for (let gathering: number | undefined; ; ) {
      const room = flying.room();
      const most = scarce.size === 0 ? room.proven : Math.max(...[...scarce].map((standing) => room[standing]));
      if (most >= concurrency / 4 || signal.aborted) return room;
      const waited = performance.now() - (gathering ?? Number.POSITIVE_INFINITY);
      if (waited >= GATHER_MS) return room;
      if (room.proven > 0) gathering ??= performance.now();
      const timer = new AbortController();
      const waitMs = room.proven > 0 ? GATHER_MS - Math.max(0, waited) : flying.msUntilSlow();
      const late = delay(waitMs, undefined, { signal: timer.signal }).catch(() => {});
      await orAborted(Promise.race([flying.changed, late]), signal);
      timer.abort();
    }
  }

  /** Sets runs apart with their endpoints, and says how many. */
  async function setApart(runs: readonly DueRun[]): Promise<number> {
    const unparked = runs.filter(({ parked }) => !parked);
    for (const [projectId, ofProject] of Map.groupBy(unparked, (run) => run.projectId)) {
      const addressed = ofProject.map((run) => ({ ...run, address: flying.addressOf(projectId, run.endpointId) }));
      await db.transaction().execute((trx) => parkRuns(trx, projectId, addressed));
    }
    return unparked.length;
  }

  function start(run: LeasedRun): void {
    const { endpointId, address } = endpointOf(run.url);
    const flight = flying.start(run.projectId, endpointId, address);
    const attempt = make(run, flight).finally(() => {
      attempts.delete(attempt);
      end(flight, "neither", 0);
    });
    attempts.add(attempt);
  }

  /** Frees the place of an attempt for what waits for it. */
  function end(flight: Flight, how: FlightEnd, tookMs: number): void {
    if (flight.end(how, tookMs) || scarce.size > 0) wakeups?.wakeHere("runs");
  }

  /** One attempt, from the dial to the record of its outcome. Never rejects. */
  async function make(run: LeasedRun, flight: Flight): Promise<void> {
    const deadlineMs = performance.now() + (run.timeoutSeconds + LEASE_MARGIN_SECONDS) * 1_000;
    try {
      await pacer.turn();
      const outcome = await post(run);
      // The place is free while the outcome is being recorded.
      end(flight, flightEnd(outcome), outcome.durationMs);
      const transition = settle(run.attempt, outcome, retryPolicyOf(run), random);
      const settled = await record(run, transition, attemptRecord(outcome), deadlineMs);
      if (settled === "due") wakeups?.wake("runs");
      watch.note({ ...run, outcome, spentPercent: spentPercentOf(run, transition) });
      if (run.guarded) await makeRoom(run);
    } catch (error) {
      onError(error, run);
    }
  }

  /** Tells those who wait for the end of an attempt to an endpoint with a limit. */
  async function makeRoom({ projectId, url }: LeasedRun): Promise<void> {
    const waited = await releaseRoom(db, projectId, [endpointOf(url).endpointId]);
    wakeups?.wake("runs");
    if (waited) wakeups?.wake("pushes");
  }

  async function post(run: LeasedRun): Promise<AttemptOutcome> {
    try {
      return await egress.post(outboundPost(run, cut.signal));
    } catch (error) {
      // What was accepted from the caller cannot be sent: our fault, and still an attempt with an end.
      onError(error, run);
      return {
        kind: "failed",
        error: "request_invalid",
        detail: "the request could not be made",
        durationMs: 0,
        timings: {},
        requestHeaders: {},
      };
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
        return await recordOnce(run, transition, attempt);
      } catch (error) {
        if (performance.now() >= deadlineMs || closed.signal.aborted) throw error;
        const waitMs = RECORD_RETRY_MS[Math.min(tries, RECORD_RETRY_MS.length - 1)];
        await delay(waitMs, undefined, { signal: closed.signal }).catch(() => {});
      }
    }
  }

  /** What was delivered is settled with what else is delivered meanwhile. */
  function recordOnce(run: LeasedRun, transition: RunTransition, record: AttemptRecord): Promise<SettleOutcome> {
    const responseStatus = transition.to === "succeeded" ? transition.responseStatus : null;
    if (responseStatus === null || record.disable) return settleRun(db, run, transition, record);
    return deliveries.add(run.projectId, run.projectId, { run, responseStatus, record });
  }

  async function settled(): Promise<void> {
    while (attempts.size > 0) await Promise.all(attempts);
  }

  return {
    tick,
    settled,
    get size() {
      return attempts.size;
    },
    async [Symbol.asyncDispose]() {
      stopping = true;
      // A tick in hand may still be leasing what it then starts.
      await Promise.race([ticking, after(graceMs)]);
      if (attempts.size > 0) await Promise.race([settled(), after(graceMs)]);
      cut.abort();
      if (attempts.size > 0) await Promise.race([settled(), after(RECORD_MS)]);
      closed.abort();
    },
  };
}

/** How much of a run's attempts a failed one has spent. Of a callback nobody is told, since telling is what failed. */
function spentPercentOf(run: LeasedRun, transition: RunTransition): number {
  if (transition.to === "succeeded" || run.kind === "callback") return 0;
  return transition.to === "failed" ? 100 : Math.floor((100 * run.attempt) / (run.retries + 1));
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
