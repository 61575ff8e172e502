import { randomUUID } from "node:crypto";
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ConnectRouterOptions,
  createConnectRouter,
} from "@connectrpc/connect";
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from "@connectrpc/connect-node";
import { createUnaryDispatcher, type UnaryDispatcher, type UnaryRoute } from "../unary/dispatcher.ts";
import { type Exchange, Http1Exchange, Http2Exchange } from "../unary/exchange.ts";
import { type CorsOptions, createCors } from "./cors.ts";
import { refusalOfMalformed, refuseMalformed } from "./malformed-message.ts";
import type { NodeHandler, NodeRequest, NodeResponse, StreamHandler } from "./one-port.ts";
import type { Readiness } from "./readiness.ts";

export interface AppOptions {
  /** Registers every service that is served over gRPC, gRPC-Web and Connect. */
  readonly routes: (router: ConnectRouter) => void;
  /** Key check, interceptors, limits and JSON form of those services. */
  readonly connect: ConnectRouterOptions;
  /** Answers every request whose path is no RPC and no health path. */
  readonly rest: NodeHandler;
  /** Answers at once and never throws: see createReadinessCheck. */
  readonly checkReadiness: () => Promise<Readiness>;
  readonly cors: CorsOptions;
  /**
   * Longest time to receive an HTTP/2 request, except to methods that stream requests, in milliseconds; default 60,000.
   * The stream is reset after it. HTTP/1.1 requests have the port's own limit.
   */
  readonly requestTimeoutMs?: number;
  /**
   * Whether unary calls take the short way of src/unary/, as is the default. Without it connect-node answers them, which
   * is what the short way is tested and measured against.
   */
  readonly shortWay?: boolean;
  /** Told of responses that could not be written and of a REST handler that threw, not of callers that hung up. */
  readonly onFault?: (error: unknown) => void;
}

/** What answers behind the port. */
export interface App {
  /** Answers every request. */
  readonly handler: NodeHandler;
  /** Takes the unary calls among HTTP/2 streams. */
  readonly takeStream: StreamHandler;
}

const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/;

/**
 * The one handler behind the port: /healthz, /readyz, CORS, request ids, RPCs, and REST for the rest. Each request has
 * an `x-request-id` header when the handlers see it, the caller's own or a new one, and the response repeats it.
 */
export function createApp(options: AppOptions): App {
  const { requestTimeoutMs = 60_000 } = options;
  const cors = createCors(options.cors);
  const router = createConnectRouter(options.connect);
  options.routes(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const unary =
    options.shortWay === false
      ? undefined
      : createUnaryDispatcher(options.routes, { ...options.connect, mapConnectError: refusalOfMalformed });

  /** Makes the headers of a request fit for the handlers, and gives the fields that every answer to it has. */
  function prepare(method: string | undefined, headers: IncomingHttpHeaders, raw: readonly string[]): AnswerFields {
    const id = requestIdOf(headers);
    headers["x-request-id"] = id;
    joinAuthorization(headers, raw);
    return { "x-request-id": id, "x-content-type-options": "nosniff", ...cors.fields(method, headers) };
  }

  function answerUnary(
    dispatcher: UnaryDispatcher,
    route: UnaryRoute,
    headers: IncomingHttpHeaders,
    exchange: Exchange,
  ): void {
    dispatcher.answer(route, headers, exchange).catch((error: unknown) => {
      options.onFault?.(error);
      exchange.fail();
    });
  }

  function takeStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, raw: readonly string[]): boolean {
    // Node's own request says 100 Continue.
    if (unary === undefined || headers.expect !== undefined) return false;
    const method = headers[":method"] as string | undefined;
    const route = unary.find({
      isHttp2: true,
      isEncrypted: stream.session?.encrypted ?? false,
      method,
      path: headers[":path"] as string | undefined,
      authority: (headers[":authority"] as string | undefined) ?? headers.host,
      headers,
    });
    if (route === undefined) return false;
    const fields = prepare(method, headers, raw);
    answerUnary(unary, route, headers, new Http2Exchange(stream, fields, requestTimeoutMs));
    return true;
  }

  function takeRequest(dispatcher: UnaryDispatcher, request: IncomingMessage, response: ServerResponse): boolean {
    const { method, headers, url: path } = request;
    const isEncrypted = "encrypted" in request.socket;
    const route = dispatcher.find({ isHttp2: false, isEncrypted, method, path, authority: headers.host, headers });
    if (route === undefined) return false;
    const fields = prepare(method, headers, request.rawHeaders);
    answerUnary(dispatcher, route, headers, new Http1Exchange(request, response, fields));
    return true;
  }

  function answer(request: NodeRequest, response: NodeResponse): void {
    if (unary !== undefined && !("stream" in request)) {
      if (takeRequest(unary, request, response as ServerResponse)) return;
    }
    const fields = prepare(request.method, request.headers, request.rawHeaders);
    for (const name in fields) response.setHeader(name, fields[name] as string);
    if (cors.answerPreflight(request, response)) return;
    const path = request.url?.split("?", 1)[0] ?? "";
    const rpc = rpcs.get(path);
    if (rpc?.method.methodKind !== "client_streaming" && rpc?.method.methodKind !== "bidi_streaming") {
      limitReceiving(request, requestTimeoutMs);
      passOverBody(request, response);
    }
    if (rpc !== undefined) {
      rpc(universalRequestFromNodeRequest(request, response, undefined, undefined))
        .then(refuseMalformed)
        .then((answered) => universalResponseToNodeResponse(answered, response))
        .catch((error: unknown) => {
          // Only writing the response can fail here, and a caller that hung up is the usual reason.
          if (ConnectError.from(error).code === Code.Aborted || hasHungUp(error) || response.writableEnded) return;
          fail(response, 500, error);
        });
    } else if (path === "/healthz") {
      sendJson(request, response, 200, { status: "ok" });
    } else if (path === "/readyz") {
      void options.checkReadiness().then(({ ok, detail }) => {
        sendJson(request, response, ok ? 200 : 503, { status: ok ? "ready" : "not_ready", detail });
      });
    } else {
      options.rest(request, response);
    }
  }

  /** Ends a response without a body, or cuts it off when its headers have gone out with another status. */
  function fail(response: NodeResponse, status: number, fault?: unknown): void {
    if (fault !== undefined) options.onFault?.(fault);
    if (!response.headersSent) {
      response.writeHead(status);
      response.end();
    } else if ("stream" in response) {
      response.stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    } else {
      response.destroy();
    }
  }

  const handler: NodeHandler = (request, response) => {
    try {
      answer(request, response);
    } catch (error) {
      // A Host or :authority that is missing or no host name throws before any handler runs, and nothing above the
      // handler would catch it.
      if (URL.canParse(`http://${authorityOf(request) ?? ""}`)) fail(response, 500, error);
      else fail(response, 400);
    }
  };
  return { handler, takeStream };
}

type AnswerFields = Record<string, string>;

/** What a write to a connection or a stream fails with that its caller has closed. */
const HANG_UPS: ReadonlySet<unknown> = new Set(["ECANCELED", "ECONNRESET", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE"]);

function hasHungUp(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return ("code" in error && HANG_UPS.has(error.code)) || hasHungUp(error.cause);
}

function authorityOf(request: NodeRequest): string | undefined {
  return "authority" in request ? request.authority : request.headers.host;
}

function requestIdOf(headers: IncomingHttpHeaders): string {
  const received = headers["x-request-id"];
  if (typeof received === "string" && REQUEST_ID.test(received)) return received;
  return `req_${randomUUID().replaceAll("-", "")}`;
}

/**
 * Shows several Authorization headers as one, with commas, so that the key check refuses them. Node keeps the first of
 * them only, where a proxy in front may have checked the last.
 */
function joinAuthorization(headers: IncomingHttpHeaders, rawHeaders: readonly string[]): void {
  const values: string[] = [];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (isAuthorization(rawHeaders[i] as string)) values.push(rawHeaders[i + 1] as string);
  }
  if (values.length > 1) headers.authorization = values.join(", ");
}

function isAuthorization(name: string): boolean {
  return name.length === "authorization".length && name.toLowerCase() === "authorization";
}

/** Resets an HTTP/2 stream whose request has not arrived in full after `timeoutMs`. */
function limitReceiving(request: NodeRequest, timeoutMs: number): void {
  if (!("stream" in request) || request.stream.endAfterHeaders) return;
  const timer = setTimeout(() => request.stream.close(constants.NGHTTP2_CANCEL), timeoutMs);
  const stop = () => clearTimeout(timer);
  request.once("end", stop);
  request.once("close", stop);
}

/**
 * Has what is left unread of an HTTP/2 body passed over once the answer is out. Node would reset the stream at that
 * point, and some clients that are still sending then throw the answer away.
 */
function passOverBody(request: NodeRequest, response: NodeResponse): void {
  if ("stream" in response) response.stream.once("finish", () => request.resume());
}

function sendJson(request: NodeRequest, response: NodeResponse, status: number, body: unknown): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
  });
  if (request.method === "HEAD") response.end();
  else response.end(text);
}
