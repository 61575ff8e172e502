import {
  type ClientHttp2Session,
  connect as connectHttp2,
  type IncomingHttpHeaders,
  type IncomingHttpStatusHeader,
} from "node:http2";
import { create, type MessageInitShape, toBinary, toJsonString } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ConnectRouterOptions,
  createConnectRouter,
  createContextValues,
  encodeBinaryHeader,
  type HandlerContext,
} from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { type PublishRequest, PublishRequestSchema, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { loadConfig } from "../../src/config.ts";
import { hashApiKey } from "../../src/domain/api-key.ts";
import { Refusal } from "../../src/errors.ts";
import { createApp } from "../../src/http/app.ts";
import { type OnePortOptions, startOnePort } from "../../src/http/one-port.ts";
import { createLogger } from "../../src/log.ts";
import type { RestResponse } from "../../src/rest/headers.ts";
import { createRestHandler } from "../../src/rest/transcode.ts";
import { callOptions } from "../../src/rpc/call-options.ts";
import { faceKey } from "../../src/rpc/interceptors/access-log.ts";
import { unaryMethods } from "../../src/unary/registry.ts";
import { connectRaw } from "./harness.ts";

export const KEY = "test-key";
export const PUBLISH = "/scheduling.v1.QueueService/Publish";
/** Most bytes of a request. */
export const READ_MAX = 256 * 1_024;

/** A server whose Publish does what the name of the queue says. */
export interface Twin extends AsyncDisposable {
  readonly port: number;
  readonly url: string;
  /** What the server logged and what it counts as its own fault. */
  readonly lines: Record<string, unknown>[];
  readonly faults: unknown[];
  /** Emits what the implementation saw of the calls to the queues `wait` and `context`. */
  readonly seen: unknown[];
  /** Resolves when a call to the queue `wait` runs. */
  waiting(): Promise<void>;
  stop(graceMs: number): Promise<void>;
}

export interface TwinOptions {
  readonly connect?: ConnectRouterOptions;
  readonly tls?: OnePortOptions["tls"];
  readonly requestTimeoutMs?: number;
}

/** The same server twice: unary calls by src/unary/, and all calls by connect-node's own handlers. */
export async function startTwins(
  options: TwinOptions = {},
): Promise<{ readonly short: Twin; readonly reference: Twin } & AsyncDisposable> {
  const [short, reference] = await Promise.all([startTwin(true, options), startTwin(false, options)]);
  return {
    short,
    reference,
    async [Symbol.asyncDispose]() {
      await Promise.all([short[Symbol.asyncDispose](), reference[Symbol.asyncDispose]()]);
    },
  };
}

async function startTwin(shortWay: boolean, options: TwinOptions): Promise<Twin> {
  const shutdown = new AbortController();
  const lines: Record<string, unknown>[] = [];
  const faults: unknown[] = [];
  const seen: unknown[] = [];
  const waiting: (() => void)[] = [];
  const config = loadConfig({ CARILLON_DATABASE_URL: "postgres://nobody@localhost/none" }, { mode: "development" });
  const principal = { projectId: "project-1", strictPathBody: false, strictFields: false };
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) };
  const connect: ConnectRouterOptions = {
    ...callOptions(config, createLogger({ level: "info", pretty: false, stream }), {
      shutdownSignal: shutdown.signal,
      onFault: (fault) => void faults.push(fault),
      developmentKey: KEY,
      findPrincipal: async (hash) => (hash.equals(hashApiKey(KEY)) ? principal : undefined),
    }),
    readMaxBytes: READ_MAX,
    ...options.connect,
  };
  const routes = (router: ConnectRouter) => {
    router.service(QueueService, {
      publish: (request, ctx) => publish(request, ctx, seen, () => waiting.shift()?.()),
      async *consumeStream() {
        yield {};
      },
    });
  };
  const restOptions = { ...connect, connect: true, grpc: false, grpcWeb: false, readMaxBytes: 2 * READ_MAX };
  const restRouter = createConnectRouter(restOptions);
  routes(restRouter);
  const rest = createRestHandler({
    handlers: restRouter.handlers,
    ...(shortWay && { unary: unaryMethods(routes, restOptions) }),
    contextValues: () => createContextValues().set(faceKey, "rest"),
    basePath: "/v1/scheduling",
    maxBodyBytes: READ_MAX,
    onFault: (fault) => void faults.push(fault),
  });
  const app = createApp({
    routes,
    connect,
    shortWay,
    rest: (request, response) => rest(request, response as RestResponse),
    checkReadiness: async () => ({ ok: true, detail: {} }),
    cors: { allowedOrigins: ["https://console.example.com"], allowLoopback: false },
    onFault: (fault) => void faults.push(fault),
    ...(options.requestTimeoutMs !== undefined && { requestTimeoutMs: options.requestTimeoutMs }),
  });
  const server = await startOnePort({ host: "127.0.0.1", port: 0, ...app, ...(options.tls && { tls: options.tls }) });
  const { port } = server.address;
  const leave = () => shutdown.abort(new ConnectError("the server is shutting down", Code.Unavailable));
  return {
    port,
    url: `${options.tls ? "https" : "http"}://127.0.0.1:${port}`,
    lines,
    faults,
    seen,
    waiting: () => new Promise((resolve) => void waiting.push(resolve)),
    async stop(graceMs) {
      leave();
      await server.drain(graceMs);
    },
    async [Symbol.asyncDispose]() {
      leave();
      await server[Symbol.asyncDispose]();
    },
  };
}

async function publish(request: PublishRequest, ctx: HandlerContext, seen: unknown[], onWait: () => void) {
  const echo = ctx.requestHeader.get("x-echo");
  if (echo !== null) {
    ctx.responseHeader.set("x-echo", echo);
    ctx.responseTrailer.set("x-echo-trailer", echo);
  }
  switch (request.queue) {
    case "headers":
      ctx.responseHeader.append("x-list", "a");
      ctx.responseHeader.append("x-list", "b");
      ctx.responseHeader.append("set-cookie", "a=1");
      ctx.responseHeader.append("set-cookie", "b=2");
      ctx.responseTrailer.append("x-trailer", "t1");
      ctx.responseTrailer.append("x-trailer", "t2");
      ctx.responseTrailer.set("x-trailer-bin", encodeBinaryHeader(Uint8Array.of(0, 255, 10)));
      return { messageId: "m" };
    case "content-type":
      ctx.responseHeader.set("content-type", "application/x-own");
      return { messageId: "m" };
    case "refusal":
      throw new Refusal("BODY_TOO_LARGE", { limit: request.groupId });
    case "error": {
      const metadata = { "x-meta": "m", "x-meta-bin": "AAE", "content-type": "no/no", "grpc-status": "99" };
      const details = [{ desc: ErrorInfoSchema, value: { reason: "R", domain: "d", metadata: { k: "ü" } } }];
      ctx.responseHeader.set("x-before", "kept");
      throw new ConnectError(`with ümlaut\nand line`, Number(request.groupId || 2), metadata, details);
    }
    case "fault":
      throw new TypeError("secret");
    case "big":
      return { messageId: "m".repeat(Number(request.groupId)) };
    case "context": {
      const { url, requestMethod, protocolName, method, service, requestHeader } = ctx;
      const timeoutMs = ctx.timeoutMs();
      const header = [...requestHeader].filter(([name]) => name !== "x-request-id" && name !== "host");
      seen.push({
        url: url.replace(/:\d+\//, "/"),
        requestMethod,
        protocolName,
        method: `${method}`,
        service: `${service}`,
        hasTimeout: timeoutMs !== undefined && timeoutMs > 0,
        header,
        isAborted: ctx.signal.aborted,
        payload: request.payload?.constructor.name,
      });
      const { signal } = ctx;
      signal.addEventListener("abort", () => seen.push({ afterwards: (signal.reason as Error).name }));
      return {};
    }
    case "wait":
      return new Promise<never>((_, reject) => {
        ctx.signal.addEventListener("abort", () => {
          const { reason } = ctx.signal;
          seen.push({ reason: reason.name, code: reason.code });
          reject(reason);
        });
        onWait();
      });
    case "stuck":
      onWait();
      return new Promise<never>(() => {});
    default:
      return { messageId: `${request.queue}/${request.payload?.length}/${Object.keys(request.headers).length}` };
  }
}

/** What a client sees of one answer. */
export interface Seen {
  readonly status: number | string;
  /** Without Date and made-up request ids. */
  readonly headers: Readonly<Record<string, unknown>>;
  readonly body: string;
  readonly trailers?: Readonly<Record<string, unknown>>;
  /** Over HTTP/2: how the stream ended. */
  readonly reset?: number;
}

/** Request fields and body for one HTTP/2 stream. A body in several chunks goes out in as many frames. */
export interface Http2Call {
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly chunks: readonly Uint8Array[];
  /** Whether the client leaves its side open after the chunks. */
  readonly isLeftOpen?: boolean;
}

export function http2Session(twin: Twin): ClientHttp2Session {
  // The second one lets a header come twice; the types do not know it yet.
  const options = { rejectUnauthorized: false, strictSingleValueFields: false };
  const session = connectHttp2(twin.url, options);
  session.on("error", () => {});
  return session;
}

/** Makes the call, and waits for its end. With `cancelAt`, the client cancels it when that resolves. */
export async function callHttp2(
  session: ClientHttp2Session,
  { headers, chunks, isLeftOpen = false }: Http2Call,
  cancelAt?: Promise<void>,
): Promise<Seen> {
  const fields = Object.entries({ ":method": "POST", ":path": PUBLISH, ...headers }).flatMap(([name, value]) =>
    [value ?? []].flat().flatMap((line) => [name, line]),
  );
  const stream = session.request(fields);
  let head: IncomingHttpHeaders & IncomingHttpStatusHeader = {};
  let trailers: IncomingHttpHeaders = {};
  const parts: Buffer[] = [];
  stream.on("response", (received) => {
    head = received;
  });
  stream.on("trailers", (received) => {
    trailers = received;
  });
  stream.on("data", (part: Buffer) => void parts.push(part));
  stream.on("error", () => {});
  stream.setTimeout(10_000, () => stream.close());
  const closed = new Promise<void>((resolve) => stream.once("close", () => resolve()));
  void cancelAt?.then(() => stream.close(8));
  for (const chunk of chunks) {
    if (stream.destroyed) break;
    stream.write(chunk, () => {});
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (!isLeftOpen) stream.end();
  else stream.once("end", () => stream.end());
  await closed;
  const { ":status": status, ...rest } = head;
  return {
    status: status ?? "none",
    headers: comparable(rest),
    body: withoutRequestId(Buffer.concat(parts).toString("latin1")),
    trailers: comparable(trailers),
    reset: stream.rstCode ?? 0,
  };
}

/**
 * Sends the bytes over HTTP/1.1, the chunks one after the other, and reads answers until the server closes. With
 * `hangUpAt`, the client closes when that resolves.
 */
export async function callHttp1(
  twin: Twin,
  chunks: readonly (string | Uint8Array)[],
  hangUpAt?: Promise<void>,
): Promise<Seen[]> {
  using raw = await connectRaw(twin.port);
  void hangUpAt?.then(() => raw.socket.destroy());
  raw.socket.setTimeout(10_000, () => raw.socket.destroy());
  for (const chunk of chunks) {
    if (raw.socket.destroyed) break;
    raw.socket.write(chunk);
    await new Promise((resolve) => setImmediate(resolve));
  }
  return answersOf(await raw.closed);
}

/** The answers in what an HTTP/1.1 connection received. */
function answersOf(received: string): Seen[] {
  const answers: Seen[] = [];
  let rest = received;
  while (rest !== "") {
    const end = rest.indexOf("\r\n\r\n");
    if (end === -1) return [...answers, { status: "broken", headers: {}, body: rest }];
    const [first = "", ...fields] = rest.slice(0, end).split("\r\n");
    rest = rest.slice(end + 4);
    const headers: Record<string, string[]> = {};
    for (const field of fields) {
      const [, name = "", value = ""] = /^([^:]+): ?(.*)$/.exec(field) ?? [];
      headers[name.toLowerCase()] = [...(headers[name.toLowerCase()] ?? []), value];
    }
    const length = Number(headers["content-length"]?.[0] ?? 0);
    const isChunked = headers["transfer-encoding"] !== undefined;
    const size = isChunked ? rest.indexOf("0\r\n\r\n") + 5 : / 100 /.test(first) ? 0 : length;
    answers.push({ status: first, headers: comparable(headers), body: withoutRequestId(rest.slice(0, size)) });
    rest = rest.slice(size);
  }
  return answers;
}

/** REST repeats the request id in the body of an error. */
function withoutRequestId(body: string): string {
  return body.replace(/req_[0-9a-f]{24,32}/, "req_");
}

function comparable(headers: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const kept = Object.entries(headers).filter(
    ([name, value]) => name !== "date" && !(name === "x-request-id" && String(value).startsWith("req_")),
  );
  return Object.fromEntries(kept.sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** A request to Publish. */
function publishRequest(init: MessageInitShape<typeof PublishRequestSchema> = {}): PublishRequest {
  return create(PublishRequestSchema, { queue: "q", payload: Buffer.from('{"a":1}'), ...init });
}

export function binary(init?: MessageInitShape<typeof PublishRequestSchema>): Uint8Array<ArrayBuffer> {
  return toBinary(PublishRequestSchema, publishRequest(init));
}

export function json(init?: MessageInitShape<typeof PublishRequestSchema>): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(toJsonString(PublishRequestSchema, publishRequest(init)));
}

/** A message of gRPC: one byte of flags, four of length, and the data. */
export function envelope(data: Uint8Array, { flags = 0, length = data.length } = {}): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(flags);
  head.writeUInt32BE(length, 1);
  return Buffer.concat([head, data]);
}
