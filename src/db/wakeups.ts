import { EventEmitter } from "node:events";
import pg from "pg";

/**
 * Hints that something may be due. `queue:<project>/<name>` has messages or room; messages of `settled:<project>/<name>`
 * were settled; `runs` has a due run; `crons` has a new schedule; `redrives` has one that was started.
 */
export type Topic =
  | `queue:${string}`
  | `settled:${string}`
  | "runs"
  | "crons"
  | "pushes"
  | "redrives"
  | "replays"
  | "backfills";

/** The topic of a queue. Named rather than numbered, so that a caller can wake it without reading it. */
export function queueTopic(projectId: string, name: string): Topic {
  return `queue:${projectId}/${name}`;
}

/** The topic of settlements in a queue. */
export function settledTopic(projectId: string, name: string): Topic {
  return `settled:${projectId}/${name}`;
}

const CHANNEL = "carillon_wakeups";
/** A NOTIFY takes a lock that all committing notifiers share, so a node sends at most one in this time. */
const COALESCE_MS = 10;
/** Most topics in one NOTIFY, whose payload must stay under 8000 bytes; a topic has at most 173. */
const MAX_TOPICS = 40;
const RECONNECT_MS = [100, 500, 2_000, 5_000];

/**
 * Wakes waiters in this process at once and those on other nodes by NOTIFY. Only ever a hint: whoever waits polls as
 * well, and everything works, later by one poll, while LISTEN is dead.
 */
export class Wakeups implements AsyncDisposable {
  readonly #emitter = new EventEmitter().setMaxListeners(0);
  readonly #url: string;
  readonly #isAlone: boolean;
  readonly #pending = new Set<Topic>();
  readonly #closed = new AbortController();
  #client: pg.Client | undefined;
  #flushTimer: NodeJS.Timeout | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  /** A NOTIFY is under way. The next one waits for it, however slow the database is. */
  #notifying = false;
  #failures = 0;

  /** @param options.alone there are no other nodes to wake. */
  constructor(url: string, { alone = false }: { readonly alone?: boolean } = {}) {
    this.#url = url;
    this.#isAlone = alone;
    void this.#connect();
  }

  /** Wakes whoever waits for `topic`. Never waits and never throws. */
  wake(topic: Topic): void {
    this.wakeHere(topic);
    if (this.#isAlone) return;
    if (this.#pending.size < MAX_TOPICS) this.#pending.add(topic);
    this.#scheduleFlush();
  }

  /** Wakes whoever waits for `topic` in this process: for what is nothing to other nodes. */
  wakeHere(topic: Topic): void {
    this.#emitter.emit(topic);
  }

  /** Resolves at the next wake-up of `topic`, after `timeoutMs`, or when `signal` aborts, whichever comes first. */
  wait(topic: Topic, timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted || this.#closed.signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#emitter.off(topic, done);
        signal.removeEventListener("abort", done);
        this.#closed.signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      this.#emitter.on(topic, done);
      signal.addEventListener("abort", done, { once: true });
      this.#closed.signal.addEventListener("abort", done, { once: true });
    });
  }

  /** Calls `listener` at each wake-up of `topic` until the returned function is called. */
  on(topic: Topic, listener: () => void): () => void {
    this.#emitter.on(topic, listener);
    return () => this.#emitter.off(topic, listener);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort();
    clearTimeout(this.#flushTimer);
    clearTimeout(this.#retryTimer);
    this.#emitter.removeAllListeners();
    await this.#client?.end().catch(() => {});
  }

  #scheduleFlush(): void {
    if (this.#notifying || this.#closed.signal.aborted) return;
    this.#flushTimer ??= setTimeout(() => void this.#flush(), COALESCE_MS);
  }

  async #flush(): Promise<void> {
    this.#flushTimer = undefined;
    const topics = [...this.#pending];
    this.#pending.clear();
    this.#notifying = true;
    await this.#client?.query("select pg_notify($1, $2)", [CHANNEL, topics.join(" ")]).catch(() => {});
    this.#notifying = false;
    if (this.#pending.size > 0) this.#scheduleFlush();
  }

  async #connect(): Promise<void> {
    if (this.#closed.signal.aborted) return;
    const client = new pg.Client({
      connectionString: this.#url,
      application_name: "carillon wake-ups",
      connectionTimeoutMillis: 5_000,
      keepAlive: true,
      query_timeout: 10_000,
    });
    let lost = false;
    const onLost = () => {
      if (lost) return;
      lost = true;
      this.#client = undefined;
      client.end().catch(() => {});
      if (this.#closed.signal.aborted) return;
      const wait = RECONNECT_MS[Math.min(this.#failures++, RECONNECT_MS.length - 1)] ?? 5_000;
      this.#retryTimer = setTimeout(() => void this.#connect(), wait);
    };
    client.on("error", onLost);
    client.on("end", onLost);
    client.on("notification", ({ payload }) => {
      for (const topic of (payload ?? "").split(" ")) this.#emitter.emit(topic);
    });
    try {
      await client.connect();
      await client.query(`listen ${CHANNEL}`);
      this.#client = client;
      this.#failures = 0;
      // What was said while nobody listened is lost, so everyone looks once.
      for (const topic of this.#emitter.eventNames()) this.#emitter.emit(topic);
      if (this.#closed.signal.aborted) await client.end();
    } catch {
      onLost();
    }
  }
}
