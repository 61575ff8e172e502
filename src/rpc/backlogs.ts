import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { QueueBacklogSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { LruCache } from "../domain/lru-cache.ts";
import { queueStats } from "../store/queue-stats.ts";
import { findQueue } from "../store/queues.ts";

type Backlog = MessageInitShape<typeof QueueBacklogSchema>;

/** How old the figures may be, in milliseconds: reading them is not to cost more than the pulls that show them. */
const FRESH_MS = 1_000;
/** Longest wait for figures, in milliseconds: what was handed out is worth more than they are. */
const WAIT_MS = 200;
/** Most queues whose figures are kept. */
const MAX_QUEUES = 1_000;

interface Known {
  /** When they are to be read again, in milliseconds of performance.now(). */
  readAt: number;
  backlog: Backlog | undefined;
  reading: Promise<void> | undefined;
}

/** What waits in queues, read for all their callers at most once a second. */
export class Backlogs {
  readonly #db: Db;
  readonly #known = new LruCache<Known>(MAX_QUEUES);

  constructor(db: Db) {
    this.#db = db;
  }

  /** Undefined when there is no such queue, or it cannot be read now. */
  async read(projectId: string, queueName: string): Promise<Backlog | undefined> {
    const known = this.#known.getOrBuild(`${projectId}/${queueName}`, () => ({
      readAt: 0,
      backlog: undefined,
      reading: undefined,
    }));
    if (known.readAt > performance.now()) return known.backlog;
    known.reading ??= this.#look(projectId, queueName)
      .catch(() => undefined)
      .then((backlog) => {
        Object.assign(known, { backlog, readAt: performance.now() + FRESH_MS, reading: undefined });
      });
    const timer = new AbortController();
    const isRead = await Promise.race([
      known.reading.then(() => true),
      delay(WAIT_MS, false, { signal: timer.signal, ref: false }),
    ]);
    timer.abort();
    return isRead ? known.backlog : undefined;
  }

  async #look(projectId: string, queueName: string): Promise<Backlog | undefined> {
    const queue = await findQueue(this.#db, projectId, queueName);
    if (queue === undefined) return undefined;
    const { available, oldest_age_seconds: oldest } = await queueStats(this.#db, queue);
    return { available, ...(oldest !== null && { oldestAgeSeconds: oldest }) };
  }
}
