import type { ConnectRouter, ConnectRouterOptions, ContextValues } from "@connectrpc/connect";
import { contentTypeUnaryRegExp } from "@connectrpc/connect/protocol-connect";
import { contentTypeRegExp as contentTypeGrpcRegExp } from "@connectrpc/connect/protocol-grpc";
import { answerConnect, type ConnectErrorMapper } from "./connect.ts";
import { type Arrival, Exchange, type UnaryHttpRequest, type UnaryHttpResponse } from "./exchange.ts";
import { answerGrpc } from "./grpc.ts";
import { type UnaryMethod, unaryMethods } from "./registry.ts";

export interface UnaryDispatcherOptions extends ConnectRouterOptions {
  /** Longest time to receive an HTTP/2 request, in milliseconds; the stream is reset after it. Default 60,000. */
  readonly receiveTimeoutMs?: number;
  /** Has the last word on the error that a Connect call is answered with. Default: it stays as it is. */
  readonly mapConnectError?: ConnectErrorMapper;
}

/**
 * Answers a request when it is one of those that a dispatcher takes, and returns undefined without having touched it
 * when it is not. The promise resolves when the answer is written, and rejects when that failed.
 */
export type UnaryDispatcher = (
  request: UnaryHttpRequest,
  response: UnaryHttpResponse,
  contextValues?: () => ContextValues | undefined,
) => Promise<void> | undefined;

/**
 * A short way for unary calls of gRPC over HTTP/2 and of Connect over POST, from Node's request to the implementation and
 * back. Everything that a client, an interceptor or an implementation can see is as the handlers of a ConnectRouter with
 * the same routes and options have it; those are left with every request that is not taken here.
 */
export function createUnaryDispatcher(
  routes: (router: ConnectRouter) => void,
  options: UnaryDispatcherOptions,
): UnaryDispatcher {
  const { receiveTimeoutMs = 60_000, mapConnectError = (error) => error } = options;
  const methods = unaryMethods(routes, options);
  const origins = new OriginCache();

  return (request, response, contextValues) => {
    const target = methods.get(request.url ?? "");
    if (target === undefined || request.method !== "POST") return undefined;
    const protocol = protocolOf(request, target);
    const origin = origins.of(request);
    if (protocol === undefined || origin === undefined) return undefined;
    const arrival: Arrival = {
      target,
      header: webHeaders(request),
      url: origin + target.path,
      contextValues: contextValues?.(),
      exchange: new Exchange(request, response, receiveTimeoutMs),
    };
    return protocol.isGrpc
      ? answerGrpc(arrival, protocol.isBinary)
      : answerConnect(arrival, protocol.isBinary, mapConnectError);
  };
}

interface Protocol {
  readonly isGrpc: boolean;
  readonly isBinary: boolean;
}

const CONTENT_TYPES: ReadonlyMap<string, Protocol> = new Map([
  ["application/grpc", { isGrpc: true, isBinary: true }],
  ["application/grpc+proto", { isGrpc: true, isBinary: true }],
  ["application/proto", { isGrpc: false, isBinary: true }],
  ["application/json", { isGrpc: false, isBinary: false }],
]);

function protocolOf(request: UnaryHttpRequest, target: UnaryMethod): Protocol | undefined {
  const contentType = request.headers["content-type"] ?? "";
  const protocol = CONTENT_TYPES.get(contentType) ?? unusualSpelling(contentType);
  if (protocol === undefined) return undefined;
  if (!protocol.isGrpc) return target.protocols.connect ? protocol : undefined;
  // Over HTTP/1.1 the status of gRPC would come in the trailer of a chunked body.
  return target.protocols.grpc && request.httpVersionMajor === 2 ? protocol : undefined;
}

function unusualSpelling(contentType: string): Protocol | undefined {
  const isGrpc = contentTypeGrpcRegExp.test(contentType);
  if (!isGrpc && !contentTypeUnaryRegExp.test(contentType)) return undefined;
  return { isGrpc, isBinary: !/json/i.test(contentType) };
}

/** `https://host:port` as a URL has it. Parsing it takes time, and requests come from few. */
class OriginCache {
  readonly #origins = new Map<string, string>();

  /** Undefined for a request without a host, or with one that is none. */
  of(request: UnaryHttpRequest): string | undefined {
    const authority = "authority" in request ? request.authority : request.headers.host;
    if (authority === undefined) return undefined;
    const base = `${isEncrypted(request) ? "https" : "http"}://${authority}`;
    const known = this.#origins.get(base);
    if (known !== undefined) return known;
    if (!URL.canParse("/", base)) return undefined;
    const origin = new URL("/", base).href.slice(0, -1);
    if (this.#origins.size >= MAX_ORIGINS) this.#origins.clear();
    this.#origins.set(base, origin);
    return origin;
  }
}

/** Most origins that are remembered: they are the callers' words. */
const MAX_ORIGINS = 100;

function isEncrypted(request: UnaryHttpRequest): boolean {
  if ("stream" in request) return request.stream.session?.encrypted ?? false;
  return "encrypted" in request.socket && request.socket.encrypted === true;
}

function webHeaders(request: UnaryHttpRequest): Headers {
  const headers = new Headers();
  for (const name in request.headers) {
    const value = request.headers[name];
    if (value === undefined || name.startsWith(":")) continue;
    if (typeof value === "string") headers.append(name, value);
    else for (const line of value) headers.append(name, line);
  }
  return headers;
}
