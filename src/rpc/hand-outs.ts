import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { LruCache } from "../domain/lru-cache.ts";
import { type HandOutMemory, handOut, lookAtQueues, newHandOutMemory } from "../store/hand-outs.ts";
import { leasesOf, releaseLeases } from "../store/leases.ts";
import type { PublishedInLine } from "../store/line.ts";
import { type ClaimRequest, publishAndClaim } from "../store/line-claims.ts";
import type { MessageRow, NewMessage } from "../store/messages.ts";
import type { QueueTally } from "../store/queue-tally.ts";
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
/** How long a counter at which nobody waits is kept, in milliseconds, and most of them that are. */
const LINGER_MS = 5_000;
const MAX_COUNTERS = 10_000;
/** Most queues of which it is remembered how they were last found. */
const MAX_MEMORIES = 10_000;
/** Most consumers that one look serves. */
const MAX_TAKES = 100;
/** Most messages of one look. It bounds what the node holds in memory for consumers. */
const MAX_MESSAGES = 1_000;
/**
 * Payload bytes that one look is meant to bring at most: by the mean of what the queue handed out last and, where nothing is
 * known of it, at most. More takes longer than a call may, so that a queue of large messages would hand out none.
 */
const MAX_BYTES = 32 * 1_048_576;
const MAX_UNKNOWN_BYTES = 100 * 1_048_576;

interface Take {
  readonly request: ClaimRequest;
  /** Waits no longer: its time is over, or it never would. */
  isOver: boolean;
  readonly signal: AbortSignal;
  readonly resolve: (rows: MessageRow[] | undefined) => void;
  readonly reject: (error: unknown) => void;
  /** The newest hint for which it was looked. */
  seen: number;
}

/** What came of publishing to those who wait. */
export interface PublishedToWaiting {
  /** Undefined, and nothing is stored, where the queue is missing or has no line. */
  readonly placed: PublishedInLine | undefined;
  /** Whether nothing is left that could be handed out, to anybody anywhere. */
  readonly isEmpty: boolean;
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
  /** What `hints` was at a look that left nothing behind. While it still is that, there is nothing. */
  emptyAt: number;
  /** Nobody has waited since this instant, in milliseconds of performance.now(). */
  idleSince: number;
  readonly unsubscribe: () => void;
}

/**
 * Hands out messages to all consumers of this node. Those of one queue are served by one statement together, and while
 * they wait they cost the database nothing of their own.
 */
export class HandOuts {
  readonly #db: Db;
  readonly #wakeups: Wakeups;
  readonly #tally: QueueTally;
  readonly #maxPayloadBytes: number;
  readonly #counters = new Map<string, Counter>();
  /** What to call when a message that is out with a stream of this node is settled, by message id. */
  readonly #watched = new Map<string, (messageId: string) => void>();
  readonly #memories = new LruCache<HandOutMemory>(MAX_MEMORIES);
  #pollTimer: NodeJS.Timeout | undefined;
  /** When the next poll is due, in milliseconds of performance.now(). */
  #pollAt = 0;
  #polling = false;

  constructor(db: Db, wakeups: Wakeups, tally: QueueTally, maxPayloadBytes: number) {
    this.#db = db;
    this.#wakeups = wakeups;
    this.#tally = tally;
    this.#maxPayloadBytes = maxPayloadBytes;
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
        // One that waits need not look where a look has just found nothing.
        seen: waitMs > 0 && counter.emptyAt === counter.hints ? counter.hints : -1,
        isOver: waitMs <= 0,
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
        take.isOver = true;
        const place = counter.waiting.indexOf(take);
        if (place < 0) return;
        counter.waiting.splice(place, 1);
        take.resolve([]);
      };
      signal.addEventListener("abort", leave, { once: true });
      counter.waiting.push(take);
      if (isUnseen(counter)) this.#look(counter);
    });
  }

  /**
   * Publishes plain messages and gives them to those who wait for them, in one transaction. Undefined, and nothing is done,
   * while nobody waits or they are being served.
   */
  async publishToWaiting(
    projectId: string,
    queueName: string,
    messages: readonly NewMessage[],
  ): Promise<PublishedToWaiting | undefined> {
    const counter = this.#counters.get(queueTopic(projectId, queueName));
    if (counter === undefined || counter.looking || counter.waiting.length === 0) return undefined;
    counter.looking = true;
    const { hints, memory } = counter;
    const { takes, requests } = this.#takeNext(counter, counter.waiting);
    try {
      const done = await publishAndClaim(this.#db, projectId, queueName, messages, requests, memory.expiredSince);
      const rows = done?.claim.messages ?? requests.map(() => []);
      const left = await this.#answer(counter, takes, rows);
      counter.waiting = [...left, ...counter.waiting];
      // What is not in the line is for a look of its own, and so is a queue that is missing or has none.
      const isAll = done !== undefined && !done.claim.setAside && !done.claim.expired && !done.claim.draining;
      if (!isAll) counter.hints += 1;
      const isEmpty = isAll && isShort(requests, rows);
      if (isEmpty) counter.emptyAt = hints;
      return { placed: done?.placed, isEmpty };
    } catch (error) {
      // Whether it was published is unknown; those who wait look for themselves.
      counter.waiting = [...takes, ...counter.waiting];
      counter.hints += 1;
      throw error;
    } finally {
      this.#lookedAt(counter);
    }
  }

  /** Calls `onSettled` once for each of the messages that is settled on this node, until they are let go. */
  watch(messageIds: readonly string[], onSettled: (messageId: string) => void): void {
    for (const id of messageIds) this.#watched.set(id, onSettled);
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
      tell(id);
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
      emptyAt: -1,
      idleSince: performance.now(),
      unsubscribe: this.#wakeups.on(topic, () => this.#hint(counter)),
    };
    this.#counters.set(topic, counter);
    this.#pollWithin(FIRST_POLL_MS);
    return counter;
  }

  /** Closes counters at which nobody has waited for a while: a stream is away for as long as it writes. */
  #closeIdle(): void {
    for (const [topic, counter] of this.#counters) {
      if (counter.looking || counter.waiting.length > 0) counter.idleSince = performance.now();
      else if (performance.now() - counter.idleSince > LINGER_MS || this.#counters.size > MAX_COUNTERS) {
        counter.unsubscribe();
        this.#counters.delete(topic);
      }
    }
  }

  /** Most messages that one look at a queue is to bring. */
  mostOf(projectId: string, queueName: string): number {
    return this.#most(this.#memories.getOrBuild(queueTopic(projectId, queueName), newHandOutMemory));
  }

  #most({ meanBytes }: HandOutMemory): number {
    const most = meanBytes === undefined ? MAX_UNKNOWN_BYTES / this.#maxPayloadBytes : MAX_BYTES / meanBytes;
    return Math.min(MAX_MESSAGES, Math.max(1, Math.floor(most)));
  }

  /** Takes those out of line, of the candidates, whom one look can serve: the first. With what it is to ask for each. */
  #takeNext(counter: Counter, candidates: readonly Take[]): { takes: Take[]; requests: ClaimRequest[] } {
    const most = this.#most(counter.memory);
    let messages = 0;
    let count = 0;
    for (const { request } of candidates) {
      messages += request.limit;
      if (count > 0 && (messages > most || count >= MAX_TAKES)) break;
      count += 1;
    }
    const takes = candidates.slice(0, count);
    const served = new Set(takes);
    counter.waiting = counter.waiting.filter((take) => !served.has(take));
    const requests = takes.map(({ request }) => ({ ...request, limit: Math.min(request.limit, most) }));
    return { takes, requests };
  }

  #hint(counter: Counter): void {
    counter.hints += 1;
    this.#look(counter);
  }

  #look(counter: Counter): void {
    if (counter.looking) return;
    counter.looking = true;
    void this.#serve(counter).finally(() => this.#lookedAt(counter));
  }

  #lookedAt(counter: Counter): void {
    counter.looking = false;
    counter.idleSince = performance.now();
    if (isUnseen(counter)) this.#look(counter);
  }

  /** Looks until everybody in line has been looked for since the last hint. */
  async #serve(counter: Counter): Promise<void> {
    while (isUnseen(counter)) {
      const { hints } = counter;
      const { takes, requests } = this.#takeNext(
        counter,
        counter.waiting.filter((take) => take.seen < hints),
      );
      const behind = new Set(counter.waiting);
      let rows: MessageRow[][] | undefined;
      try {
        rows = await handOut(this.#db, counter.projectId, counter.queueName, requests, counter.memory);
      } catch (error) {
        // It may have been too much: the next look is for one message, and learns how large it is.
        counter.memory.meanBytes = MAX_BYTES;
        for (const take of takes) take.reject(error);
        continue;
      }
      for (const take of takes) take.seen = hints;
      if (isShort(requests, rows)) counter.emptyAt = hints;
      const left = await this.#answer(counter, takes, rows);
      // Nothing was left for those who stood behind one who got nothing.
      counter.waiting = [
        ...left,
        ...counter.waiting.filter((take) => {
          if (left.length === 0 || !behind.has(take)) return true;
          take.seen = hints;
          if (!take.isOver) return true;
          take.resolve([]);
          return false;
        }),
      ];
    }
  }

  /** Gives each what was handed out to it, or undefined to all, and returns those who go on waiting. */
  async #answer(
    counter: Counter,
    takes: readonly Take[],
    rows: readonly (readonly MessageRow[])[] | undefined,
  ): Promise<Take[]> {
    counter.memory.meanBytes = meanBytes(rows) ?? counter.memory.meanBytes;
    const left: Take[] = [];
    const gone: { readonly take: Take; readonly mine: readonly MessageRow[] }[] = [];
    for (const [i, take] of takes.entries()) {
      const mine = rows?.[i];
      if (mine === undefined) take.resolve(undefined);
      else if (take.signal.aborted) gone.push({ take, mine });
      else if (mine.length > 0 || take.isOver) {
        this.#tally.add(counter.projectId, counter.queueName, "delivered", mine.length);
        take.resolve([...mine]);
      } else left.push(take);
    }
    for (const { take, mine } of gone) {
      await this.#giveBack(counter, mine);
      take.resolve([]);
    }
    return left.filter((take) => {
      if (take.isOver) take.resolve([]);
      return !take.isOver;
    });
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
    this.#closeIdle();
    if (this.#counters.size > 0) this.#pollWithin(nextMs);
  }
}

/** Whether somebody got less than was asked for, so that nothing was left behind. */
function isShort(requests: readonly ClaimRequest[], rows: readonly (readonly MessageRow[])[] | undefined): boolean {
  return requests.some(({ limit }, i) => (rows?.[i]?.length ?? 0) < limit);
}

function isUnseen({ waiting, hints }: Counter): boolean {
  return waiting.some((take) => take.seen < hints);
}

/** Mean size of the payloads. Undefined where there are none. */
function meanBytes(rows: readonly (readonly MessageRow[])[] | undefined): number | undefined {
  let bytes = 0;
  let count = 0;
  for (const some of rows ?? []) {
    for (const { payload } of some) bytes += payload.byteLength;
    count += some.length;
  }
  return count === 0 ? undefined : bytes / count;
}
