import type { Order } from "../order.ts";
import { loadPeer } from "../peers.ts";
import type { RabbitmqServer } from "../servers/rabbitmq.ts";
import type { ConsumerEvents, Contestant } from "./contestant.ts";

interface Delivery {
  readonly content: Buffer;
}

interface Channel {
  assertQueue(name: string, options: object): Promise<unknown>;
  sendToQueue(name: string, content: Buffer, options: object, confirmed: (error: unknown) => void): boolean;
  prefetch(count: number): Promise<unknown>;
  consume(name: string, onDelivery: (delivery: Delivery | null) => void): Promise<unknown>;
  ack(delivery: Delivery): void;
  purgeQueue(name: string): Promise<unknown>;
  close(): Promise<void>;
}

interface Connection {
  createConfirmChannel(): Promise<Channel>;
  createChannel(): Promise<Channel>;
  close(): Promise<void>;
}

interface Amqplib {
  connect(url: string): Promise<Connection>;
}

const QUEUE = "orders";
const PREFETCH = 1_000;

/** A quorum queue on one node, with publisher confirms and persistent messages. */
export async function openRabbitmq(rabbitmq: RabbitmqServer): Promise<Contestant> {
  const amqplib = await loadPeer<Amqplib>("amqplib");
  // A connection for each direction, as its makers recommend.
  const [publishing, consuming] = [await amqplib.connect(rabbitmq.url), await amqplib.connect(rabbitmq.url)];
  const channel = await publishing.createConfirmChannel();
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum" } });
  const publish = (order: Order): Promise<void> => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    channel.sendToQueue(QUEUE, Buffer.from(JSON.stringify(order)), { persistent: true }, (error) =>
      error ? reject(error) : resolve(),
    );
    return promise;
  };
  return {
    name: "RabbitMQ quorum",
    publish,
    async publishBatch(orders) {
      await Promise.all(orders.map(publish));
    },
    async consume({ onMessage, onDone }: ConsumerEvents) {
      const consumer = await consuming.createChannel();
      await consumer.prefetch(PREFETCH);
      await consumer.consume(QUEUE, (delivery) => {
        if (delivery === null) return;
        const order = JSON.parse(delivery.content.toString()) as Order;
        onMessage?.(order);
        consumer.ack(delivery);
        onDone(1);
      });
      return { [Symbol.asyncDispose]: () => consumer.close() };
    },
    async empty() {
      await channel.purgeQueue(QUEUE);
    },
    async [Symbol.asyncDispose]() {
      await publishing.close();
      await consuming.close();
    },
  };
}
