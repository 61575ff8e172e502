import { Batcher } from "../db/batcher.ts";
import type { Db } from "../db/schema.ts";
import { isReceiptFor, laneOf } from "../domain/line-ids.ts";
import { type PublishedInLine, publishInLine } from "../store/line.ts";
import { type AckedInLine, ackInLine, type LineDelivery } from "../store/line-leases.ts";
import { type NewMessage, publishMessages } from "../store/messages.ts";
import { findQueue, type NamedQueueRow } from "../store/queues.ts";
import { type AckOutcome, ackMessages } from "../store/settlements.ts";
import type { DeliveryKey } from "../store/standings.ts";

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
  /** Undefined, and nothing is stored, where the queue is missing. */
  add(projectId: string, queueName: string, messages: readonly NewMessage[]): Promise<Published | undefined>;
}

/** What was published. */
export interface Published extends PublishedInLine {
  /** For each message whether an earlier one stands for it. */
  readonly deduplicated: readonly boolean[];
  readonly queue: Pick<NamedQueueRow, "name" | "enable_priority">;
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
      const published =
        placed === undefined
          ? await publishSingly(db, projectId, name, messages)
          : { ...placed, deduplicated: messages.map(() => false), queue: { name, enable_priority: false }, isEmpty };
      if (published === undefined) return requests.map(() => undefined);
      const deduplicated = dealOut(published.deduplicated, requests);
      return dealOut(published.ids, requests).map((ids, i) => ({
        ...published,
        ids,
        deduplicated: deduplicated[i] ?? [],
      }));
    },
    weigh: (messages) => messages.reduce((sum, { payload }) => sum + payload.byteLength + MESSAGE_BYTES, 0),
    maxWeight: MAX_BYTES,
    maxItems: MAX_MESSAGES,
  });
  return {
    add: (projectId, name, messages) => batcher.add(`${projectId}/${name}`, { projectId, name }, messages),
  };
}

/** Each request's part of the results of all, which are in the order of the requests. */
function dealOut<Result>(results: readonly Result[], requests: readonly { readonly length: number }[]): Result[][] {
  let from = 0;
  return requests.map(({ length }) => {
    from += length;
    return results.slice(from - length, from);
  });
}

/** Stores messages of a queue that has no line, all of them or none. Undefined when there is no such queue. */
function publishSingly(
  db: Db,
  projectId: string,
  name: string,
  messages: readonly NewMessage[],
): Promise<Published | undefined> {
  return db.transaction().execute(async (trx) => {
    const queue = await findQueue(trx, projectId, name);
    if (queue === undefined) return undefined;
    const published = await publishMessages(trx, queue, messages);
    return {
      ids: published.map((message) => message.message_id),
      deduplicated: published.map((message) => message.deduplicated),
      queue,
      subscribed: true,
      isEmpty: false,
    };
  });
}

/** Acks of deliveries that came from a line. */
export interface Acks {
  /**
   * What became of each delivery that this call acked; undefined where it is to be asked for elsewhere. Deliveries without
   * a receipt always are.
   */
  add(
    projectId: string,
    queueName: string,
    deliveries: readonly LineDelivery[],
  ): Promise<readonly (AckedInLine | undefined)[]>;
}

interface LaneName extends QueueName {
  readonly laneId: string;
}

export function createAcks(db: Db): Acks {
  const batcher = new Batcher<LaneName, readonly LineDelivery[], readonly (AckedInLine | undefined)[]>({
    run: async ({ projectId, name, laneId }, requests) => {
      return dealOut(await ackInLine(db, { project_id: projectId, name }, laneId, requests.flat()), requests);
    },
    weigh: (deliveries) => deliveries.length,
    maxWeight: 2 * MAX_MESSAGES,
    maxItems: 2 * MAX_MESSAGES,
  });
  return {
    async add(projectId, name, deliveries) {
      const places = Map.groupBy(deliveries.keys(), (place) => lineOf(deliveries[place] as LineDelivery));
      const acked = deliveries.map((): AckedInLine | undefined => undefined);
      const settle = async (laneId: string, of: readonly number[]): Promise<void> => {
        const some = of.map((place) => deliveries[place] as LineDelivery);
        const results = await batcher.add(`${projectId}/${name}/${laneId}`, { projectId, name, laneId }, some);
        for (const [i, place] of of.entries()) acked[place] = results[i];
      };
      await Promise.all(Array.from(places, ([laneId, of]) => (laneId === undefined ? undefined : settle(laneId, of))));
      return acked;
    },
  };
}

/** The lane that a delivery came from, by its receipt. */
function lineOf({ messageId, receipt }: LineDelivery): string | undefined {
  return receipt !== undefined && isReceiptFor(messageId, receipt) ? laneOf(messageId) : undefined;
}

/** Acks of whatever deliveries, those of one request together or not at all. */
export interface SingleAcks {
  /** What came of each delivery, in their order. Undefined when there is no such queue. */
  add(
    projectId: string,
    queueName: string,
    deliveries: readonly DeliveryKey[],
  ): Promise<readonly AckOutcome[] | undefined>;
}

export function createSingleAcks(db: Db): SingleAcks {
  const batcher = new Batcher<QueueName, readonly DeliveryKey[], readonly AckOutcome[] | undefined>({
    run: ({ projectId, name }, requests) =>
      db.transaction().execute(async (trx) => {
        const queue = await findQueue(trx, projectId, name);
        if (queue === undefined) return requests.map(() => undefined);
        return dealOut(await ackMessages(trx, queue, requests.flat()), requests);
      }),
    weigh: (deliveries) => deliveries.length,
    maxWeight: MAX_MESSAGES,
    maxItems: MAX_MESSAGES,
  });
  return {
    add: (projectId, name, deliveries) => batcher.add(`${projectId}/${name}`, { projectId, name }, deliveries),
  };
}
