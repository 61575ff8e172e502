import http from "node:http";
import http2 from "node:http2";
import { create, toBinary } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { ConsumeStreamRequestSchema, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TEST_KEY } from "../support/carillon.ts";

const withKey: Interceptor = (next) => (request) => {
  request.header.set("authorization", `Bearer ${TEST_KEY}`);
  return next(request);
};

export type Protocol = "grpc" | "grpc-web" | "connect";

/** A client of the queue service in one of the protocols. */
export function queueClient(url: string, protocol: Protocol): Client<typeof QueueService> {
  const options = { baseUrl: url, interceptors: [withKey] };
  switch (protocol) {
    case "grpc":
      return createClient(QueueService, createGrpcTransport(options));
    case "grpc-web":
      return createClient(QueueService, createGrpcWebTransport({ ...options, httpVersion: "1.1" }));
    case "connect":
      return createClient(QueueService, createConnectTransport({ ...options, httpVersion: "2" }));
  }
}

/** An open stream of a client that can vanish without a goodbye. */
export interface RawStream {
  /** Resolves when the first bytes of the answer's body are here. */
  readonly flowing: Promise<void>;
  /** Stops reading, and keeps the connection. */
  stall(): void;
  /** Destroys the connection. */
  vanish(): void;
}

/** Opens a REST stream on a connection of its own, over HTTP/1.1. */
export function openRestStream(url: string, queue: string, maxUnacked = 100): RawStream {
  const flowing = Promise.withResolvers<void>();
  const request = http.get(
    `${url}/v1/scheduling/queue/consume_stream/${queue}?heartbeat_seconds=1&max_unacked=${maxUnacked}`,
    {
      agent: false,
      headers: { authorization: `Bearer ${TEST_KEY}` },
    },
  );
  let stall = (): void => {};
  request.on("response", (response) => {
    response.on("data", () => flowing.resolve());
    response.on("error", () => {});
    stall = () => {
      response.pause();
      response.socket.pause();
    };
  });
  request.on("error", (error) => flowing.reject(error));
  return { flowing: flowing.promise, stall: () => stall(), vanish: () => request.destroy() };
}

/** Opens a gRPC stream on a connection of its own. */
export function openGrpcStream(url: string, queue: string, maxUnacked = 100): RawStream {
  const flowing = Promise.withResolvers<void>();
  const session = http2.connect(url);
  session.on("error", (error) => flowing.reject(error));
  const stream = session.request({
    ":method": "POST",
    ":path": "/scheduling.v1.QueueService/ConsumeStream",
    "content-type": "application/grpc+proto",
    te: "trailers",
    authorization: `Bearer ${TEST_KEY}`,
  });
  stream.on("error", () => {});
  stream.on("data", () => flowing.resolve());
  const message = toBinary(
    ConsumeStreamRequestSchema,
    create(ConsumeStreamRequestSchema, { queue, heartbeatSeconds: 1, maxUnacked }),
  );
  const header = Buffer.alloc(5);
  header.writeUInt32BE(message.length, 1);
  stream.end(Buffer.concat([header, message]));
  return { flowing: flowing.promise, stall: () => stream.pause(), vanish: () => session.socket.destroy() };
}
