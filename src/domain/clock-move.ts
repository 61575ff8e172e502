/** How far to move the clock in one go. */
export interface MoveBounds {
  /** Most instants at which something is due to go to. */
  readonly maxSteps: number;
  /** How long it may take, in milliseconds of real time. What is under way then goes on. */
  readonly withinMs: number;
  readonly signal: AbortSignal;
}

/** How far a clock has come. */
export interface MovedClock {
  readonly now: Date;
  /** The time whose fires this call has let come, and none before it: after the first instant and up to the second. */
  readonly passed: readonly [Date, Date];
  /** It is where it was to go, and settled. */
  readonly reached: boolean;
  /** All that is due now is done. */
  readonly settled: boolean;
  readonly steps: number;
  /** The next instant at which something is due. */
  readonly nextAt: Date | undefined;
}

/**
 * Moves the clock up to the target, which is asked for with the instant now and may throw. Undefined while another call
 * moves it.
 */
export type MoveClock = (targetOf: (now: Date) => Date, bounds: MoveBounds) => Promise<MovedClock | undefined>;
