import { QueueService, type QueueType } from "../../gen/scheduling/v1/queue_service_pb.js";
import { type Face, openPublisher, type Publisher, toBytes } from "../clients/carillon-faces.ts";
import { consumeStream } from "../clients/carillon-stream.ts";
import { GrpcClient } from "../clients/grpc.ts";
import type { Order } from "../order.ts";
import { type CarillonNode, KEY } from "../servers/carillon.ts";
import type { ConsumerEvents, Contestant } from "./contestant.ts";

export interface CarillonOptions {
  readonly name?: string;
  /** How publishes go; consumers use one gRPC stream in any case. */
  readonly face?: Face;
  readonly queue?: string;
  readonly type?: QueueType;
  /** The group of each message that is published in a batch. */
  readonly groupOf?: (order: Order) => string;
}

/** A client of a Carillon node, over loopback. The node is the caller's. */
export class Carillon implements Contestant {
  readonly name: string;
  readonly queue: string;
  readonly grpc: GrpcClient;
  readonly #publisher: Publisher;
  readonly #options: CarillonOptions;

  private constructor(node: CarillonNode, options: CarillonOptions) {
    const { face = "gRPC", queue = "bench" } = options;
    this.name = options.name ?? `Carillon ${face}`;
    this.queue = queue;
    this.grpc = new GrpcClient(node.port, KEY);
    this.#publisher = openPublisher(face, node.port, this.grpc);
    this.#options = options;
  }

  static async open(node: CarillonNode, options: CarillonOptions = {}): Promise<Carillon> {
    const carillon = new Carillon(node, options);
    const { type } = options;
    await carillon.grpc.unary(QueueService.method.createQueue, {
      queue: carillon.queue,
      ...(type !== undefined && { type }),
    });
    return carillon;
  }

  publish(order: Order): Promise<void> {
    return this.#publisher.publish(this.queue, order);
  }

  async publishBatch(orders: readonly Order[]): Promise<void> {
    const { groupOf } = this.#options;
    if (groupOf === undefined) return this.#publisher.publishBatch(this.queue, orders);
    const messages = orders.map((order) => ({ payload: toBytes(order), groupId: groupOf(order) }));
    await this.grpc.unary(QueueService.method.publishBatch, { queue: this.queue, messages });
  }

  async consume(events: ConsumerEvents): Promise<AsyncDisposable> {
    return consumeStream(this.grpc, this.queue, events);
  }

  /** A purge and no new queue: what is left of a deleted queue would be removed during the turns of others. */
  async empty(): Promise<void> {
    await this.grpc.unary(QueueService.method.purgeQueue, { queue: this.queue });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#publisher[Symbol.dispose]();
    this.grpc[Symbol.dispose]();
  }
}
