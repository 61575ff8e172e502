import { QueueService, QueueType } from "../../gen/scheduling/v1/queue_service_pb.js";
import { cycleWithClaims } from "../claim-probe.ts";
import { toBytes } from "../clients/carillon-faces.ts";
import { Carillon } from "../contestants/carillon.ts";
import { createQueues } from "../create-queues.ts";
import { fill } from "../fill.ts";
import { closedLoop } from "../measure.ts";
import { newOrder, type Order } from "../order.ts";
import type { Scenario } from "../scope.ts";
import type { CarillonNode } from "../servers/carillon.ts";
import { ratios, type Verdict } from "../verdict.ts";

const WIDTH = 64;
/** Messages of each group that wait from the beginning, in the queue with many groups. */
const PER_GROUP = 2;
/** How many times more groups the queue with many has than the one with few. */
const TIMES = 100;

/** One queue among many, and one queue with many groups. */
export const many: Scenario = {
  name: "many",
  about: "the cycle beside thousands of queues, publishes spread over them, and FIFO with many groups",
  async run(scope) {
    const { queues, groups, seconds } = scope.settings;
    const span = { warmSeconds: 1, seconds };
    const [quiet, crowded] = [(await scope.startCarillon()).node, (await scope.startCarillon()).node];
    const alone = scope.use(await Carillon.open(quiet));
    const amongMany = scope.use(await Carillon.open(crowded));
    const names = await createQueues(amongMany.grpc, queues);
    const fewGroups = Math.max(1, Math.round(groups / TIMES));
    const openFifo = async (node: CarillonNode, count: number): Promise<Carillon> => {
      const groupOf = ({ order_id: id }: Order): string => `g${Number(id.slice(2)) % count}`;
      const fifo = scope.use(await Carillon.open(node, { queue: "fifo", type: QueueType.FIFO, groupOf }));
      // As many messages wait in both.
      await fill(fifo, groups * PER_GROUP);
      return fifo;
    };
    const [few, full] = [await openFifo(quiet, fewGroups), await openFifo(crowded, groups)];

    let turn = 0;
    const label = {
      alone: "one queue",
      among: `one of ${show(queues)} queues`,
      few: `FIFO, ${show(fewGroups)} groups`,
      full: `FIFO, ${show(groups)} groups`,
      one: "publishes to one queue",
      spread: `publishes over ${show(queues)} queues`,
    };
    const rounds = await scope.alternate([
      { name: label.alone, measure: () => cycleWithClaims(alone, seconds) },
      { name: label.among, measure: () => cycleWithClaims(amongMany, seconds) },
      { name: label.few, measure: () => cycleWithClaims(few, seconds) },
      { name: label.full, measure: () => cycleWithClaims(full, seconds) },
      { name: label.one, measure: () => closedLoop(WIDTH, span, () => publishTo(alone, alone.queue)) },
      {
        name: label.spread,
        measure: () => closedLoop(WIDTH, span, () => publishTo(amongMany, names[turn++ % names.length] as string)),
      },
    ]);
    const flat = (contestant: string, peer: string): Verdict => ({
      goal: 6,
      what: `${contestant} / ${peer}`,
      unit: "×",
      bound: { atLeast: 0.85 },
      values: ratios(rounds, contestant, peer),
    });
    return {
      rounds,
      verdicts: [flat(label.among, label.alone), flat(label.full, label.few), flat(label.spread, label.one)],
    };
  },
};

async function publishTo({ grpc }: Carillon, queue: string): Promise<number> {
  await grpc.unary(QueueService.method.publish, { queue, payload: toBytes(newOrder()) });
  return 1;
}

function show(count: number): string {
  return count.toLocaleString("en-US");
}
