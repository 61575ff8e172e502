import type { Topic, Wakeups } from "../db/wakeups.ts";

/** What one pass of a worker did. */
export interface TickResult {
  /** How much; 0 when nothing was due. */
  readonly done: number;
  /** In how many milliseconds the next thing is due, if that is known. */
  readonly nextDueInMs?: number | undefined;
}

/** One pass of a worker. The signal aborts when the loop is being disposed of. */
export type Tick = (signal: AbortSignal) => Promise<TickResult>;

export interface LoopOptions {
  /** For the log. */
  readonly name: string;
  /** Longest wait between two ticks, in milliseconds: the poll that everything works by when no hint comes. */
  readonly idleMs: number;
  readonly wakeups?: Wakeups;
  /** The wake-ups that end a wait. */
  readonly topic?: Topic;
  /** Told of the first error of a streak. */
  readonly onError: (name: string, error: unknown) => void;
}

/** A worker at work. Disposing it aborts the tick's signal and resolves when the tick in hand has ended. */
export interface Loop extends AsyncDisposable {
  /**
   * Ends the wait for the next tick, and resolves with the result of one that began after this call. After an error it may
   * be some seconds until then.
   *
   * @throws what that tick throws, or Error when the loop ends before.
   */
  pass(): Promise<TickResult>;
  /** From now on, until the returned function is called, there is a tick for each pass and no other. */
  hold(): () => void;
}

/** Shortest wait after a tick that did nothing, so that work which another node holds is not asked for in a spin. */
const MIN_IDLE_MS = 20;
/** Waits after errors: the first, doubled up to the last. */
const FIRST_ERROR_WAIT_MS = 100;
const LAST_ERROR_WAIT_MS = 5_000;

/**
 * Runs `tick` again and again: at once while it does something, else when the next thing is due, a wake-up comes or
 * `idleMs` are over. After an error it waits 100 ms, and longer up to 5 s while errors go on.
 */
export function startLoop(tick: Tick, options: LoopOptions): Loop {
  let passes: PromiseWithResolvers<TickResult>[] = [];
  let held = false;
  let moved = Promise.withResolvers<void>();
  const move = (): void => {
    moved.resolve();
    moved = Promise.withResolvers();
  };
  const stop = new AbortController();
  let woken = false;
  let wake = (): void => {};
  const unsubscribe =
    options.topic === undefined
      ? undefined
      : options.wakeups?.on(options.topic, () => {
          // A wake-up may come while a tick runs, which has looked already; so it is remembered.
          woken = true;
          wake();
        });
  stop.signal.addEventListener(
    "abort",
    () => {
      wake();
      move();
    },
    { once: true },
  );

  const wait = (ms: number, wakeable: boolean): Promise<void> =>
    new Promise((resolve) => {
      if (stop.signal.aborted || (wakeable && woken)) return resolve();
      const timer = setTimeout(resolve, ms);
      wake = () => {
        if (!wakeable && !stop.signal.aborted) return;
        clearTimeout(timer);
        resolve();
      };
    });

  const run = async (): Promise<void> => {
    let errorWaitMs = 0;
    while (!stop.signal.aborted) {
      woken = false;
      const awaited = passes;
      passes = [];
      try {
        const result = await tick(stop.signal);
        for (const pass of awaited) pass.resolve(result);
        const { done, nextDueInMs } = result;
        errorWaitMs = 0;
        const wasHeld = held;
        while (held && passes.length === 0 && !stop.signal.aborted) await moved.promise;
        if (done > 0 || wasHeld) continue;
        const dueInMs = Math.max(MIN_IDLE_MS, nextDueInMs ?? options.idleMs);
        await wait(Math.min(dueInMs, options.idleMs), true);
      } catch (error) {
        for (const pass of awaited) pass.reject(error);
        if (stop.signal.aborted) return;
        if (errorWaitMs === 0) options.onError(options.name, error);
        errorWaitMs = Math.min(Math.max(FIRST_ERROR_WAIT_MS, errorWaitMs * 2), LAST_ERROR_WAIT_MS);
        // A wake-up does not end this wait: it says that there is work, not that the error is over.
        await wait(errorWaitMs, false);
      }
    }
  };
  const ended = run().finally(() => {
    for (const pass of passes) pass.reject(new Error(`the ${options.name} has ended`));
  });
  return {
    async pass() {
      if (stop.signal.aborted) throw new Error(`the ${options.name} has ended`);
      const pass = Promise.withResolvers<TickResult>();
      passes.push(pass);
      woken = true;
      wake();
      move();
      return pass.promise;
    },
    hold() {
      held = true;
      return () => {
        held = false;
        move();
      };
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      unsubscribe?.();
      await ended;
    },
  };
}
