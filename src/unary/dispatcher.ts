import type { IncomingHttpHeaders } from "node:http";
import type { ConnectRouter, ConnectRouterOptions, ContextValues } from "@connectrpc/connect";
import { contentTypeUnaryRegExp } from "@connectrpc/connect/protocol-connect";
import { contentTypeRegExp as contentTypeGrpcRegExp } from "@connectrpc/connect/protocol-grpc";
import { answerConnect, type ConnectErrorMapper } from "./connect.ts";
import type { Arrival, Exchange } from "./exchange.ts";
import { answerGrpc } from "./grpc.ts";
import { type UnaryMethod, unaryMethods } from "./registry.ts";

export interface UnaryDispatcherOptions extends ConnectRouterOptions {
  /** Has the last word on the error that a Connect call is answered with. Default: it stays as it is. */
  readonly mapConnectError?: ConnectErrorMapper;
}

/** What tells whether a request is taken. */
export interface UnaryRequestHead {
  readonly isHttp2: boolean;
  readonly isEncrypted: boolean;
  readonly method: string | undefined;
  /** The target as it was sent. */
  readonly path: string | undefined;
  readonly authority: string | undefined;
  readonly headers: IncomingHttpHeaders;
}

/** What a request that is taken leads to. */
export interface UnaryRoute {
  readonly target: UnaryMethod;
  readonly protocol: Protocol;
  readonly url: string;
}

export interface UnaryDispatcher {
  /** Undefined for a request that is left to the handlers of the router. */
  find(head: UnaryRequestHead): UnaryRoute | undefined;
  /**
   * Answers a request that was found. The promise resolves when the answer is written, and rejects when that failed.
   */
  answer(
    route: UnaryRoute,
    headers: IncomingHttpHeaders,
    exchange: Exchange,
    contextValues?: ContextValues,
  ): Promise<void>;
}

/**
 * A short way for unary calls of gRPC over HTTP/2 and of Connect over POST, from Node's request to the implementation and
 * back. Everything that a client, an interceptor or an implementation can see is as the handlers of a ConnectRouter with
 * the same routes and options have it; those are left with every request that is not taken here.
 */
export function createUnaryDispatcher(
  routes: (router: ConnectRouter) => void,
  options: UnaryDispatcherOptions,
): UnaryDispatcher {
  const { mapConnectError = (error) => error } = options;
  const methods = unaryMethods(routes, options);
  const origins = new OriginCache();

  return {
    find({ isHttp2, isEncrypted, method, path, authority, headers }) {
      const target = methods.get(path ?? "");
      if (target === undefined || method !== "POST" || authority === undefined) return undefined;
      const protocol = protocolOf(headers["content-type"] ?? "");
      if (protocol === undefined || !target.protocols[protocol.name]) return undefined;
      // Over HTTP/1.1 the status of gRPC would come in the trailer of a chunked body.
      if (protocol.name === "grpc" && !isHttp2) return undefined;
      const origin = origins.of(`${isEncrypted ? "https" : "http"}://${authority}`);
      return origin === undefined ? undefined : { target, protocol, url: origin + target.path };
    },
    async answer({ target, protocol, url }, headers, exchange, contextValues) {
      const arrival: Arrival = { target, exchange, url, header: webHeaders(headers), contextValues };
      if (protocol.name === "grpc") return answerGrpc(arrival, protocol.isBinary);
      return answerConnect(arrival, protocol.isBinary, mapConnectError);
    },
  };
}

interface Protocol {
  readonly name: "grpc" | "connect";
  readonly isBinary: boolean;
}

const CONTENT_TYPES: ReadonlyMap<string, Protocol> = new Map([
  ["application/grpc", { name: "grpc", isBinary: true }],
  ["application/grpc+proto", { name: "grpc", isBinary: true }],
  ["application/proto", { name: "connect", isBinary: true }],
  ["application/json", { name: "connect", isBinary: false }],
]);

function protocolOf(contentType: string): Protocol | undefined {
  const known = CONTENT_TYPES.get(contentType);
  if (known !== undefined) return known;
  const isGrpc = contentTypeGrpcRegExp.test(contentType);
  if (!isGrpc && !contentTypeUnaryRegExp.test(contentType)) return undefined;
  return { name: isGrpc ? "grpc" : "connect", isBinary: !/json/i.test(contentType) };
}

/** `https://host:port` as a URL has it. Parsing it takes time, and requests come from few. */
class OriginCache {
  readonly #origins = new Map<string, string>();

  /** Undefined for what is no origin. */
  of(base: string): string | undefined {
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

function webHeaders(fields: IncomingHttpHeaders): Headers {
  const headers = new Headers();
  for (const name in fields) {
    const value = fields[name];
    if (value === undefined || name.startsWith(":")) continue;
    if (typeof value === "string") headers.append(name, value);
    else for (const line of value) headers.append(name, line);
  }
  return headers;
}
