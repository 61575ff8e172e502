import type { Db } from "../db/schema.ts";
import { isReceiptFor, laneOf } from "../domain/line-ids.ts";
import { type PublishedInLine, publishInLine } from "../store/line.ts";
import { ackInLine, type LineDelivery } from "../store/line-claims.ts";
import type { NewMessage } from "../store/messages.ts";
import { Batcher } from "./batcher.ts";
import type { HandOuts } from "./hand-outs.ts";

/** Most messages of one statement. */
const MAX_MESSAGES = 1_000;
/** Most payload bytes of one statement; a request that has more is one of its own. */
const MAX_BYTES = 4 * 1_048_576;
/** What a message counts towards that beside its payload. */
const MESSAGE_BYTES = 128;

interface QueueName {
  readonly projectId: string;
  readonly name: string;
}

/** Publishes of plain messages, those of one request together or not at all. */
export interface Publishes {
  /** Undefined, and nothing is stored, where the queue is missing or has no line. */
  add(projectId: string, queueName: string, messages: readonly NewMessage[]): Promise<Published | undefined>;
}

/** What was published. */
export interface Published extends PublishedInLine {
  /** Whether it has been handed out already, and nothing is left in the queue. */
  readonly isEmpty: boolean;
}

export function createPublishes(db: Db, handOuts: HandOuts): Publishes {
  const batcher = new Batcher<QueueName, readonly NewMessage[], Published | undefined>({
    run: async ({ projectId, name }, requests) => {
      const messages = requests.flat();
      const { placed, isEmpty } = (await handOuts.publishToWaiting(projectId, name, messages)) ?? {
        placed: await publishInLine(db, projectId, name, messages),
        isEmpty: false,
      };
      if (placed === undefined) return requests.map(() => undefined);
      let from = 0;
      return requests.map(({ length }) => {
        from += length;
        return { ...placed, ids: placed.ids.slice(from - length, from), isEmpty };
      });
    },
    weigh: (messages) => messages.reduce((sum, { payload }) => sum + payload.byteLength + MESSAGE_BYTES, 0),
    maxWeight: MAX_BYTES,
    maxItems: MAX_MESSAGES,
  });
  return {
    add: (projectId, name, messages) => batcher.add(`${projectId}/${name}`, { projectId, name }, messages),
  };
}

/** Acks of deliveries that came from a line. */
export interface Acks {
  /**
   * For each delivery whether its lease had ended before, where this call acked it; undefined where it is to be asked for
   * elsewhere. Deliveries without a receipt always are.
   */
  add(
    projectId: string,
    queueName: string,
    deliveries: readonly LineDelivery[],
  ): Promise<readonly ({ readonly late: boolean } | undefined)[]>;
}

interface LaneName extends QueueName {
  readonly laneId: string;
}

export function createAcks(db: Db): Acks {
  const batcher = new Batcher<LaneName, readonly LineDelivery[], ReadonlyMap<string, { readonly late: boolean }>>({
    run: async ({ projectId, name, laneId }, requests) => {
      const acked = await ackInLine(db, { project_id: projectId, name }, laneId, requests.flat());
      return requests.map(() => acked);
    },
    weigh: (deliveries) => deliveries.length,
    maxWeight: 2 * MAX_MESSAGES,
    maxItems: 2 * MAX_MESSAGES,
  });
  return {
    async add(projectId, name, deliveries) {
      const isFenced = ({ messageId, receipt }: LineDelivery) =>
        receipt !== undefined && isReceiptFor(messageId, receipt);
      const fenced = deliveries.filter(isFenced);
      const lanes = Map.groupBy(fenced, ({ messageId }) => laneOf(messageId));
      const acked = await Promise.all(
        Array.from(lanes, ([laneId, some]) =>
          laneId === undefined
            ? new Map()
            : batcher.add(`${projectId}/${name}/${laneId}`, { projectId, name, laneId }, some),
        ),
      );
      return deliveries.map((delivery) => {
        const { receipt = "" } = delivery;
        return isFenced(delivery) ? acked.find((map) => map.has(receipt))?.get(receipt) : undefined;
      });
    },
  };
}
