import type { EndpointControl } from "./admission.ts";
import { currentRate } from "./admission.ts";
import { afterCounts, afterProbe, type Breaker, type Counts, DISABLED } from "./breaker.ts";
import { isOver, rampFor, slowedFrom } from "./pace.ts";

/** What a node has seen of an endpoint since it last told. */
export interface HealthNotes extends Counts {
  /** Answers 429 and 503. A 503 has failed as well, a 429 neither failed nor succeeded. */
  readonly throttled: number;
  /** The longest wait that one of them asked for, in milliseconds. */
  readonly askedWaitMs: number | undefined;
  /** How probes ended, in order. */
  readonly probes: readonly boolean[];
  /** Why the receiver wants nothing more, in words. */
  readonly gone: string | undefined;
  /** How much of the attempts of a run or message the worst failure spent, in percent; 0 without one. */
  readonly spentPercent: number;
  /** The newest failure, in words. */
  readonly failure: string | undefined;
}

/** What else the decision is made by. */
export interface HealthContext {
  /** Requests of the last five minutes, of all nodes, that count for the breaker. */
  readonly window: Counts;
  /** Requests a second that have lately succeeded, of all nodes. */
  readonly recentRate: number;
  /** What waits for the endpoint. */
  readonly backlog: number;
  /** The highest of ALERT_STAGES that was told of since the last success. */
  readonly toldStage: number;
  readonly nowMs: number;
}

/** What operators are told of. */
export type HealthEvent =
  | "endpoint.breaker_opened"
  | "endpoint.breaker_closed"
  | "endpoint.disabled"
  | "endpoint.attempts_spent";

/** What follows. */
export interface HealthChange {
  readonly breaker: Breaker;
  readonly pace: EndpointControl["pace"];
  readonly pausedUntilMs: number | null;
  /** Why the breaker stands where it does now. Undefined when that has not changed. */
  readonly reason: string | undefined;
  readonly toldStage: number;
  readonly events: readonly HealthEvent[];
}

/** Percent of spent attempts that an alert is raised at, once each until a request succeeds. */
const ALERT_STAGES: readonly number[] = [50, 70, 90, 100];
/** How long a receiver that gets too much is left alone when it names no time, and at most; in milliseconds. */
const PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 3_600_000;

/** Judges an endpoint by what was seen of it. */
export function judge(control: EndpointControl, notes: HealthNotes, context: HealthContext): HealthChange {
  const { nowMs, backlog, window } = context;
  const breaker = nextBreaker(control.breaker, notes, window, nowMs);
  const changed = breaker.state !== control.breaker.state;
  const closed = changed && breaker.state === "closed";
  const opened = changed && breaker.state === "open" && control.breaker.state === "closed";
  const disabled = changed && breaker.state === "disabled";
  const toldStage = notes.succeeded > 0 ? 0 : Math.max(context.toldStage, stageOf(notes.spentPercent));
  return {
    breaker,
    ...(closed ? { pace: rampFor(backlog, nowMs), pausedUntilMs: null } : slowed(control, notes, context)),
    reason: changed ? reasonOf(control.breaker, breaker, notes, window) : undefined,
    toldStage,
    events: [
      ...(disabled ? (["endpoint.disabled"] as const) : []),
      ...(opened ? (["endpoint.breaker_opened"] as const) : []),
      ...(closed ? (["endpoint.breaker_closed"] as const) : []),
      ...(toldStage > context.toldStage ? (["endpoint.attempts_spent"] as const) : []),
    ],
  };
}

/** The highest of ALERT_STAGES that `percent` has reached; 0 for none. */
function stageOf(percent: number): number {
  return Math.max(0, ...ALERT_STAGES.filter((stage) => stage <= percent));
}

function nextBreaker(before: Breaker, notes: HealthNotes, window: Counts, nowMs: number): Breaker {
  if (before.state === "disabled") return before;
  if (notes.gone !== undefined) return DISABLED;
  const probed = notes.probes.reduce((breaker, succeeded) => afterProbe(breaker, succeeded, nowMs), before);
  // What closes now is not opened by the failures that it was opened for.
  return probed === before ? afterCounts(before, window, nowMs) : probed;
}

function slowed(
  { pace, pausedUntilMs, maxRate }: EndpointControl,
  { throttled, askedWaitMs }: HealthNotes,
  { recentRate, backlog, nowMs }: HealthContext,
): Pick<HealthChange, "pace" | "pausedUntilMs"> {
  const paused = pausedUntilMs !== null && nowMs < pausedUntilMs;
  if (throttled === 0) {
    return {
      pace: pace === null || isOver(pace, backlog, nowMs) ? null : pace,
      pausedUntilMs: paused ? pausedUntilMs : null,
    };
  }
  const until = nowMs + Math.min(Math.max(PAUSE_MS, askedWaitMs ?? 0), LONGEST_PAUSE_MS);
  // Answers to what was sent before the pause only make it longer: they say nothing about the new pace.
  if (paused) return { pace, pausedUntilMs: Math.max(pausedUntilMs, until) };
  const rate = Math.min(currentRate({ pace, maxRate }, nowMs) ?? Number.POSITIVE_INFINITY, recentRate);
  return { pace: slowedFrom(rate, until), pausedUntilMs: until };
}

function reasonOf(
  before: Breaker,
  after: Breaker,
  { gone, failure = "unknown" }: HealthNotes,
  { succeeded, failed }: Counts,
): string | undefined {
  if (after.state === "disabled") return gone;
  if (after.state === "closed") return "its probes succeeded";
  if (before.state === "half_open") return `a probe failed: ${failure}`;
  return `${failed} of ${succeeded + failed} requests in 5 minutes failed; the newest: ${failure}`;
}
