import { setTimeout as delay } from "node:timers/promises";
import type { Contestant } from "./contestants/contestant.ts";
import { newOrders } from "./order.ts";
import { processorSeconds } from "./servers/processes.ts";

/** How far the producers may be ahead of the consumers, in messages. */
const AHEAD = 20_000;
const PRODUCERS = 2;
const BATCH = 100;
/** How long the consumers may take for what is left when the producers have stopped, in milliseconds. */
const DRAIN_MS = 60_000;

/** Producers and consumers at work on one queue at once. Disposing it stops them all. */
export interface Cycle extends AsyncDisposable {
  /** Messages that were consumed and acknowledged so far. */
  consumed(): number;
  /** Counts messages that a consumer beside the cycle's own has taken. */
  count(consumedElsewhere: number): void;
  /** Stops the producers and resolves when the consumers have had everything that was published. */
  drain(): Promise<void>;
}

export interface CycleOptions {
  /** Stores a number of messages and resolves with it. Default: a batch of 100. */
  readonly produce?: () => Promise<number>;
  /** Default 2. */
  readonly producers?: number;
  /** How often the contestant is asked to consume. Default 1. */
  readonly consumers?: number;
}

export async function startCycle(contestant: Contestant, options: CycleOptions = {}): Promise<Cycle> {
  const { produce = () => publishBatch(contestant), producers = PRODUCERS } = options;
  let published = 0;
  let consumed = 0;
  let stopped = false;
  const onDone = (count: number): void => {
    consumed += count;
  };
  await using opening = new AsyncDisposableStack();
  for (let i = 0; i < (options.consumers ?? 1); i++) opening.use(await contestant.consume({ onDone }));
  const consumers = opening.move();
  const loop = async (): Promise<void> => {
    while (!stopped) {
      if (published - consumed > AHEAD) await delay(1);
      else published += await produce();
    }
  };
  const loops = Promise.all(Array.from({ length: producers }, loop));
  // Heard of by whoever stops the cycle.
  loops.catch(() => {});
  return {
    consumed: () => consumed,
    count(consumedElsewhere) {
      consumed += consumedElsewhere;
    },
    async drain() {
      stopped = true;
      await loops;
      const until = performance.now() + DRAIN_MS;
      while (consumed < published) {
        if (performance.now() > until) throw new Error(`${contestant.name} has lost ${published - consumed} messages`);
        await delay(5);
      }
    },
    async [Symbol.asyncDispose]() {
      stopped = true;
      await loops;
      await consumers[Symbol.asyncDispose]();
    },
  };
}

/** What a cycle consumes in the next `seconds`: `per_s`, and `cpu_us`, the processor time of everything for one message. */
export async function rateOver(
  cycle: Cycle,
  seconds: number,
): Promise<{ readonly per_s: number; readonly cpu_us: number }> {
  const [from, startedAt, usedBefore] = [cycle.consumed(), performance.now(), await processorSeconds()];
  await delay(seconds * 1_000);
  const count = cycle.consumed() - from;
  const passed = (performance.now() - startedAt) / 1_000;
  return { per_s: count / passed, cpu_us: (((await processorSeconds()) - usedBefore) * 1e6) / count };
}

async function publishBatch(contestant: Contestant): Promise<number> {
  await contestant.publishBatch(newOrders(BATCH));
  return BATCH;
}
