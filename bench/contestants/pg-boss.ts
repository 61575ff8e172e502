import { setTimeout as delay } from "node:timers/promises";
import type { BenchDatabase } from "../database.ts";
import type { Order } from "../order.ts";
import { loadPeer } from "../peers.ts";
import type { ConsumerEvents, Contestant } from "./contestant.ts";

interface Boss {
  on(event: "error" | "warning", listener: (about: unknown) => void): void;
  start(): Promise<unknown>;
  createQueue(name: string): Promise<void>;
  send(queue: string, order: Order): Promise<unknown>;
  insert(queue: string, jobs: readonly { readonly data: Order }[]): Promise<unknown>;
  fetch(queue: string, options: { readonly batchSize: number }): Promise<{ id: string; data: Order }[] | null>;
  complete(queue: string, ids: readonly string[]): Promise<unknown>;
  stop(options: { readonly graceful: boolean }): Promise<void>;
}

interface PgBoss {
  PgBoss: new (options: object) => Boss;
}

const QUEUE = "orders";
/** Two loops of the largest batch that gains anything were its fastest way to process. */
const LOOPS = 2;

/** Its upkeep is off: it would only cost it speed in a run this short. */
const OPTIONS = { max: 64, supervise: false, schedule: false, reindex: false, monitorVacuum: false };

export async function openPgBoss(database: BenchDatabase, batchSize = 1_000): Promise<Contestant> {
  const { PgBoss } = await loadPeer<PgBoss>("pg-boss");
  const boss = new PgBoss({ connectionString: database.url, ...OPTIONS });
  boss.on("error", (error) => process.stderr.write(`pg-boss: ${error}\n`));
  boss.on("warning", () => {});
  await boss.start();
  await boss.createQueue(QUEUE);
  return {
    name: "pg-boss",
    async publish(order) {
      await boss.send(QUEUE, order);
    },
    async publishBatch(orders) {
      await boss.insert(
        QUEUE,
        orders.map((data) => ({ data })),
      );
    },
    async consume({ onMessage, onDone }: ConsumerEvents) {
      let stopped = false;
      const loop = async (): Promise<void> => {
        while (!stopped) {
          const jobs = (await boss.fetch(QUEUE, { batchSize })) ?? [];
          if (jobs.length === 0) {
            await delay(1);
            continue;
          }
          if (onMessage !== undefined) for (const { data } of jobs) onMessage(data);
          await boss.complete(
            QUEUE,
            jobs.map(({ id }) => id),
          );
          onDone(jobs.length);
        }
      };
      const loops = Array.from({ length: LOOPS }, loop);
      return {
        async [Symbol.asyncDispose]() {
          stopped = true;
          await Promise.all(loops);
        },
      };
    },
    async empty() {
      await database.query("truncate pgboss.job_common");
    },
    [Symbol.asyncDispose]: () => boss.stop({ graceful: false }),
  };
}
