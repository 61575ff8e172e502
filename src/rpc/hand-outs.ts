import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { LruCache } from "../domain/lru-cache.ts";
import { type HandOutMemory, handOut, lookAtQueues, newHandOutMemory } from "../store/hand-outs.ts";
import { leasesOf, releaseLeases } from "../store/leases.ts";
import type { ClaimRequest } from "../store/line-claims.ts";
import type { MessageRow } from "../store/messages.ts";
import { findQueue } from "../store/queues.ts";

/**
 * How often the queues that somebody waits for are looked at without a wake-up, in milliseconds: that is how late what
 * comes without one is seen, such as a lease that runs out. It is one statement for all of them.
 */
const POLL_MS = 1_000;
/** Shortest time between two such looks, in milliseconds. Messages with a delay are looked for when they come due. */
const MIN_POLL_MS = 20;
/** Longest time until a queue that nobody has waited for before is looked at again, in milliseconds. */
const FIRST_POLL_MS = 250;
/** Most queues of which it is remembered how they were last found. */
const MAX_MEMORIES = 10_000;
/** Most consumers that one look serves. */
const MAX_TAKES = 100;
/** Most messages of one look. It bounds what the node holds in memory for consumers. */
const MAX_MESSAGES = 1_000;

interface Take {
  readonly request: ClaimRequest;
  readonly waitsUntil: number;
  readonly signal: AbortSignal;
  readonly resolve: (rows: MessageRow[] | undefined) => void;
  readonly reject: (error: unknown) => void;
  /** The newest hint for which it was looked. */
  seen: number;
}

/** Who waits for messages of one queue on this node. */
interface Counter {
  readonly projectId: string;
  readonly queueName: string;
  readonly memory: HandOutMemory;
  /** In line, those who came first first. */
  waiting: Take[];
  looking: boolean;
  /** Counts the hints that something may have come. */
  hints: number;
  readonly unsubscribe: () => void;
}

/**
 * Hands out messages to all consumers of this node. Those of one queue are served by one statement together, and while
 * they wait they cost the database nothing of their own.
 */
export class HandOuts {
  readonly #db: Db;
  readonly #wakeups: Wakeups;
  readonly #counters = new Map<string, Counter>();
  /** What to call when a message that is out with a stream of this node is settled, by message id. */
  readonly #watched = new Map<string, () => void>();
  readonly #memories = new LruCache<HandOutMemory>(MAX_MEMORIES);
  #pollTimer: NodeJS.Timeout | undefined;
  /** When the next poll is due, in milliseconds of performance.now(). */
  #pollAt = 0;
  #polling = false;

  constructor(db: Db, wakeups: Wakeups) {
    this.#db = db;
    this.#wakeups = wakeups;
  }

  /**
   * Resolves with up to `limit` messages under leases as soon as there are any, with none after `waitMs` or when the
   * signal aborts, and with undefined when there is no such queue.
   */
  take(
    projectId: string,
    queueName: string,
    request: ClaimRequest,
    waitMs: number,
    signal: AbortSignal,
  ): Promise<MessageRow[] | undefined> {
    if (signal.aborted) return Promise.resolve([]);
    return new Promise((resolve, reject) => {
      const counter = this.#counter(projectId, queueName);
      const timer = waitMs > 0 ? setTimeout(() => leave(), waitMs) : undefined;
      const done = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", leave);
      };
      const take: Take = {
        request,
        seen: -1,
        waitsUntil: performance.now() + waitMs,
        signal,
        resolve: (rows) => {
          done();
          resolve(rows);
        },
        reject: (error) => {
          done();
          reject(error);
        },
      };
      // One that a look is serving is not in line; the look answers it.
      const leave = () => {
        const place = counter.waiting.indexOf(take);
        if (place < 0) return;
        counter.waiting.splice(place, 1);
        take.resolve([]);
        this.#closeIfIdle(counter);
      };
      signal.addEventListener("abort", leave, { once: true });
      counter.waiting.push(take);
      this.#look(counter);
    });
  }

  /** Calls `onSettled` once for each of the messages that is settled on this node, until they are let go. */
  watch(messageIds: readonly string[], onSettled: (messageId: string) => void): void {
    for (const id of messageIds) this.#watched.set(id, () => onSettled(id));
  }

  unwatch(messageIds: Iterable<string>): void {
    for (const id of messageIds) this.#watched.delete(id);
  }

  /** Says that messages were acked, given back or buried. */
  settled(messageIds: readonly string[]): void {
    if (this.#watched.size === 0) return;
    for (const id of messageIds) {
      const tell = this.#watched.get(id);
      if (tell === undefined) continue;
      this.#watched.delete(id);
      tell();
    }
  }

  #counter(projectId: string, queueName: string): Counter {
    const topic = queueTopic(projectId, queueName);
    const known = this.#counters.get(topic);
    if (known !== undefined) return known;
    const counter: Counter = {
      projectId,
      queueName,
      memory: this.#memories.getOrBuild(topic, newHandOutMemory),
      waiting: [],
      looking: false,
      hints: 0,
      unsubscribe: this.#wakeups.on(topic, () => this.#hint(counter)),
    };
    this.#counters.set(topic, counter);
    this.#pollWithin(FIRST_POLL_MS);
    return counter;
  }

  #closeIfIdle(counter: Counter): void {
    if (counter.looking || counter.waiting.length > 0) return;
    counter.unsubscribe();
    this.#counters.delete(queueTopic(counter.projectId, counter.queueName));
  }

  #hint(counter: Counter): void {
    counter.hints += 1;
    this.#look(counter);
  }

  #look(counter: Counter): void {
    if (counter.looking) return;
    counter.looking = true;
    void this.#serve(counter).finally(() => {
      counter.looking = false;
      if (isUnseen(counter)) this.#look(counter);
      else this.#closeIfIdle(counter);
    });
  }

  /** Looks until everybody in line has been looked for since the last hint. */
  async #serve(counter: Counter): Promise<void> {
    while (isUnseen(counter)) {
      const { hints } = counter;
      const takes = takeNext(counter);
      const behind = new Set(counter.waiting);
      let rows: MessageRow[][] | undefined;
      try {
        rows = await handOut(
          this.#db,
          counter.projectId,
          counter.queueName,
          takes.map(({ request }) => request),
          counter.memory,
        );
      } catch (error) {
        for (const take of takes) take.reject(error);
        continue;
      }
      const left: Take[] = [];
      for (const [i, take] of takes.entries()) {
        const mine = rows?.[i];
        take.seen = hints;
        if (mine === undefined) take.resolve(undefined);
        else if (take.signal.aborted) {
          take.resolve([]);
          await this.#giveBack(counter, mine);
        } else if (mine.length > 0 || take.waitsUntil <= performance.now()) take.resolve(mine);
        else left.push(take);
      }
      // Nothing was left for those who stood behind one who got nothing.
      counter.waiting = [
        ...left,
        ...counter.waiting.filter((take) => {
          if (left.length === 0 || !behind.has(take)) return true;
          take.seen = hints;
          if (take.waitsUntil > performance.now()) return true;
          take.resolve([]);
          return false;
        }),
      ];
    }
  }

  /** Releases what was leased for a caller that went meanwhile. If that fails, the leases run out by themselves. */
  async #giveBack(counter: Counter, rows: readonly MessageRow[]): Promise<void> {
    if (rows.length === 0) return;
    try {
      const queue = await findQueue(this.#db, counter.projectId, counter.queueName);
      if (queue !== undefined) await releaseLeases(this.#db, queue, leasesOf(rows));
      counter.hints += 1;
    } catch {}
  }

  #pollWithin(ms: number): void {
    const at = performance.now() + ms;
    if (this.#polling || (this.#pollTimer !== undefined && this.#pollAt <= at)) return;
    clearTimeout(this.#pollTimer);
    this.#pollAt = at;
    this.#pollTimer = setTimeout(() => void this.#poll(), ms).unref();
  }

  async #poll(): Promise<void> {
    this.#pollTimer = undefined;
    this.#polling = true;
    let nextMs = POLL_MS;
    const waiting = [...this.#counters.values()].filter((counter) => counter.waiting.length > 0);
    if (waiting.length > 0) {
      // While the database is away every look fails, which tells those who wait.
      const all = { withWork: waiting, nextDueInMs: undefined };
      const { withWork, nextDueInMs = POLL_MS } = await lookAtQueues(this.#db, waiting).catch(() => all);
      for (const counter of withWork) if (counter.waiting.length > 0) this.#hint(counter);
      nextMs = Math.max(MIN_POLL_MS, Math.min(nextDueInMs, POLL_MS));
    }
    this.#polling = false;
    if (this.#counters.size > 0) this.#pollWithin(nextMs);
  }
}

function isUnseen({ waiting, hints }: Counter): boolean {
  return waiting.some((take) => take.seen < hints);
}

/** Takes those out of line whom the next look serves: the first who have not been looked for since the last hint. */
function takeNext(counter: Counter): Take[] {
  const taken: Take[] = [];
  const left: Take[] = [];
  let messages = 0;
  for (const take of counter.waiting) {
    const fits = taken.length === 0 || (messages + take.request.limit <= MAX_MESSAGES && taken.length < MAX_TAKES);
    if (take.seen < counter.hints && fits) {
      taken.push(take);
      messages += take.request.limit;
    } else left.push(take);
  }
  counter.waiting = left;
  return taken;
}
