import pg from "pg";
import type { BenchDatabase } from "../database.ts";
import type { Order } from "../order.ts";
import { loadPeer } from "../peers.ts";
import type { ConsumerEvents, Contestant } from "./contestant.ts";

export interface GraphileWorker {
  Logger: new (factory: () => () => void) => object;
  makeWorkerUtils(options: object): Promise<{
    migrate(): Promise<void>;
    addJob(identifier: string, payload: Order): Promise<unknown>;
    addJobs(jobs: readonly { readonly identifier: string; readonly payload: Order }[]): Promise<unknown>;
    release(): Promise<void>;
  }>;
  run(options: object): Promise<{ stop(): Promise<void> }>;
}

/** The settings of its makers' own benchmark: a local queue, and completions gathered for one turn of the loop. */
export const GRAPHILE_SETTINGS = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
const CONCURRENCY = 24;
const POOL_SIZE = 64;

/** The library, and a logger that says nothing. */
export async function loadGraphileWorker(): Promise<{ readonly graphile: GraphileWorker; readonly logger: object }> {
  const graphile = await loadPeer<GraphileWorker>("graphile-worker");
  return { graphile, logger: new graphile.Logger(() => () => {}) };
}

export async function openGraphileWorker(database: BenchDatabase): Promise<Contestant> {
  const { graphile, logger } = await loadGraphileWorker();
  const newPool = (max: number): pg.Pool => {
    const pool = new pg.Pool({ connectionString: database.url, max });
    pool.on("error", () => {});
    // Without a listener it warns of a missing one.
    pool.on("connect", (client) => client.on("error", () => {}));
    return pool;
  };
  const pool = newPool(POOL_SIZE);
  const utils = await graphile.makeWorkerUtils({ pgPool: pool, logger });
  await utils.migrate();
  return {
    name: "graphile-worker",
    async publish(order) {
      await utils.addJob("order", order);
    },
    async publishBatch(orders) {
      await utils.addJobs(orders.map((payload) => ({ identifier: "order", payload })));
    },
    async consume({ onMessage, onDone }: ConsumerEvents) {
      const workerPool = newPool(30);
      const order = (payload: Order): void => {
        onMessage?.(payload);
        onDone(1);
      };
      const runner = await graphile.run({
        pgPool: workerPool,
        logger,
        noHandleSignals: true,
        taskList: { order },
        concurrency: CONCURRENCY,
        preset: { worker: { ...GRAPHILE_SETTINGS, concurrentJobs: CONCURRENCY, logger, pollInterval: 500 } },
      });
      return {
        async [Symbol.asyncDispose]() {
          await runner.stop();
          await workerPool.end();
        },
      };
    },
    async empty() {
      await database.query("truncate graphile_worker._private_jobs");
    },
    async [Symbol.asyncDispose]() {
      await utils.release();
      await pool.end();
    },
  };
}
