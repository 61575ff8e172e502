import { randomUUID } from "node:crypto";
import type { Db } from "../db/schema.ts";
import { type QueueActivity, recordActivity } from "./queue-history.ts";

/** What a node counts of its own work. The rest is counted by the statements that do it. */
export type Counted = "published" | "delivered" | "acked" | "nacked";

/** How long what was counted stays in memory, in milliseconds: what a node that is killed loses of its queues' history. */
const FLUSH_MS = 5_000;

/**
 * Counts what this node does with each queue and writes it down every few seconds, in rows of its own, so that no two
 * nodes wait for each other. What cannot be written is lost: it is for plots, not for accounts.
 */
export class QueueTally implements AsyncDisposable {
  readonly #db: Db;
  readonly #part = randomUUID();
  readonly #closed = new AbortController();
  #counts = new Map<string, QueueActivity>();
  #timer: NodeJS.Timeout | undefined;
  #flushing: Promise<void> = Promise.resolve();

  constructor(db: Db) {
    this.#db = db;
  }

  /** Never waits and never throws. */
  add(projectId: string, queueName: string, what: Counted, count: number): void {
    if (count === 0 || this.#closed.signal.aborted) return;
    const key = `${projectId}/${queueName}`;
    let activity = this.#counts.get(key);
    if (activity === undefined) {
      activity = { projectId, queueName, published: 0, delivered: 0, acked: 0, nacked: 0 };
      this.#counts.set(key, activity);
    }
    activity[what] += count;
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS).unref();
  }

  /** Writes down what was counted until now, after what is being written already. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#flushing = this.#flushing.then(async () => {
      const counts = [...this.#counts.values()];
      this.#counts = new Map();
      if (counts.length > 0) await recordActivity(this.#db, this.#part, counts).catch(() => {});
    });
    return this.#flushing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort();
    await this.flush();
  }
}
