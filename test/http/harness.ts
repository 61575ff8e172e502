import { once } from "node:events";
import * as net from "node:net";
import { Code, ConnectError, type ConnectRouterOptions, createClient, type Transport } from "@connectrpc/connect";
import {
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { type AppOptions, createApp } from "../../src/http/app.ts";
import { healthRoutes } from "../../src/http/health.ts";
import { type NodeHandler, type OnePortOptions, type OnePortServer, startOnePort } from "../../src/http/one-port.ts";
import { createReadinessCheck, type Readiness } from "../../src/http/readiness.ts";
import { reflectionRoutes } from "../../src/http/reflection.ts";

export interface TestAppOptions {
  readonly limits?: OnePortOptions["limits"];
  readonly tls?: OnePortOptions["tls"];
  readonly rest?: NodeHandler;
  readonly ready?: () => Promise<Readiness>;
  readonly connect?: ConnectRouterOptions;
  readonly cors?: AppOptions["cors"];
  readonly requestTimeoutMs?: number;
}

/** The whole port with Health and reflection as its services. `stop` is what the process does at SIGTERM. */
export interface TestApp extends AsyncDisposable {
  readonly server: OnePortServer;
  readonly port: number;
  readonly url: string;
  readonly faults: unknown[];
  readonly shutdown: AbortController;
  stop(graceMs: number): Promise<void>;
}

export async function startTestApp(options: TestAppOptions = {}): Promise<TestApp> {
  const shutdown = new AbortController();
  const faults: unknown[] = [];
  const checkReadiness = createReadinessCheck({
    ready: options.ready ?? (async () => ({ ok: true, detail: "all well" })),
    shutdownSignal: shutdown.signal,
    freshMs: 0,
    timeoutMs: 500,
  });
  const health = healthRoutes({
    services: [],
    checkReadiness,
    shutdownSignal: shutdown.signal,
    watchIntervalMs: 20,
  });
  const reflection = reflectionRoutes([Health]);
  const server = await startOnePort({
    host: "127.0.0.1",
    port: 0,
    ...(options.tls && { tls: options.tls }),
    ...(options.limits && { limits: options.limits }),
    ...createApp({
      routes: (router) => {
        health(router);
        reflection(router);
      },
      connect: {
        acceptCompression: [compressionGzip],
        readMaxBytes: 1_048_576,
        maxTimeoutMs: 60_000,
        shutdownSignal: shutdown.signal,
        ...options.connect,
      },
      rest:
        options.rest ??
        ((request, response) => {
          response.writeHead(200, { "content-type": "application/json" });
          response.end(JSON.stringify({ rest: request.url, requestId: request.headers["x-request-id"] }));
        }),
      checkReadiness,
      cors: options.cors ?? { allowedOrigins: [], allowLoopback: true },
      ...(options.requestTimeoutMs !== undefined && { requestTimeoutMs: options.requestTimeoutMs }),
      onFault: (error) => faults.push(error),
    }),
  });
  const { port } = server.address;
  return {
    server,
    port,
    url: `${options.tls ? "https" : "http"}://127.0.0.1:${port}`,
    faults,
    shutdown,
    async stop(graceMs) {
      shutdown.abort(new ConnectError("the server is shutting down", Code.Unavailable));
      await server.drain(graceMs);
    },
    async [Symbol.asyncDispose]() {
      shutdown.abort(new ConnectError("the server is shutting down", Code.Unavailable));
      await server[Symbol.asyncDispose]();
    },
  };
}

/** The ways in which a client may speak to the port. */
export const PROTOCOLS: Record<string, (baseUrl: string) => Transport> = {
  "gRPC over HTTP/2": (baseUrl) => createGrpcTransport({ baseUrl, nodeOptions }),
  "gRPC-Web over HTTP/1.1": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1", nodeOptions }),
  "gRPC-Web over HTTP/2": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "2", nodeOptions }),
  "Connect over HTTP/1.1": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions }),
  "Connect over HTTP/2": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2", nodeOptions }),
};
const nodeOptions = { rejectUnauthorized: false };

export function healthClient(app: TestApp, protocol: string) {
  const transport = PROTOCOLS[protocol];
  if (transport === undefined) throw new Error(`no protocol ${protocol}`);
  return createClient(Health, transport(app.url));
}

/** A client socket that keeps all that it is sent. `closed` resolves to it when the server closes the connection. */
export interface RawSocket extends Disposable {
  readonly socket: net.Socket;
  readonly received: () => Buffer;
  readonly closed: Promise<string>;
  /** Resolves when the text has arrived. */
  until(text: string): Promise<void>;
}

export async function connectRaw(port: number): Promise<RawSocket> {
  const socket = net.connect({ port, host: "127.0.0.1", noDelay: true });
  let received = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => {
    received = Buffer.concat([received, chunk]);
  });
  socket.on("error", () => {});
  const closed = new Promise<string>((resolve) => socket.once("close", () => resolve(received.toString("latin1"))));
  await once(socket, "connect");
  return {
    socket,
    received: () => received,
    closed,
    async until(text) {
      while (!received.includes(text)) await once(socket, "data");
    },
    [Symbol.dispose]() {
      socket.destroy();
    },
  };
}
