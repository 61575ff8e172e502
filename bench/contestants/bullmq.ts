import type { Order } from "../order.ts";
import { loadPeer } from "../peers.ts";
import type { AppendFsync, RedisServer } from "../servers/redis.ts";
import type { ConsumerEvents, Contestant } from "./contestant.ts";

interface Bull {
  Queue: new (
    name: string,
    options: object,
  ) => {
    waitUntilReady(): Promise<unknown>;
    add(name: string, order: Order): Promise<unknown>;
    addBulk(jobs: readonly { readonly name: string; readonly data: Order }[]): Promise<unknown>;
    obliterate(options: { readonly force: boolean }): Promise<void>;
    close(): Promise<void>;
  };
  Worker: new (
    name: string,
    handle: (job: { readonly data: Order }) => Promise<void>,
    options: object,
  ) => {
    on(event: "completed", listener: () => void): void;
    on(event: "error", listener: (error: Error) => void): void;
    close(): Promise<void>;
  };
}

const QUEUE = "orders";
/** Finished jobs are not kept, as a queue keeps none. */
const WORKER = { concurrency: 200, removeOnComplete: { count: 0 }, removeOnFail: { count: 0 } };

export async function openBullmq(redis: RedisServer, appendFsync: AppendFsync): Promise<Contestant> {
  const { Queue, Worker } = await loadPeer<Bull>("bullmq");
  const connection = { host: "127.0.0.1", port: redis.port };
  const queue = new Queue(QUEUE, { connection });
  await queue.waitUntilReady();
  return {
    name: `BullMQ, AOF ${appendFsync}`,
    async publish(order) {
      await queue.add("order", order);
    },
    async publishBatch(orders) {
      await queue.addBulk(orders.map((data) => ({ name: "order", data })));
    },
    async consume({ onMessage, onDone }: ConsumerEvents) {
      const worker = new Worker(QUEUE, async ({ data }) => onMessage?.(data), { connection, ...WORKER });
      worker.on("completed", () => onDone(1));
      worker.on("error", (error) => process.stderr.write(`BullMQ: ${error.message}\n`));
      return { [Symbol.asyncDispose]: () => worker.close() };
    },
    empty: () => queue.obliterate({ force: true }),
    [Symbol.asyncDispose]: () => queue.close(),
  };
}
