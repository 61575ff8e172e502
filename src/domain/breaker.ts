/**
 * Where an endpoint stands. Closed: requests go out. Open: it failed too often, and what is due waits. Half open: a probe
 * is out, or some have succeeded. Disabled: a caller or the receiver itself has stopped it, until a caller enables it.
 */
export type EndpointState = "closed" | "open" | "half_open" | "disabled";

/** The breaker of one endpoint. Instants are in milliseconds since 1970. */
export interface Breaker {
  readonly state: EndpointState;
  /** Open and half open: before this no probe is sent. Null otherwise. */
  readonly nextProbeAtMs: number | null;
  /** Open and half open: the wait before that probe. It doubles from one to the next, until one succeeds. */
  readonly probeWaitMs: number;
  /** Half open: how the probes since the first success have ended. */
  readonly probesSucceeded: number;
  readonly probesFailed: number;
}

/** How many requests of the window had which end. */
export interface Counts {
  readonly succeeded: number;
  readonly failed: number;
}

/** How far back requests count for opening, in milliseconds. */
export const WINDOW_MS = 300_000;
/** With fewer requests in the window the breaker does not open, however they ended. */
const MIN_REQUESTS = 10;
/** The share of failed requests in the window that opens it. */
const FAILED_SHARE = 0.7;
/** From opening to the first probe, and after each probe that succeeds; in milliseconds. */
export const FIRST_PROBE_WAIT_MS = 30_000;
/** The wait after failed probes doubles up to this, in milliseconds. */
export const LONGEST_PROBE_WAIT_MS = 600_000;
/** How many probes have to succeed, and at least half of those since the first success, before it closes. */
export const CLOSING_SUCCESSES = 3;

/** A breaker that lets everything pass. */
export const CLOSED: Breaker = {
  state: "closed",
  nextProbeAtMs: null,
  probeWaitMs: FIRST_PROBE_WAIT_MS,
  probesSucceeded: 0,
  probesFailed: 0,
};

/** A breaker that lets nothing pass until a caller enables the endpoint. */
export const DISABLED: Breaker = { ...CLOSED, state: "disabled" };

/** Opens a closed breaker when the requests of the window say so; any other stays as it is. */
export function afterCounts(breaker: Breaker, { succeeded, failed }: Counts, nowMs: number): Breaker {
  const requests = succeeded + failed;
  if (breaker.state !== "closed" || requests < MIN_REQUESTS || failed < FAILED_SHARE * requests) return breaker;
  return { ...CLOSED, state: "open", nextProbeAtMs: nowMs + FIRST_PROBE_WAIT_MS };
}

/**
 * Lets one request through an open or half open breaker as a probe: the breaker that waits for its end, or undefined when
 * none may go now. A probe whose end is never told was one that failed.
 */
export function admitProbe(breaker: Breaker, nowMs: number): Breaker | undefined {
  const { state, nextProbeAtMs } = breaker;
  if ((state !== "open" && state !== "half_open") || nextProbeAtMs === null || nowMs < nextProbeAtMs) return undefined;
  const probeWaitMs = Math.min(2 * breaker.probeWaitMs, LONGEST_PROBE_WAIT_MS);
  return { ...breaker, state: "half_open", probeWaitMs, nextProbeAtMs: nowMs + probeWaitMs };
}

/** What follows from the end of a probe. Of a breaker that is not half open any more nothing follows. */
export function afterProbe(breaker: Breaker, succeeded: boolean, nowMs: number): Breaker {
  if (breaker.state !== "half_open") return breaker;
  if (succeeded) {
    const probesSucceeded = breaker.probesSucceeded + 1;
    if (probesSucceeded >= CLOSING_SUCCESSES && probesSucceeded >= breaker.probesFailed) return CLOSED;
    const nextProbeAtMs = nowMs + FIRST_PROBE_WAIT_MS;
    return { ...breaker, probesSucceeded, probeWaitMs: FIRST_PROBE_WAIT_MS, nextProbeAtMs };
  }
  const probesFailed = breaker.probesFailed + 1;
  if (breaker.probesSucceeded >= probesFailed) return { ...breaker, probesFailed };
  // Fewer than half of the trial succeeded, so it is over, and the next one starts from nothing.
  return { ...breaker, state: "open", probesSucceeded: 0, probesFailed: 0 };
}
