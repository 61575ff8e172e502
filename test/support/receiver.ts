import { once } from "node:events";
import { createServer as createHttpServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";

/** One request as it came off the wire. */
export interface ReceivedRequest {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  /** Names as sent and values, alternating. */
  readonly rawHeaders: readonly string[];
  readonly body: Buffer;
  /** When the last byte had arrived: Unix time in milliseconds. */
  readonly receivedAt: number;
  /** Tells connections apart: requests on one kept-alive connection share the remote port. */
  readonly remotePort: number;
}

/**
 * What a receiver answers. Without anything: 200 and an empty body.
 * - `hang`: nothing (or, "after_headers", the status line and headers, then nothing) until the client gives up
 * - `trickle`: headers, then the chunk again and again, `everyMs` apart, or as fast as it is read with 0
 * - `reset`: a TCP reset instead of an answer; with "after_headers" in the middle of the body
 * - `raw`: these bytes on the socket, which then stays open
 */
export interface Reply {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string | readonly string[]>>;
  readonly body?: string | Uint8Array;
  readonly hang?: "before_headers" | "after_headers";
  readonly trickle?: { readonly chunk: string | Uint8Array; readonly everyMs: number };
  readonly reset?: "before_headers" | "after_headers";
  readonly raw?: string | Uint8Array;
}

/** Decides the answer to a request. `index` counts the requests from 0. May wait before it answers. */
export type Responder = (request: ReceivedRequest, index: number) => Reply | Promise<Reply>;

/** A real HTTP server on loopback that records what it gets and answers as it is told. */
export interface Receiver extends AsyncDisposable {
  /** Without a trailing slash. */
  readonly url: string;
  readonly port: number;
  /** Every request so far, in order of arrival. */
  readonly requests: readonly ReceivedRequest[];
  readonly count: number;
  /** How many connections have been opened so far. */
  readonly connections: number;
  /** Resolves when no connection is open; rejects after `deadlineMs` (default 20,000). */
  drained(deadlineMs?: number): Promise<void>;
  /** Sets the answer for requests from now on. */
  respond(reply: Responder | Reply): void;
  /**
   * The first request that matches and that no earlier call has returned, now or when it arrives.
   * Rejects after `deadlineMs` (default 20,000).
   */
  next(predicate?: (request: ReceivedRequest) => boolean, deadlineMs?: number): Promise<ReceivedRequest>;
}

/** Starts a receiver on a free port. `tls` makes it https. */
export async function startReceiver(
  options: {
    readonly host?: string;
    readonly port?: number;
    readonly tls?: { readonly key: string; readonly cert: string };
  } = {},
): Promise<Receiver> {
  const { host = "127.0.0.1", port = 0, tls } = options;
  const requests: ReceivedRequest[] = [];
  const returned = new Set<ReceivedRequest>();
  const waiting = new Set<() => void>();
  const sockets = new Set<Socket>();
  let connections = 0;
  let responder: Responder = () => ({});

  const server = tls === undefined ? createHttpServer() : createHttpsServer(tls);
  server.on("connection", (socket: Socket) => {
    connections += 1;
    sockets.add(socket);
    socket
      .on("error", () => {})
      .once("close", () => {
        sockets.delete(socket);
        if (sockets.size === 0) server.emit("drained");
      });
  });
  server.on("tlsClientError", () => {});
  server.on("request", async (incoming, response) => {
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of incoming) chunks.push(chunk);
    } catch {
      return; // The client went away in the middle of its request.
    }
    const request: ReceivedRequest = {
      method: incoming.method ?? "",
      path: incoming.url ?? "",
      headers: incoming.headers,
      rawHeaders: incoming.rawHeaders,
      body: Buffer.concat(chunks),
      receivedAt: Date.now(),
      remotePort: incoming.socket.remotePort ?? 0,
    };
    const index = requests.push(request) - 1;
    for (const check of [...waiting]) check();
    let reply: Reply;
    try {
      reply = await responder(request, index);
    } catch (error) {
      reply = { status: 500, body: `the test's responder threw: ${error}` };
    }
    answer(response, reply);
  });
  server.listen(port, host);
  await once(server, "listening");
  const bound = (server.address() as AddressInfo).port;

  return {
    url: `${tls === undefined ? "http" : "https"}://${host.includes(":") ? `[${host}]` : host}:${bound}`,
    port: bound,
    requests,
    get count() {
      return requests.length;
    },
    get connections() {
      return connections;
    },
    async drained(deadlineMs = 20_000) {
      if (sockets.size > 0) await once(server, "drained", { signal: AbortSignal.timeout(deadlineMs) });
    },
    respond(reply) {
      responder = typeof reply === "function" ? reply : () => reply;
    },
    next(predicate = () => true, deadlineMs = 20_000) {
      const { promise, resolve, reject } = Promise.withResolvers<ReceivedRequest>();
      const check = (): void => {
        const found = requests.find((request) => !returned.has(request) && predicate(request));
        if (found === undefined) return;
        returned.add(found);
        resolve(found);
      };
      const timer = setTimeout(
        () => reject(new Error(`no matching request within ${deadlineMs} ms; ${requests.length} came in all`)),
        deadlineMs,
      );
      waiting.add(check);
      check();
      return promise.finally(() => {
        waiting.delete(check);
        clearTimeout(timer);
      });
    },
    async [Symbol.asyncDispose]() {
      const closed = once(server, "close");
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

function answer(response: ServerResponse, reply: Reply): void {
  const { socket } = response;
  if (socket === null || socket.destroyed) return;
  if (reply.raw !== undefined) {
    socket.write(reply.raw);
    return;
  }
  if (reply.reset === "before_headers") {
    socket.resetAndDestroy();
    return;
  }
  if (reply.hang === "before_headers") return;

  for (const [name, value] of Object.entries(reply.headers ?? {})) {
    response.setHeader(name, typeof value === "string" ? value : [...value]);
  }
  response.writeHead(reply.status ?? 200);
  if (reply.hang === "after_headers") {
    response.flushHeaders();
  } else if (reply.reset === "after_headers") {
    response.write(reply.body ?? "cut", () => socket.resetAndDestroy());
  } else if (reply.trickle !== undefined) {
    trickle(response, reply.trickle.chunk, reply.trickle.everyMs);
  } else {
    response.end(reply.body ?? "");
  }
}

function trickle(response: ServerResponse, chunk: string | Uint8Array, everyMs: number): void {
  response.flushHeaders();
  if (everyMs > 0) {
    const timer = setInterval(() => response.write(chunk), everyMs);
    response.once("close", () => clearInterval(timer));
    return;
  }
  const pump = (): void => {
    while (!response.destroyed && response.write(chunk));
  };
  response.on("drain", pump);
  pump();
}
