import { randomUUID } from "node:crypto";
import { constants } from "node:http2";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ConnectRouterOptions,
  type ContextValues,
  createConnectRouter,
} from "@connectrpc/connect";
import { universalRequestFromNodeRequest, universalResponseToNodeResponse } from "@connectrpc/connect-node";
import { createUnaryDispatcher } from "../unary/dispatcher.ts";
import type { UnaryHttpResponse } from "../unary/exchange.ts";
import { type CorsOptions, createCors } from "./cors.ts";
import { refusalOfMalformed, refuseMalformed } from "./malformed-message.ts";
import type { NodeHandler, NodeRequest, NodeResponse } from "./one-port.ts";
import type { Readiness } from "./readiness.ts";

export interface AppOptions {
  /** Registers every service that is served over gRPC, gRPC-Web and Connect. */
  readonly routes: (router: ConnectRouter) => void;
  /** Key check, interceptors, limits and JSON form of those services. */
  readonly connect: ConnectRouterOptions;
  /** Answers every request whose path is no RPC and no health path. */
  readonly rest: NodeHandler;
  readonly contextValues?: (request: NodeRequest) => ContextValues;
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

const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/;

/**
 * The one handler behind the port: /healthz, /readyz, CORS, request ids, RPCs, and REST for the rest. Each request has
 * an `x-request-id` header when the handlers see it, the caller's own or a new one, and the response repeats it.
 */
export function createApp(options: AppOptions): NodeHandler {
  const { requestTimeoutMs = 60_000 } = options;
  const answerCors = createCors(options.cors);
  const router = createConnectRouter(options.connect);
  options.routes(router);
  const rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  const answerUnary =
    options.shortWay === false
      ? undefined
      : createUnaryDispatcher(options.routes, {
          ...options.connect,
          receiveTimeoutMs: requestTimeoutMs,
          mapConnectError: refusalOfMalformed,
        });

  function answer(request: NodeRequest, response: NodeResponse): void {
    setRequestId(request, response);
    joinAuthorization(request);
    response.setHeader("x-content-type-options", "nosniff");
    if (answerCors(request, response)) return;
    const unary = answerUnary?.(request, response as UnaryHttpResponse, () => options.contextValues?.(request));
    if (unary !== undefined) {
      unary.catch((error: unknown) => unwritten(response, error));
      return;
    }
    const path = request.url?.split("?", 1)[0] ?? "";
    const rpc = rpcs.get(path);
    if (rpc?.method.methodKind !== "client_streaming" && rpc?.method.methodKind !== "bidi_streaming") {
      limitReceiving(request, requestTimeoutMs);
      passOverBody(request, response);
    }
    if (rpc !== undefined) {
      rpc(universalRequestFromNodeRequest(request, response, undefined, options.contextValues?.(request)))
        .then(refuseMalformed)
        .then((answered) => universalResponseToNodeResponse(answered, response))
        .catch((error: unknown) => unwritten(response, error));
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

  /** Only writing the response can have failed, and a caller that hung up is the usual reason. */
  function unwritten(response: NodeResponse, error: unknown): void {
    if (ConnectError.from(error).code === Code.Aborted || response.writableEnded) return;
    fail(response, 500, error);
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

  return (request, response) => {
    try {
      answer(request, response);
    } catch (error) {
      // A Host or :authority that is missing or no host name throws before any handler runs, and nothing above the
      // handler would catch it.
      if (URL.canParse(`http://${authorityOf(request) ?? ""}`)) fail(response, 500, error);
      else fail(response, 400);
    }
  };
}

function authorityOf(request: NodeRequest): string | undefined {
  return "authority" in request ? request.authority : request.headers.host;
}

function setRequestId(request: NodeRequest, response: NodeResponse): void {
  const received = request.headers["x-request-id"];
  const id =
    typeof received === "string" && REQUEST_ID.test(received) ? received : `req_${randomUUID().replaceAll("-", "")}`;
  request.headers["x-request-id"] = id;
  response.setHeader("x-request-id", id);
}

/**
 * Shows several Authorization headers as one, with commas, so that the key check refuses them. Node keeps the first of
 * them only, where a proxy in front may have checked the last.
 */
function joinAuthorization(request: NodeRequest): void {
  const { rawHeaders } = request;
  const values = rawHeaders.filter(
    (_, index) => index % 2 === 1 && /^authorization$/i.test(rawHeaders[index - 1] ?? ""),
  );
  if (values.length > 1) request.headers.authorization = values.join(", ");
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
