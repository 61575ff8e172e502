import * as http from "node:http";
import * as http2 from "node:http2";
import * as https from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { connectNodeAdapter } from "@connectrpc/connect-node";
import { superviseSession } from "./http2-session.ts";
import { DEFAULT_PORT_LIMITS, type PortLimits } from "./port-limits.ts";
import { sniffProtocol } from "./sniff.ts";

/** Answers one request of HTTP/1.1 or HTTP/2. It must not throw, and must end the response in every case. */
export type NodeHandler = ReturnType<typeof connectNodeAdapter>;
export type NodeRequest = Parameters<NodeHandler>[0];
export type NodeResponse = Parameters<NodeHandler>[1];

/** Answers an HTTP/2 stream and returns true, or leaves it to the NodeHandler. */
export type StreamHandler = (
  stream: http2.ServerHttp2Stream,
  headers: http2.IncomingHttpHeaders,
  rawHeaders: readonly string[],
) => boolean;

export interface OnePortOptions {
  /** The address or name to listen on. */
  readonly host: string;
  /** 0 to 65535; 0 takes any free port. */
  readonly port: number;
  /** PEM texts. Without them the port speaks cleartext. */
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer };
  readonly handler: NodeHandler;
  /** Asked first about each HTTP/2 stream, before Node makes a request and a response of it. */
  readonly takeStream?: StreamHandler;
  readonly limits?: Partial<PortLimits>;
  /** Told of failures to accept a connection, such as too many open files. The port goes on listening. */
  readonly onFault?: (error: Error) => void;
}

/** A listening port. Disposing it closes everything at once. */
export interface OnePortServer extends AsyncDisposable {
  readonly address: { readonly host: string; readonly port: number; readonly tls: boolean };
  /**
   * Stops accepting, says GOAWAY to HTTP/2 clients, closes idle connections and waits for running requests, for
   * `graceMs` at most; then destroys what is left. Endless streams end only if their handlers end them, so the caller
   * aborts the shutdown signal first. Later calls join the first one and cannot prolong it.
   */
  drain(graceMs: number): Promise<void>;
}

/** How often connections are held against the HTTP/1.1 time limits. Node's 30 s is three times the shortest of them. */
const CHECK_INTERVAL_MS = 500;
/** How often a drain looks for HTTP/1.1 connections whose last response has ended. */
const SWEEP_INTERVAL_MS = 50;
/** Memory of one HTTP/2 session in MB, mostly unread responses. Node's 10 MB is 40 kB for each of 250 streams. */
const SESSION_MEMORY_MB = 64;
/** When TCP starts to probe a silent peer, so that a connection whose peer vanished is found. */
const TCP_KEEP_ALIVE_MS = 60_000;

/**
 * Opens one port for HTTP/1.1 and HTTP/2. Cleartext connections are told apart by their first bytes (prior knowledge;
 * an Upgrade header is ignored), TLS connections by ALPN.
 *
 * Throws an Error that says what to set when the port, the address or the certificate cannot be used.
 */
export async function startOnePort(options: OnePortOptions): Promise<OnePortServer> {
  const limits = { ...DEFAULT_PORT_LIMITS, ...options.limits };
  const tls = options.tls !== undefined;
  const sockets = new Set<Socket>();
  const undecided = new Map<string, Socket>();
  const sessions = new Set<http2.ServerHttp2Session>();
  const responses = new Set<http.ServerResponse>();
  let draining = false;

  // The HTTP/1.1 server owns the listening socket: Node arms headersTimeout and requestTimeout, and keeps the list of
  // idle connections, only in a server that listens itself.
  const http1 = createHttp1Server(options, limits);
  const http2Server = http2.createServer(http2Options(limits), options.handler);
  if (options.takeStream !== undefined) askFirst(http2Server, options.takeStream);

  http1.on("request", (request: http.IncomingMessage, response: http.ServerResponse) => {
    responses.add(response);
    response.once("close", () => responses.delete(response));
    if (draining) response.setHeader("connection", "close");
    options.handler(request, response);
  });

  const event = tls ? "secureConnection" : "connection";
  const http1Listeners = http1.listeners(event) as ((this: http.Server, socket: Socket) => void)[];
  http1.removeAllListeners(event);

  http1.prependListener("connection", (socket: Socket) => {
    sockets.add(socket);
    const peer = peerOf(socket);
    undecided.set(peer, socket);
    socket.once("close", () => {
      sockets.delete(socket);
      undecided.delete(peer);
    });
    if (!tls) sniffProtocol(socket, limits.sniffTimeoutMs, (protocol) => serve(socket, protocol));
  });
  if (tls) {
    http1.on("secureConnection", (socket: TLSSocket) => {
      serve(socket, socket.alpnProtocol === "h2" ? "http2" : "http1");
    });
  }

  function serve(socket: Socket, protocol: "http1" | "http2"): void {
    undecided.delete(peerOf(socket));
    if (socket.destroyed) return;
    if (protocol === "http1") {
      for (const listener of http1Listeners) listener.call(http1, socket);
      return;
    }
    // An HTTP/1.1 socket stays open after the peer's end, for the answer; an HTTP/2 session has nothing to wait for.
    socket.allowHalfOpen = false;
    http2Server.once("session", (session) => {
      sessions.add(session);
      session.once("close", () => sessions.delete(session));
      superviseSession(session, socket, limits);
    });
    http2Server.emit("connection", socket);
  }

  await listen(http1, options);
  http1.on("error", (error) => options.onFault?.(error));
  const { address, port } = http1.address() as AddressInfo;

  function destroyAll(): void {
    for (const socket of sockets) socket.destroy();
  }

  let closed: Promise<void> | undefined;
  function drain(graceMs: number): Promise<void> {
    if (closed !== undefined) return closed;
    draining = true;
    const sweep = setInterval(() => http1.closeIdleConnections(), SWEEP_INTERVAL_MS);
    const grace = setTimeout(destroyAll, graceMs);
    closed = new Promise<void>((resolve) => http1.close(() => resolve())).finally(() => {
      clearInterval(sweep);
      clearTimeout(grace);
    });
    for (const socket of undecided.values()) socket.destroy();
    for (const session of sessions) session.close();
    for (const response of responses) if (!response.headersSent) response.setHeader("connection", "close");
    return closed;
  }

  return {
    address: { host: address, port, tls },
    drain,
    async [Symbol.asyncDispose]() {
      const done = drain(0);
      destroyAll();
      await done;
    },
  };
}

type StreamListener = (
  stream: http2.ServerHttp2Stream,
  headers: http2.IncomingHttpHeaders,
  flags: number,
  rawHeaders: string[],
) => void;

/** Puts `takeStream` before the listener with which Node makes a request and a response of each stream. */
function askFirst(server: http2.Http2Server, takeStream: StreamHandler): void {
  const listeners = server.listeners("stream") as StreamListener[];
  server.removeAllListeners("stream");
  server.on("stream", (stream, headers, flags, rawHeaders) => {
    if (takeStream(stream, headers, rawHeaders)) return;
    for (const listener of listeners) listener.call(server, stream, headers, flags, rawHeaders);
  });
}

/** Names a TCP connection. A TLS socket and the raw socket beneath it have the same name. */
function peerOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort}`;
}

function createHttp1Server(options: OnePortOptions, limits: PortLimits): http.Server | https.Server {
  const http1Options: http.ServerOptions = {
    headersTimeout: limits.headersTimeoutMs,
    requestTimeout: limits.requestTimeoutMs,
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    connectionsCheckingInterval: CHECK_INTERVAL_MS,
    maxHeaderSize: limits.maxHeaderBytes,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: TCP_KEEP_ALIVE_MS,
  };
  let server: http.Server | https.Server;
  if (options.tls === undefined) {
    server = http.createServer(http1Options);
  } else {
    try {
      server = https.createServer({
        ...http1Options,
        cert: options.tls.cert,
        key: options.tls.key,
        minVersion: "TLSv1.2",
        ALPNProtocols: ["h2", "http/1.1"],
        handshakeTimeout: limits.sniffTimeoutMs,
      });
    } catch (error) {
      throw new Error(`the TLS certificate or its key cannot be used: ${(error as Error).message}`, { cause: error });
    }
  }
  server.maxHeadersCount = limits.maxHeadersCount;
  server.maxConnections = limits.maxConnections;
  return server;
}

function http2Options(limits: PortLimits): http2.ServerOptions {
  return {
    settings: {
      maxConcurrentStreams: limits.maxConcurrentStreams,
      initialWindowSize: limits.streamWindowBytes,
      maxHeaderListSize: limits.maxHeaderBytes,
      enablePush: false,
    },
    maxHeaderListPairs: limits.maxHeadersCount,
    maxSessionInvalidFrames: limits.maxInvalidFrames,
    maxSessionRejectedStreams: limits.maxRejectedStreams,
    maxSessionMemory: SESSION_MEMORY_MB,
    streamResetBurst: limits.streamResetBurst,
    streamResetRate: limits.streamResetsPerSecond,
  };
}

async function listen(server: http.Server, { host, port }: OnePortOptions): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const fail = (error: NodeJS.ErrnoException) =>
      reject(new Error(listenFailure(error, host, port), { cause: error }));
    server.once("error", fail);
    server.listen({ host, port }, () => {
      server.off("error", fail);
      resolve();
    });
  });
}

function listenFailure(error: NodeJS.ErrnoException, host: string, port: number): string {
  switch (error.code) {
    case "EADDRINUSE":
      return `port ${port} on ${host} is in use by another program; set CARILLON_PORT to a free port`;
    case "EACCES":
      return `this user may not open port ${port} on ${host}; set CARILLON_PORT to a port above 1023`;
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return `${host} is not an address of this machine; set CARILLON_HOST to one, or to 0.0.0.0 for all`;
    default:
      return `cannot listen on ${host} port ${port}: ${error.message}`;
  }
}
