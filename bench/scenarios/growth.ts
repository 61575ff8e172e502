import { setTimeout as delay } from "node:timers/promises";
import { QueueService, QueueType } from "../../gen/scheduling/v1/queue_service_pb.js";
import { toBytes } from "../clients/carillon-faces.ts";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { createQueues } from "../create-queues.ts";
import { type CycleOptions, rateOver, startCycle } from "../cycle.ts";
import { fillLine } from "../fill.ts";
import { closedLoop, type Measures } from "../measure.ts";
import { newOrder, newOrders, type Order } from "../order.ts";
import type { Entry, Scenario, Scope } from "../scope.ts";

const WARM_MS = 2_000;
const PUBLISHERS = 64;

/** Values of what grows. Each list is one plot. */
const QUEUES = [1, 10, 100, 1_000, 10_000];
const GROUPS = [1, 10, 100, 1_000, 10_000, 100_000];
const NOTE_BYTES = [100, 1_000, 10_000, 100_000];
const STREAMS = [1, 4, 16, 64];
const NODES = [1, 2, 3];
/** The most that is published in one batch, in bytes of payload. */
const BATCH_BYTES = 200_000;

/** How the cost grows with depth, queues, groups, payload, consumers and nodes. Not a goal: the plots are made of it. */
export const growth: Scenario = {
  name: "growth",
  about: "rates by depth, queues, groups, payload, streams and nodes",
  async run(scope) {
    const entries = [
      ...(await byQueues(scope)),
      ...(await byGroups(scope)),
      ...(await byPayload(scope)),
      ...(await byStreams(scope)),
      ...(await byNodes(scope)),
      ...(await byDepth(scope)),
    ];
    return { rounds: await scope.alternate(entries), verdicts: [] };
  },
};

/** Publishes spread over so many queues: fewer of them can share a statement. */
async function byQueues(scope: Scope): Promise<Entry[]> {
  const { grpc } = await openCarillon(scope);
  const names = await createQueues(grpc, Math.max(...QUEUES));
  const span = { warmSeconds: 1, seconds: scope.settings.seconds };
  let turn = 0;
  return QUEUES.map((count) => ({
    name: `queues=${count}`,
    measure: () =>
      closedLoop(PUBLISHERS, span, async () => {
        const queue = names[turn++ % count] ?? "";
        await grpc.unary(QueueService.method.publish, { queue, payload: toBytes(newOrder()) });
        return 1;
      }),
  }));
}

/** A FIFO queue of so many groups, each with one message in flight at most. */
async function byGroups(scope: Scope): Promise<Entry[]> {
  const { node } = await scope.startCarillon();
  const entries: Entry[] = [];
  for (const count of GROUPS) {
    const groupOf = ({ order_id: id }: Order): string => `g${Number(id.slice(2)) % count}`;
    const options = { queue: `groups-${count}`, type: QueueType.FIFO, groupOf };
    const carillon = scope.use(await Carillon.open(node, options));
    entries.push({ name: `groups=${count}`, measure: () => cycleRate(scope, carillon, {}, false) });
  }
  return entries;
}

async function byPayload(scope: Scope): Promise<Entry[]> {
  const carillon = await openCarillon(scope);
  return NOTE_BYTES.map((bytes) => {
    const batch = Math.max(1, Math.min(100, Math.floor(BATCH_BYTES / bytes)));
    const produce = async (): Promise<number> => {
      await carillon.publishBatch(newOrders(batch, bytes));
      return batch;
    };
    return {
      name: `payload=${bytes}`,
      async measure() {
        const { per_s: rate = Number.NaN } = await cycleRate(scope, carillon, { produce });
        return { per_s: rate, megabytes_per_s: (rate * bytes) / 1e6 };
      },
    };
  });
}

async function byStreams(scope: Scope): Promise<Entry[]> {
  const carillon = await openCarillon(scope);
  return STREAMS.map((consumers) => ({
    name: `streams=${consumers}`,
    measure: () => cycleRate(scope, carillon, { consumers }),
  }));
}

/** So many nodes on one database, each with a publisher and a stream, all on one queue. */
async function byNodes(scope: Scope): Promise<Entry[]> {
  const database = await scope.createDatabase("nodes");
  const clients: Carillon[] = [];
  for (let i = 0; i < Math.max(...NODES); i++) {
    clients.push(scope.use(await Carillon.open(await scope.startNode(database))));
  }
  return NODES.map((count) => ({
    name: `nodes=${count}`,
    measure: () => cycleRate(scope, together(clients.slice(0, count)), { producers: 2 * count, consumers: count }),
  }));
}

/** The deepest comes last, since a queue is only ever filled. */
async function byDepth(scope: Scope): Promise<Entry[]> {
  const depths = [0, 10_000, 100_000, 1_000_000].filter((depth) => depth <= scope.settings.depth);
  const entries: Entry[] = [];
  const { node, database } = await scope.startCarillon();
  for (const depth of depths) {
    const carillon = scope.use(await Carillon.open(node, { queue: `depth-${depth}` }));
    await fillLine(database, carillon.queue, depth);
    entries.push({ name: `depth=${depth}`, measure: () => cycleRate(scope, carillon, {}, false) });
  }
  return entries;
}

async function openCarillon(scope: Scope): Promise<Carillon> {
  return scope.use(await Carillon.open((await scope.startCarillon()).node));
}

async function cycleRate(
  { settings }: Scope,
  contestant: Contestant,
  options: CycleOptions = {},
  emptyAfter = true,
): Promise<Measures> {
  const cycle = await startCycle(contestant, options);
  await delay(WARM_MS);
  const rate = await rateOver(cycle, settings.seconds);
  await cycle[Symbol.asyncDispose]();
  if (emptyAfter) await contestant.empty();
  return rate;
}

/** Clients of several nodes as one: each publishes and consumes in turn. */
function together(clients: readonly Carillon[]): Contestant {
  let turn = 0;
  const next = (): Carillon => clients[turn++ % clients.length] as Carillon;
  return {
    name: `${clients.length} nodes`,
    publish: (order) => next().publish(order),
    publishBatch: (orders) => next().publishBatch(orders),
    consume: (events) => next().consume(events),
    empty: () => next().empty(),
    [Symbol.asyncDispose]: async () => {},
  };
}
