import { admitProbe, type Breaker } from "./breaker.ts";
import { type Pace, rateAt, takeSlots } from "./pace.ts";

/** All that decides whether requests may go to an endpoint now. Instants are in milliseconds since 1970. */
export interface EndpointControl {
  readonly breaker: Breaker;
  /** Most requests under way at a time, on all nodes together. Null: no limit. */
  readonly maxConcurrency: number | null;
  /** Most requests a second, of all nodes together. Null: no limit. */
  readonly maxRate: number | null;
  readonly pace: Pace | null;
  /** Until then the receiver wants nothing. Null for never. */
  readonly pausedUntilMs: number | null;
  /** When the next request may go under the rate. */
  readonly nextSlotMs: number;
}

/** Requests that are asked for. */
export interface Wanted {
  readonly count: number;
  /** How many are under way already. Only looked at under a limit. */
  readonly running: number;
}

export interface Admission {
  /** How many may go, 0 up to the count. */
  readonly granted: number;
  /** The one that may go is a probe. */
  readonly probe: boolean;
  /** What has changed by that. */
  readonly changes: Partial<Pick<EndpointControl, "breaker" | "nextSlotMs">>;
  /** When it is worth asking again. */
  readonly readyAtMs: number;
}

/** How soon to look again for room under max_concurrency when nobody told of it, in milliseconds. */
const LOOK_AGAIN_MS = 1_000;
/** The end of the year 9999: a disabled endpoint is ready when somebody enables it. */
const NEVER_MS = 253_402_300_799_000;

/** How many of the wanted requests may go now. */
export function admit(control: EndpointControl, wanted: Wanted, nowMs: number): Admission {
  const { breaker, maxConcurrency, pausedUntilMs } = control;
  if (breaker.state === "disabled") return refused(NEVER_MS);
  if (pausedUntilMs !== null && nowMs < pausedUntilMs) return refused(pausedUntilMs);
  if (breaker.state !== "closed") {
    const probing = admitProbe(breaker, nowMs);
    if (probing === undefined) return refused(breaker.nextProbeAtMs ?? NEVER_MS);
    const changes = { breaker: probing };
    return { granted: 1, probe: true, changes, readyAtMs: probing.nextProbeAtMs ?? NEVER_MS };
  }

  const room = maxConcurrency === null ? wanted.count : Math.max(0, maxConcurrency - wanted.running);
  if (room === 0) return refused(nowMs + LOOK_AGAIN_MS);
  const rate = currentRate(control, nowMs);
  const count = Math.min(room, wanted.count);
  if (rate === undefined) {
    return { granted: count, probe: false, changes: {}, readyAtMs: nowMs + (count < wanted.count ? LOOK_AGAIN_MS : 0) };
  }
  const { granted, nextSlotMs } = takeSlots(control.nextSlotMs, rate, count, nowMs);
  return { granted, probe: false, changes: { nextSlotMs }, readyAtMs: Math.max(nowMs, nextSlotMs) };
}

/** Requests a second that an endpoint gets at most now; undefined without a limit. */
export function currentRate({ maxRate, pace }: Pick<EndpointControl, "maxRate" | "pace">, nowMs: number) {
  const paced = pace === null ? undefined : rateAt(pace, nowMs);
  if (maxRate === null) return paced;
  return paced === undefined ? maxRate : Math.min(maxRate, paced);
}

function refused(readyAtMs: number): Admission {
  return { granted: 0, probe: false, changes: {}, readyAtMs };
}
