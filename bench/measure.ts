import { setTimeout as delay } from "node:timers/promises";
import { processorSeconds } from "./servers/processes.ts";

/** What one contestant did in one round, by the name of the figure: `per_s`, `p50_ms`. */
export type Measures = Readonly<Record<string, number>>;

/** How long a contestant runs before it is measured, and how long it is. */
export interface Span {
  readonly warmSeconds: number;
  readonly seconds: number;
}

/**
 * Runs `operation` in `width` loops, and counts what ended within the span.
 *
 * @returns `per_s`; the times of one operation, `p50_ms` and `p99_ms`; and `cpu_us`, the processor time of everything for
 * one message.
 */
export async function closedLoop(
  width: number,
  { warmSeconds, seconds }: Span,
  operation: () => Promise<number>,
): Promise<Measures> {
  const from = performance.now() + warmSeconds * 1_000;
  const until = from + seconds * 1_000;
  const times: number[] = [];
  let done = 0;
  const loop = async (): Promise<void> => {
    for (;;) {
      const startedAt = performance.now();
      if (startedAt > until) return;
      const count = await operation();
      const endedAt = performance.now();
      if (endedAt < from || endedAt > until) continue;
      done += count;
      times.push(endedAt - startedAt);
    }
  };
  const usage = delay(warmSeconds * 1_000).then(async () => {
    const usedBefore = await processorSeconds();
    await delay(seconds * 1_000);
    return (await processorSeconds()) - usedBefore;
  });
  await Promise.all(Array.from({ length: width }, loop));
  return { per_s: done / seconds, ...percentiles(times), cpu_us: ((await usage) * 1e6) / done };
}

/**
 * Calls `send` at a steady rate for the span, whether or not earlier ones have been answered, with the instant that the
 * message counts from. That is the instant at which it was due if the sender came late to it, so that a stall counts for
 * everything that was due in it; within the granularity of Node's timers it is the instant of sending.
 */
export async function openLoop(perSecond: number, seconds: number, send: (sentAt: number) => void): Promise<void> {
  const startedAt = performance.now();
  const total = perSecond * seconds;
  for (let sent = 0; sent < total; ) {
    const now = performance.now();
    for (; sent < total; sent++) {
      const dueAt = startedAt + (sent * 1_000) / perSecond;
      if (dueAt > now) break;
      send(now - dueAt > TIMER_MS ? dueAt : now);
    }
    await delay(1);
  }
}

/** How late a timer of Node's is when nothing is wrong: they tick in whole milliseconds. */
const TIMER_MS = 2;

export function percentiles(times: readonly number[]): Measures {
  const sorted = Float64Array.from(times).sort();
  return { p50_ms: at(sorted, 0.5), p99_ms: at(sorted, 0.99) };
}

/** The middle value, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length / 2;
  return Number.isInteger(half)
    ? ((sorted[half - 1] ?? Number.NaN) + (sorted[half] ?? Number.NaN)) / 2
    : at(sorted, 0.5);
}

function at(sorted: Float64Array, fraction: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))] ?? Number.NaN;
}
