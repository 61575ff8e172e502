import { create, type DescMessage, type DescMethodUnary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Order } from "../order.ts";
import { KEY } from "../servers/carillon.ts";
import type { GrpcClient } from "./grpc.ts";
import { Http1Client, requestHead } from "./http1.ts";
import { publishBatchRequest } from "./wire.ts";

/** How publishes reach a node. */
export type Face = "gRPC" | "Connect JSON" | "Connect binary" | "REST";

/** Publishes over one face. */
export interface Publisher extends Disposable {
  publish(queue: string, order: Order): Promise<void>;
  publishBatch(queue: string, orders: readonly Order[]): Promise<void>;
}

/** A publisher on the node's port. gRPC goes over `grpc`, the others over HTTP/1.1 connections of their own. */
export function openPublisher(face: Face, port: number, grpc: GrpcClient): Publisher {
  switch (face) {
    case "gRPC":
      return grpcPublisher(grpc);
    case "Connect JSON":
      return jsonPublisher(port, {
        publish: "/scheduling.v1.QueueService/Publish",
        publishBatch: "/scheduling.v1.QueueService/PublishBatch",
        // A field of bytes is base64 in the JSON of protobuf.
        payload: (order) => JSON.stringify(Buffer.from(JSON.stringify(order)).toString("base64")),
      });
    case "Connect binary":
      return binaryPublisher(port);
    case "REST":
      return jsonPublisher(port, {
        publish: "/v1/scheduling/queue/publish",
        publishBatch: "/v1/scheduling/queue/publish_batch",
        payload: (order) => JSON.stringify(order),
      });
  }
}

function grpcPublisher(grpc: GrpcClient): Publisher {
  return {
    async publish(queue, order) {
      await grpc.unary(QueueService.method.publish, { queue, payload: toBytes(order) });
    },
    async publishBatch(queue, orders) {
      const payloads = orders.map((order) => JSON.stringify(order));
      await grpc.call(QueueService.method.publishBatch, publishBatchRequest(queue, payloads));
    },
    // The connection is the caller's.
    [Symbol.dispose]: () => {},
  };
}

interface JsonFace {
  readonly publish: string;
  readonly publishBatch: string;
  /** The value of `payload`, as JSON. */
  readonly payload: (order: Order) => string;
}

function jsonPublisher(port: number, face: JsonFace): Publisher {
  const client = new Http1Client(port);
  const headers = { "content-type": "application/json", authorization: `Bearer ${KEY}` };
  const heads = {
    publish: requestHead(face.publish, headers),
    publishBatch: requestHead(face.publishBatch, headers),
  };
  const post = async (head: string, body: string): Promise<void> => {
    const answer = await client.post(head, body);
    if (answer.status !== 200) throw new Error(`HTTP ${answer.status}: ${answer.body}`);
  };
  return {
    publish: (queue, order) => post(heads.publish, `{"queue":"${queue}","payload":${face.payload(order)}}`),
    publishBatch: (queue, orders) => {
      const messages = orders.map((order) => `{"payload":${face.payload(order)}}`);
      return post(heads.publishBatch, `{"queue":"${queue}","messages":[${messages.join()}]}`);
    },
    [Symbol.dispose]: () => client[Symbol.dispose](),
  };
}

function binaryPublisher(port: number): Publisher {
  const client = new Http1Client(port);
  const headers = { "content-type": "application/proto", authorization: `Bearer ${KEY}` };
  const call = <I extends DescMessage>(method: DescMethodUnary<I>) => {
    const head = requestHead(`/${method.parent.typeName}/${method.name}`, headers);
    return async (request: MessageInitShape<I>): Promise<void> => {
      const answer = await client.post(head, toBinary(method.input, create(method.input, request)));
      if (answer.status !== 200) throw new Error(`HTTP ${answer.status}: ${answer.body}`);
    };
  };
  const publish = call(QueueService.method.publish);
  const publishBatch = call(QueueService.method.publishBatch);
  return {
    publish: (queue, order) => publish({ queue, payload: toBytes(order) }),
    publishBatch: (queue, orders) =>
      publishBatch({ queue, messages: orders.map((order) => ({ payload: toBytes(order) })) }),
    [Symbol.dispose]: () => client[Symbol.dispose](),
  };
}

const encoder = new TextEncoder();

export function toBytes(order: Order): Uint8Array<ArrayBuffer> {
  return encoder.encode(JSON.stringify(order));
}
