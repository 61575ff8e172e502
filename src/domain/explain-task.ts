import { currentRate, type EndpointControl } from "./admission.ts";

/** What a task waits for. */
export type TaskWait =
  | "over"
  | "attempt"
  | "lost_attempt"
  | "time"
  | "retry"
  | "endpoint_disabled"
  | "endpoint_failing"
  | "endpoint_paused"
  | "endpoint_full"
  | "endpoint_rate"
  | "endpoint_turn"
  | "node";

/** All that is known of a task at one instant. */
export interface TaskQuestion {
  readonly now: Date;
  readonly state: "scheduled" | "running" | "retrying" | "succeeded" | "failed" | "canceled" | "expired";
  /** Its newest run. */
  readonly run: {
    readonly live: boolean;
    /** Of an attempt under way: when its node has to have told how it ended. Null without one. */
    readonly leaseExpiresAt: Date | null;
    readonly runAt: Date;
    readonly startBy: Date | null;
    /** Attempts that have been begun. */
    readonly attempt: number;
    /** Of the newest attempt that failed. */
    readonly error: string | null;
    /** It is set apart with its endpoint. */
    readonly parked: boolean;
  };
  /** Undefined when nothing is recorded of it. */
  readonly endpoint:
    | (EndpointControl & {
        /** Why the breaker stands where it does. */
        readonly reason: string | null;
        /** Requests under way. */
        readonly inFlight: number;
      })
    | undefined;
}

/** Why a task has not run yet. */
export interface TaskAnswer {
  readonly waitingFor: TaskWait;
  readonly explanation: string;
  /** When that is over, as far as is known. */
  readonly until: Date | undefined;
}

/** Says what a task waits for and why. Of several reasons it gives the one that lasts longest or needs somebody. */
export function explainTask(question: TaskQuestion): TaskAnswer {
  const { now, state, run } = question;
  if (run.leaseExpiresAt !== null) return underWay(question, run.leaseExpiresAt);
  if (!run.live) {
    const why = run.error === null || run.error === state ? "" : `, ${run.error}`;
    return { waitingFor: "over", explanation: `it is over: ${state}${why}`, until: undefined };
  }
  if (run.startBy !== null && run.attempt === 0 && run.startBy <= now) {
    const explanation = "it is later than its grace allows, and is about to expire";
    return { waitingFor: "node", explanation, until: undefined };
  }
  const notYet = run.runAt > now ? run.runAt : undefined;
  const held = heldByEndpoint(question);
  if (held !== undefined && (notYet === undefined || outlasts(held, notYet))) return held;
  if (notYet !== undefined) return beforeItsTime(question, notYet);
  if (run.parked) {
    const explanation =
      "it is due, and waits for its turn at its endpoint, which has as many requests as it gets at a time";
    return { waitingFor: "endpoint_turn", explanation, until: undefined };
  }
  const explanation = `it is due since ${run.runAt.toISOString()}, and nothing is in its way: it waits for a node that takes it`;
  return { waitingFor: "node", explanation, until: undefined };
}

function underWay({ now, run }: TaskQuestion, leaseExpiresAt: Date): TaskAnswer {
  if (leaseExpiresAt > now) {
    const explanation = `attempt ${run.attempt} is under way, and is over by ${leaseExpiresAt.toISOString()}`;
    return { waitingFor: "attempt", explanation, until: leaseExpiresAt };
  }
  const explanation = `nobody has told how attempt ${run.attempt} ended; it is about to be taken back as a failed one`;
  return { waitingFor: "lost_attempt", explanation, until: undefined };
}

function beforeItsTime({ run }: TaskQuestion, until: Date): TaskAnswer {
  if (run.attempt === 0) {
    return { waitingFor: "time", explanation: `it is scheduled for ${until.toISOString()}`, until };
  }
  const why = run.error === null ? "" : ` (${run.error})`;
  const explanation = `attempt ${run.attempt} failed${why}, and the next is at ${until.toISOString()}`;
  return { waitingFor: "retry", explanation, until };
}

/** What keeps requests from the endpoint now. */
function heldByEndpoint({ now, endpoint }: TaskQuestion): TaskAnswer | undefined {
  if (endpoint === undefined) return undefined;
  const { breaker, maxConcurrency, pausedUntilMs, inFlight, nextSlotMs } = endpoint;
  const why = endpoint.reason === null ? "" : ` (${endpoint.reason})`;
  const nowMs = now.getTime();
  if (breaker.state === "disabled") {
    const explanation = `its endpoint is disabled${why}, and gets nothing until somebody enables it`;
    return { waitingFor: "endpoint_disabled", explanation, until: undefined };
  }
  if (pausedUntilMs !== null && pausedUntilMs > nowMs) {
    const until = new Date(pausedUntilMs);
    const explanation = `its receiver has asked for no requests until ${until.toISOString()}`;
    return { waitingFor: "endpoint_paused", explanation, until };
  }
  if (breaker.state !== "closed") {
    const until = new Date(Math.max(breaker.nextProbeAtMs ?? nowMs, nowMs));
    const explanation = `its endpoint fails${why} and gets one request now and then until it works; the next at ${until.toISOString()}`;
    return { waitingFor: "endpoint_failing", explanation, until };
  }
  if (maxConcurrency !== null && inFlight >= maxConcurrency) {
    const explanation = `its endpoint has ${inFlight} requests under way, and is limited to ${maxConcurrency}`;
    return { waitingFor: "endpoint_full", explanation, until: undefined };
  }
  const rate = currentRate(endpoint, nowMs);
  if (rate !== undefined && nextSlotMs > nowMs) {
    const explanation = `its endpoint gets ${Number(rate.toPrecision(3))} requests a second now, and others are before it`;
    return { waitingFor: "endpoint_rate", explanation, until: undefined };
  }
  return undefined;
}

/** Whether what an endpoint does keeps a task even at its time. */
function outlasts({ waitingFor, until }: TaskAnswer, runAt: Date): boolean {
  return (
    waitingFor === "endpoint_disabled" || (waitingFor === "endpoint_paused" && until !== undefined && until > runAt)
  );
}
