import type { HandlerContext } from "@connectrpc/connect";
import type { ConsumeStreamRequest } from "../../gen/scheduling/v1/queue_service_pb.js";
import { queueTopic, settledTopic } from "../db/wakeups.ts";
import { extendLeases, type Leases, leasesOf, liveLeases, releaseLeases } from "../store/leases.ts";
import type { MessageRow } from "../store/messages.ts";
import { type AppContext, projectOf } from "./context.ts";
import { requireQueue } from "./find-queue.ts";

/**
 * When a stream that is full looks for what was settled on other nodes, in milliseconds: after a hint, without one, and
 * at most so late, the double of the time before each time that a look finds nothing. A client that has stalled is not
 * to cost a statement a second.
 */
const HINTED_RECHECK_MS = 20;
const RECHECK_MS = 1_000;
const MAX_RECHECK_MS = 15_000;
/** Payload bytes that a stream may have out where the caller does not say. */
const MAX_BYTES = 64 * 1_048_576;
/** Most messages in one answer where the caller does not say. */
const BATCH = 100;
/** Payload bytes that one answer is meant to have at most: what a client that has stopped reading keeps us holding. */
const ANSWER_BYTES = 65_536;
/** Most messages in a stream's first answer, when their size is not known yet. */
const FIRST_BATCH = 10;
/** How many times in the length of a lease it is extended. */
const EXTENSIONS_PER_LEASE = 3;
/** How long messages may wait to be handed out before their leases are started anew: a part of the lease, and at most. */
const STALE_PART = 0.1;
const MAX_STALE_MS = 1_000;

/** Messages that a stream has leased and is to hand out together. */
export interface StreamBatch {
  readonly rows: readonly MessageRow[];
  /** When they came, in milliseconds of performance.now(). */
  readonly leasedAt: number;
}

/**
 * The messages that one stream has handed out and that are not settled: what the stream's credit is counted by, what is
 * extended while it lives, and what is released when it ends, however it ends.
 */
export class StreamLeases implements AsyncDisposable {
  readonly #app: AppContext;
  readonly #ctx: HandlerContext;
  readonly #open: ConsumeStreamRequest;
  /** Length of a lease in seconds. */
  readonly #seconds: number;
  /** By the message's id. */
  readonly #out = new Map<string, { readonly receipt: string; readonly bytes: number }>();
  #bytes = 0;
  /** Mean size of the messages of the newest answer. Undefined: there was none. */
  #meanBytes: number | undefined;
  #wake = (): void => {};
  #isOver = false;
  /** How often in a row a look for what was settled elsewhere has found nothing. */
  #vainChecks = 0;
  readonly #extender: NodeJS.Timeout | undefined;

  constructor(app: AppContext, ctx: HandlerContext, open: ConsumeStreamRequest, queueSeconds: number) {
    this.#app = app;
    this.#ctx = ctx;
    this.#open = open;
    this.#seconds = open.visibilityTimeout ?? queueSeconds;
    if (open.extendLeases) {
      this.#extender = setInterval(() => void this.#extend(), (this.#seconds * 1_000) / EXTENSIONS_PER_LEASE).unref();
    }
    // A generator that waits for its reader is not resumed by a reader that is gone, so the signal releases as well.
    ctx.signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  /** How many more messages may be handed out. */
  get room(): number {
    if (this.#bytes >= (this.#open.maxUnackedBytes ?? MAX_BYTES)) return 0;
    return Math.max(0, (this.#open.maxUnacked ?? 100) - this.#out.size);
  }

  /** How many messages the next answer may have. */
  get batch(): number {
    const fitting =
      this.#meanBytes === undefined ? FIRST_BATCH : Math.max(1, Math.floor(ANSWER_BYTES / this.#meanBytes));
    return Math.min(this.room, this.#open.maxBatch ?? BATCH, fitting);
  }

  /**
   * Counts the messages as handed out, as far as their bytes have room, and returns those; the rest is released. One
   * message always has room in an empty stream, and none in one that is over.
   */
  async add(rows: readonly MessageRow[]): Promise<readonly MessageRow[]> {
    if (this.#isOver) {
      await this.#release(leasesOf(rows));
      return [];
    }
    const most = this.#open.maxUnackedBytes ?? MAX_BYTES;
    const ids: string[] = [];
    const before = this.#bytes;
    for (const row of rows) {
      if (this.#bytes >= most) break;
      const bytes = row.payload.byteLength;
      this.#bytes += bytes;
      this.#out.set(row.message_id, { receipt: row.lease_token ?? "", bytes });
      ids.push(row.message_id);
    }
    const count = ids.length;
    if (count > 0) this.#meanBytes = (this.#bytes - before) / count;
    this.#app.handOuts.watch(ids, this.#settled);
    if (count < rows.length) await this.#release(leasesOf(rows.slice(count)));
    return rows.slice(0, count);
  }

  /**
   * The messages, to be handed out now. Where they have waited for a slow client their leases begin anew, because a lease is
   * the client's time; what was lost meanwhile is left out.
   */
  async renew({ rows, leasedAt }: StreamBatch): Promise<readonly MessageRow[]> {
    const waitedMs = performance.now() - leasedAt;
    if (rows.length === 0 || waitedMs < Math.min(MAX_STALE_MS, this.#seconds * 1_000 * STALE_PART)) return rows;
    const queue = await requireQueue(this.#app.db, this.#ctx, this.#open.queue);
    await extendLeases(this.#app.db, queue, leasesOf(rows), this.#seconds);
    const live = await liveLeases(this.#app.db, queue, leasesOf(rows));
    return rows.flatMap((row) => {
      if (live.has(row.lease_token ?? "")) {
        const endsAt = row.lease_expires_at && new Date(row.lease_expires_at.getTime() + waitedMs);
        return { ...row, lease_expires_at: endsAt };
      }
      this.#settled(row.message_id);
      return [];
    });
  }

  /** Resolves when there is room, after `ms`, or when the signal aborts. */
  async waitForRoom(ms: number, signal: AbortSignal): Promise<void> {
    const endsAt = performance.now() + ms;
    let checkedAt = performance.now();
    let hinted = false;
    const hint = () => {
      hinted = true;
      this.#wake();
    };
    const unsubscribe = this.#app.wakeups.on(settledTopic(projectOf(this.#ctx), this.#open.queue), hint);
    signal.addEventListener("abort", hint, { once: true });
    try {
      while (this.room === 0 && !signal.aborted) {
        const now = performance.now();
        if (now >= endsAt) return;
        const checkAt = checkedAt + (this.#vainChecks > 0 ? this.#recheckMs : hinted ? HINTED_RECHECK_MS : RECHECK_MS);
        if (now < checkAt) {
          await this.#pause(Math.min(endsAt, checkAt) - now);
          continue;
        }
        hinted = false;
        await this.#recheck();
        checkedAt = performance.now();
        this.#vainChecks = this.room === 0 ? this.#vainChecks + 1 : 0;
      }
    } finally {
      unsubscribe();
      signal.removeEventListener("abort", hint);
    }
  }

  get #recheckMs(): number {
    return Math.min(MAX_RECHECK_MS, RECHECK_MS * 2 ** (this.#vainChecks - 1));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ctx.signal.removeEventListener("abort", this.#onAbort);
    await this.#end();
  }

  readonly #onAbort = (): void => void this.#end();

  readonly #settled = (id: string): void => {
    const gone = this.#out.get(id);
    if (gone === undefined) return;
    this.#out.delete(id);
    this.#bytes -= gone.bytes;
    this.#vainChecks = 0;
    this.#wake();
  };

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Lets go what was settled on other nodes, or whose lease ended. */
  async #recheck(): Promise<void> {
    const queue = await requireQueue(this.#app.db, this.#ctx, this.#open.queue);
    const live = new Set((await liveLeases(this.#app.db, queue, this.#leases())).keys());
    for (const [id, { receipt }] of this.#out) if (!live.has(receipt)) this.#settled(id);
  }

  #leases(): Leases {
    return new Map(Array.from(this.#out, ([id, { receipt }]) => [receipt, id]));
  }

  /** An extension that fails leaves the leases to run out, or to the next one. */
  async #extend(): Promise<void> {
    if (this.#out.size === 0 || this.#ctx.signal.aborted) return;
    try {
      const queue = await requireQueue(this.#app.db, this.#ctx, this.#open.queue);
      await extendLeases(this.#app.db, queue, this.#leases(), this.#seconds);
    } catch {}
  }

  async #end(): Promise<void> {
    this.#isOver = true;
    clearInterval(this.#extender);
    const leases = this.#leases();
    this.#app.handOuts.unwatch(this.#out.keys());
    this.#out.clear();
    this.#bytes = 0;
    await this.#release(leases);
  }

  /** A release that fails leaves the leases to run out by themselves. */
  async #release(leases: Leases): Promise<void> {
    if (leases.size === 0) return;
    const { db, wakeups } = this.#app;
    try {
      await releaseLeases(db, await requireQueue(db, this.#ctx, this.#open.queue), leases);
      wakeups.wake(queueTopic(projectOf(this.#ctx), this.#open.queue));
      wakeups.wake("pushes");
    } catch {}
  }
}
