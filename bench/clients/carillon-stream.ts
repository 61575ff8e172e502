import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { ConsumerEvents } from "../contestants/contestant.ts";
import type { Order } from "../order.ts";
import type { GrpcClient } from "./grpc.ts";
import { ackBatchRequest, countAcked, type HandedOut, handedOut } from "./wire.ts";

/** Most messages that the stream may have out. */
const MAX_UNACKED = 1_000;
/** Most messages in one answer: while one is acked, others are on their way. */
const MAX_BATCH = 250;

/** Takes everything from a queue through one ConsumeStream and acks each batch as it comes. */
export function consumeStream(grpc: GrpcClient, queue: string, events: ConsumerEvents): AsyncDisposable {
  const { onMessage, onDone } = events;
  const underWay = new Set<Promise<unknown>>();
  let stopped = false;
  const stream = grpc.stream(
    QueueService.method.consumeStream,
    { queue, maxUnacked: MAX_UNACKED, maxBatch: MAX_BATCH },
    (answer) => {
      const messages = handedOut(answer);
      // Parsed even where nobody looks: every peer's library gives its user the object.
      const orders = messages.map(({ payload }) => JSON.parse(payload.toString()) as Order);
      if (onMessage !== undefined) for (const order of orders) onMessage(order);
      if (messages.length === 0) return;
      const ack = ackAll(grpc, queue, messages).then(onDone);
      underWay.add(ack);
      void ack.finally(() => underWay.delete(ack));
    },
    (error) => {
      if (!stopped) throw error;
    },
  );
  return {
    async [Symbol.asyncDispose]() {
      stopped = true;
      stream[Symbol.dispose]();
      await Promise.all(underWay);
    },
  };
}

/** Acks messages by their receipts and resolves with how many; rejects where one was not acked. */
async function ackAll(grpc: GrpcClient, queue: string, messages: readonly HandedOut[]): Promise<number> {
  const acked = countAcked(await grpc.call(QueueService.method.ackBatch, ackBatchRequest(queue, messages)));
  if (acked !== messages.length) throw new Error(`${messages.length - acked} messages were not acked`);
  return acked;
}
