import { setTimeout as delay } from "node:timers/promises";
import type { Db } from "../db/schema.ts";
import { moveClock } from "../db/virtual-clock.ts";
import type { MoveBounds, MovedClock } from "../domain/clock-move.ts";
import { isDue, lookAhead, nextInstant, type WorkAhead } from "../store/due-work.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { EndpointWatch } from "./endpoint-watch.ts";
import type { Loop, TickResult } from "./loop.ts";
import type { Pusher } from "./pusher.ts";

/** Work that comes due, by the names of what is looked for. */
const DUE = ["crons", "runs", "leases", "redrives", "replays", "backfills"] as const;
/** Wait while something is due that nobody can take at this moment, in milliseconds. */
const HELD_MS = 10;

export interface ClockMoverOptions {
  readonly db: Db;
  /** The loops that see to what is due. */
  readonly loops: Readonly<Record<(typeof DUE)[number] | "pushes", Loop>>;
  /** Loops that see to what ends by time and that nothing waits for, so that they look once, at the end of a move. */
  readonly reapers: readonly Loop[];
  readonly dispatcher: Dispatcher;
  readonly pusher: Pusher;
  readonly watch: EndpointWatch;
}

/**
 * Moves a virtual clock from one instant at which something is due to the next, and at each of them waits until the workers
 * of this process, which is alone, have done all that is due, the requests to receivers included.
 */
export class ClockMover {
  readonly #options: ClockMoverOptions;
  #moving = false;
  /** The newest instant at which all was done. */
  #settledAt: Date | undefined;

  constructor(options: ClockMoverOptions) {
    this.#options = options;
  }

  /**
   * Moves the clock up to the target, which is asked for with the instant now and may throw. Undefined while another call
   * moves it.
   */
  async move(targetOf: (now: Date) => Date, bounds: MoveBounds): Promise<MovedClock | undefined> {
    if (this.#moving) return undefined;
    this.#moving = true;
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), bounds.withinMs);
    // What they would look for between the steps is looked for here, for all of them.
    const releases = Object.values(this.#options.loops).map((loop) => loop.hold());
    try {
      return await this.#move(targetOf, bounds.maxSteps, AbortSignal.any([late.signal, bounds.signal]));
    } finally {
      clearTimeout(timer);
      for (const release of releases) release();
      this.#moving = false;
    }
  }

  async #move(targetOf: (now: Date) => Date, maxSteps: number, end: AbortSignal): Promise<MovedClock> {
    const { db, reapers } = this.#options;
    const { now } = await lookAhead(db);
    const target = targetOf(now);
    const startsAt = this.#settledAt ?? now;
    this.#settledAt = startsAt;
    let steps = 0;
    let ahead = await this.#settle(end);
    while (ahead !== undefined && ahead.now < target && steps < maxSteps && !end.aborted) {
      const next = nextInstant(ahead);
      const hasNext = next !== undefined && next <= target;
      const at = hasNext ? next : target;
      await moveClock(db, at);
      if (hasNext) steps++;
      ahead = await this.#settle(end, { ...ahead, now: at });
    }
    if (ahead !== undefined && ahead.now >= target) {
      const passed = await unlessAborted(Promise.all(reapers.map((loop) => loop.pass())), end);
      ahead = passed && (await this.#settle(end));
    }
    const settled = ahead !== undefined;
    // What is due now may not have fired.
    const passed = [startsAt, this.#settledAt] as const;
    const last = ahead ?? (await lookAhead(db));
    const reached = settled && last.now >= target;
    return { now: last.now, passed, reached, settled, steps, nextAt: nextInstant(last) };
  }

  /**
   * Has the workers do what is due now. Returns what is to come, or undefined when the signal aborts before it is done.
   *
   * @param known what is known to be due, if anything.
   */
  async #settle(end: AbortSignal, known?: WorkAhead): Promise<WorkAhead | undefined> {
    const { db, dispatcher, pusher } = this.#options;
    // Whether something can be pushed the pusher alone knows.
    let mayPush = true;
    for (let found = known; !end.aborted; found = undefined) {
      const ahead: WorkAhead = found ?? (await lookAhead(db));
      const due = DUE.filter((name) => isDue(ahead, name));
      const isPushing: boolean = ahead.isPushing && mayPush;
      const isIdle = due.length === 0 && !isPushing && dispatcher.size === 0 && pusher.size === 0;
      if (isIdle && found !== undefined) continue;
      if (isIdle) {
        this.#settledAt = ahead.now;
        return ahead;
      }
      const done: number | undefined = await unlessAborted(this.#round(due, isPushing), end);
      if (done === undefined) return undefined;
      mayPush = done > 0;
      if (done === 0 && due.length > 0) await delay(HELD_MS, undefined, { signal: end }).catch(() => {});
    }
    return undefined;
  }

  /** One look of the workers, up to the end of what they start by it. Returns how much they did. */
  async #round(due: readonly (typeof DUE)[number][], isPushing: boolean): Promise<number> {
    const { loops, dispatcher, pusher, watch } = this.#options;
    const fired = due.includes("crons") ? await loops.crons.pass() : undefined;
    // What has fired is due, without another look at what is.
    const names = new Set(fired === undefined ? due : [...due, "runs" as const]).difference(new Set(["crons"]));
    const passes: Promise<TickResult>[] = [...names].map((name) => loops[name].pass());
    if (isPushing) passes.push(loops.pushes.pass());
    const results = await Promise.all(passes);
    const underWay = dispatcher.size + pusher.size;
    await Promise.all([dispatcher.settled(), pusher.settled()]);
    // The health of endpoints is counted by the time at which it is written down.
    await watch.flush();
    return [...results, ...(fired ? [fired] : [])].reduce((sum, { done }) => sum + done, underWay);
  }
}

/** What the promise gives; undefined when the signal aborts before, and what becomes of the promise is nobody's then. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  promise.catch(() => {});
  const { promise: aborted, resolve } = Promise.withResolvers<undefined>();
  const onAbort = () => resolve(undefined);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", onAbort));
}
