/**
 * A pace that an endpoint is held to and that rises by itself: after an outage, so that what has piled up does not come
 * all at once, and after the receiver has said that it gets too much.
 */
export interface Pace {
  /** Requests a second at the start. */
  readonly startRate: number;
  /** When it started, in milliseconds since 1970. */
  readonly sinceMs: number;
}

/** In this time a pace gains once more what it started with, in milliseconds. */
const DOUBLING_MS = 60_000;
/** A pace ends after this time, once nothing waits; it has risen to twice its start then. In milliseconds. */
const SHORTEST_MS = 60_000;
/** A ramp starts with this part of the backlog a second, which drains it in 52 seconds unless more comes in. */
const RAMP_SHARE = 1 / 75;
/** The lowest rate at which a pace starts, in requests a second. */
const SLOWEST = 1;
/** What may be caught up at once, in seconds of the rate: ticks are not made at every instant. */
const BURST_SECONDS = 0.1;

/**
 * Requests a second at an instant: start * (1 + t / 60 s). It rises in a straight line, so no second of it can have more
 * than twice the mean of all before.
 */
export function rateAt({ startRate, sinceMs }: Pace, nowMs: number): number {
  return startRate * (1 + Math.max(0, nowMs - sinceMs) / DOUBLING_MS);
}

/** The pace at which an endpoint that has come back gets its backlog. */
export function rampFor(backlog: number, nowMs: number): Pace {
  return { startRate: Math.max(SLOWEST, backlog * RAMP_SHARE), sinceMs: nowMs };
}

/** The pace of an endpoint that got `rate` requests a second when it asked for fewer: half of that. */
export function slowedFrom(rate: number, nowMs: number): Pace {
  return { startRate: Math.max(SLOWEST, rate / 2), sinceMs: nowMs };
}

/** Whether a pace has done its work. */
export function isOver({ sinceMs }: Pace, backlog: number, nowMs: number): boolean {
  return backlog === 0 && nowMs - sinceMs >= SHORTEST_MS;
}

/** How many requests may start now, and when the next may. */
export interface Slots {
  readonly granted: number;
  /** In milliseconds since 1970; may lie in the past, by what may still be caught up. */
  readonly nextSlotMs: number;
}

/**
 * Up to `wanted` requests at `rate` a second, evenly spaced from `nextSlotMs` on. What was missed is caught up by a tenth
 * of a second's requests at most, so no second has more than 1.1 times the rate, and with less than 20 a second none has
 * more than the rate.
 */
export function takeSlots(nextSlotMs: number, rate: number, wanted: number, nowMs: number): Slots {
  const spacingMs = 1_000 / rate;
  const burst = Math.max(1, Math.floor(rate * BURST_SECONDS));
  const first = Math.max(nextSlotMs, nowMs - (burst - 1) * spacingMs);
  if (first > nowMs || wanted <= 0) return { granted: 0, nextSlotMs: first };
  const granted = Math.min(wanted, Math.floor((nowMs - first) / spacingMs) + 1);
  return { granted, nextSlotMs: first + granted * spacingMs };
}
