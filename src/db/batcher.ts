import { Refusal } from "../errors.ts";
import { sqlState } from "./connect.ts";

export interface BatcherOptions<Key, Item, Result> {
  /** Does the work of many callers' items at once; resolves with a result for each item, in their order. */
  readonly run: (key: Key, items: readonly Item[]) => Promise<readonly Result[]>;
  /** What of an item counts towards maxWeight. Default: 1. */
  readonly weigh?: (item: Item) => number;
  /** Most weight of one run. An item that weighs more runs alone. */
  readonly maxWeight: number;
  /** Most items of one run. */
  readonly maxItems: number;
}

/** Most runs of one key at a time. Such work takes turns in the database, so more would only hold connections. */
const RUNS_PER_KEY = 1;
/** Most runs at a time. They leave connections of the pool to others. */
const MAX_RUNS = 8;
/** Most items that wait. Beyond it callers are asked to come back. */
const MAX_WAITING = 20_000;

interface Waiting<Item, Result> {
  readonly item: Item;
  readonly weight: number;
  readonly resolve: (result: Result) => void;
  readonly reject: (error: unknown) => void;
}

interface Lane<Key, Item, Result> {
  readonly key: Key;
  readonly waiting: Waiting<Item, Result>[];
  running: number;
  queued: boolean;
}

/**
 * Puts the work of many callers into few statements, so that they share the cost of a round trip and of a commit. There
 * is no timer: what comes while a run is under way is the next run.
 *
 * Keys are apart: a run has items of one key only. Each caller is answered when the run of its item has ended.
 */
export class Batcher<Key, Item, Result> {
  readonly #options: BatcherOptions<Key, Item, Result>;
  readonly #lanes = new Map<string, Lane<Key, Item, Result>>();
  /** Lanes that have something to run, in the order in which they came. */
  readonly #queue: [string, Lane<Key, Item, Result>][] = [];
  #runs = 0;
  #waiting = 0;
  #scheduled = false;

  constructor(options: BatcherOptions<Key, Item, Result>) {
    this.#options = options;
  }

  /**
   * Adds an item to the next run of its key. `name` is the key as a string.
   *
   * @throws Refusal TOO_BUSY; what the run threw, unless that was about another caller's item.
   */
  add(name: string, key: Key, item: Item): Promise<Result> {
    if (this.#waiting >= MAX_WAITING) return Promise.reject(new Refusal("TOO_BUSY"));
    this.#waiting += 1;
    const { promise, resolve, reject } = Promise.withResolvers<Result>();
    const lane = this.#lanes.get(name) ?? { key, waiting: [], running: 0, queued: false };
    this.#lanes.set(name, lane);
    lane.waiting.push({ item, weight: this.#options.weigh?.(item) ?? 1, resolve, reject });
    this.#enqueue(name, lane);
    // What else this turn of the event loop brings goes along.
    if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(() => {
        this.#scheduled = false;
        this.#start();
      });
    }
    return promise;
  }

  #enqueue(name: string, lane: Lane<Key, Item, Result>): void {
    if (lane.queued || lane.running >= RUNS_PER_KEY || lane.waiting.length === 0) return;
    lane.queued = true;
    this.#queue.push([name, lane]);
  }

  #start(): void {
    while (this.#runs < MAX_RUNS) {
      const next = this.#queue.shift();
      if (next === undefined) return;
      const [name, lane] = next;
      lane.queued = false;
      lane.running += 1;
      this.#runs += 1;
      const taken = this.#take(lane);
      void this.#run(lane.key, taken).finally(() => {
        lane.running -= 1;
        this.#runs -= 1;
        this.#waiting -= taken.length;
        if (lane.running === 0 && lane.waiting.length === 0) this.#lanes.delete(name);
        this.#enqueue(name, lane);
        this.#start();
      });
    }
  }

  #take(lane: Lane<Key, Item, Result>): Waiting<Item, Result>[] {
    let count = 0;
    let weight = 0;
    for (const waiting of lane.waiting) {
      weight += waiting.weight;
      if (count > 0 && (weight > this.#options.maxWeight || count >= this.#options.maxItems)) break;
      count += 1;
    }
    return lane.waiting.splice(0, count);
  }

  async #run(key: Key, taken: readonly Waiting<Item, Result>[]): Promise<void> {
    try {
      const results = await this.#options.run(
        key,
        taken.map(({ item }) => item),
      );
      for (const [i, { resolve }] of taken.entries()) resolve(results[i] as Result);
    } catch (error) {
      // The database refused the statement, so nothing of it happened; whose item it was shows when each runs alone.
      if (taken.length > 1 && sqlState(error) !== undefined) {
        for (const one of taken) await this.#run(key, [one]);
      } else {
        for (const { reject } of taken) reject(error);
      }
    }
  }
}
