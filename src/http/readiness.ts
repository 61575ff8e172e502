import type { JsonValue } from "@bufbuild/protobuf";

/** Whether calls can be served now, and why not. `detail` is shown to anybody who asks, so it holds no secrets. */
export interface Readiness {
  readonly ok: boolean;
  readonly detail: JsonValue;
}

export interface ReadinessOptions {
  /** Looks at what the process depends on. It may throw, and gives up when `signal` aborts. */
  readonly ready: (signal: AbortSignal) => Promise<Readiness>;
  /** Aborted when the process starts to drain; from then on the answer is no. */
  readonly shutdownSignal: AbortSignal;
  /** Longest wait for `ready`, in milliseconds; default 2000. */
  readonly timeoutMs?: number;
  /** How long an answer is given again without asking, in milliseconds; default 1000. */
  readonly freshMs?: number;
}

/**
 * A function that asks `ready` within a deadline and never throws. Whoever asks, and however often, `ready` runs once
 * at a time and once per `freshMs`: the question is open to callers without a key and must not become work for the
 * database.
 */
export function createReadinessCheck(options: ReadinessOptions): () => Promise<Readiness> {
  const { timeoutMs = 2_000, freshMs = 1_000 } = options;
  let running: Promise<Readiness> | undefined;
  let last: { readonly readiness: Readiness; readonly at: number } | undefined;

  async function ask(): Promise<Readiness> {
    const deadline = AbortSignal.timeout(timeoutMs);
    const { promise: late, resolve } = Promise.withResolvers<Readiness>();
    const giveUp = () => resolve({ ok: false, detail: `no answer within ${timeoutMs} ms` });
    deadline.addEventListener("abort", giveUp, { once: true });
    let readiness: Readiness;
    try {
      readiness = await Promise.race([options.ready(deadline), late]);
    } catch {
      readiness = { ok: false, detail: "the check failed" };
    }
    last = { readiness, at: performance.now() };
    running = undefined;
    return readiness;
  }

  return async () => {
    if (options.shutdownSignal.aborted) return { ok: false, detail: "draining" };
    if (last !== undefined && performance.now() - last.at < freshMs) return last.readiness;
    running ??= ask();
    return running;
  };
}
