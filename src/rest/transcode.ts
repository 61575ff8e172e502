import { randomBytes } from "node:crypto";
import { fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerResponse } from "@connectrpc/connect/protocol";
import { Refusal } from "../errors.ts";
import { toConnectError } from "../rpc/refusal.ts";
import type { UnaryMethod } from "../unary/registry.ts";
import { decodeRequest } from "./decode.ts";
import { encodeField, encodeMessage, textOf } from "./encode.ts";
import { connectError, faultError, type RestError, refusalError } from "./error-body.ts";
import type { Strictness } from "./findings.ts";
import { callHeaders, type RestRequest, type RestResponse, returnHeaders } from "./headers.ts";
import type { FieldPlan } from "./message-plan.ts";
import { readBeginning, readBody } from "./request-body.ts";
import { parseTarget } from "./request-path.ts";
import { type Route, RouteTable } from "./route-table.ts";
import { envelope, readStream, StreamWriter, streamFormat } from "./stream.ts";
import { type CallResult, callUnary } from "./unary-call.ts";

/** What the REST face needs. */
export interface RestOptions {
  /**
   * Handlers of a Connect router that speaks the Connect protocol. Their readMaxBytes must be maxBodyBytes and 64 KiB
   * more at least, as path and query become part of the message.
   */
  readonly handlers: readonly UniversalHandler[];
  /**
   * The unary methods of the same routes and options, by path, which are then called without their handlers. Default:
   * none, so that every call goes through its handler.
   */
  readonly unary?: ReadonlyMap<string, UnaryMethod>;
  /** The context values of a call; the handlers' request gate finds and fills them before the body is read. */
  readonly contextValues?: (request: RestRequest) => ContextValues;
  /** Prefix that callers may leave out, such as `/v1/scheduling`. */
  readonly basePath: string;
  /** Most bytes of a body, as sent and decompressed. */
  readonly maxBodyBytes: number;
  /** Most levels of nesting in a body. Default 64. */
  readonly maxJsonDepth?: number;
  /** Longest time that a body may take to arrive, in milliseconds. Default 30000. */
  readonly bodyTimeoutMs?: number;
  /** How long the client of a stream may take nothing before it is cut off, in milliseconds. Default 60000. */
  readonly streamStallMs?: number;
  /** What is refused instead of warned about. Asked after the request gate. Default: nothing. */
  readonly strict?: (values: ContextValues) => Strictness;
  /** Told of what is our fault. Default: nobody is. */
  readonly onFault?: (error: unknown, where: { readonly requestId: string; readonly target: string }) => void;
}

/** One request and what is known of it. */
interface Exchange {
  readonly request: RestRequest;
  readonly response: RestResponse;
  readonly requestId: string;
  /** Aborted when the response ends or the client goes away. */
  readonly gone: AbortSignal;
  /** Filled while the request is decoded. */
  readonly warnings: string[];
}

/** How long what is left of an HTTP/2 request may still come after its answer, in milliseconds. */
const LINGER_MS = 1_000;
/** Why a call ends when its response is over. It is one for all calls, as each would take a stack trace. */
const GONE = new ConnectError("the client went away", Code.Canceled);
/** Longest HTTP/1.1 answer that is sent as one string with its head, which is one write instead of two. */
const MAX_STRING_BYTES = 16_384;
const LENIENT: Strictness = { pathBody: false, unknownFields: false };

/**
 * Puts a REST face in front of Connect handlers, by the `google.api.http` rules of their methods. A request becomes a
 * Connect call in process, so that the key check, validation, deadlines and logging are those of every protocol. The
 * body is read when the handler asks for the message, which is after its request gate.
 *
 * The function that it returns answers every request, and never throws.
 *
 * @throws Error when the contract has what REST does not do, or two routes collide.
 */
export function createRestHandler(options: RestOptions): (request: RestRequest, response: RestResponse) => void {
  const table = new RouteTable(options.handlers, options.basePath);
  return (request, response) => {
    const exchange = open(request, response);
    answer(table, options, exchange).catch((error: unknown) => {
      if (exchange.gone.aborted || ConnectError.from(error).code === Code.Canceled) return;
      report(options, exchange, error);
      if (response.headersSent) response.destroy();
      else sendError(exchange, faultError(exchange.requestId));
    });
  };
}

function open(request: RestRequest, response: RestResponse): Exchange {
  const gone = new AbortController();
  response.once("close", () => gone.abort(GONE));
  // A connection that breaks is told by "close"; without a listener "error" would end the process.
  response.on("error", () => {});
  // (The HTTP/2 response tells of its end only when the whole stream has ended.)
  const written = "createPushResponse" in response ? response.stream : response;
  written.once("finish", () => passOver(request));
  const given = request.headers["x-request-id"];
  const requestId =
    typeof given === "string" && /^[\x21-\x7e]{1,128}$/.test(given) ? given : `req_${randomBytes(12).toString("hex")}`;
  response.setHeader("x-request-id", requestId);
  return { request, response, requestId, gone: gone.signal, warnings: [] };
}

/**
 * Reads past what is left of a body when the answer is out, for it would hold up the connection. HTTP/2 can call the
 * stream off, but not at once: that overtakes the end of the answer, and some clients then throw all of it away.
 */
function passOver(request: RestRequest): void {
  request.resume();
  if (request.complete || !("stream" in request)) return;
  const { stream } = request;
  const timer = setTimeout(() => stream.close(), LINGER_MS);
  stream.once("close", () => clearTimeout(timer));
}

async function answer(table: RouteTable, options: RestOptions, exchange: Exchange): Promise<void> {
  const { request, response, requestId } = exchange;
  const { pathname, query } = parseTarget(request.url ?? "/");
  const httpMethod = request.method ?? "GET";
  try {
    const match = table.find(httpMethod, pathname);
    if (match.kind === "route") {
      const { route, path } = match;
      return await answerRoute(options, exchange, route, path, query);
    }
    if (match.kind === "not_found") throw new Refusal("ROUTE_NOT_FOUND", { path: pathname.slice(0, 200) });
    const allow = match.allow.join(", ");
    response.setHeader("allow", allow);
    throw new Refusal("METHOD_NOT_ALLOWED", { method: httpMethod, allow });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    sendError(exchange, refusalError(error, requestId));
  }
}

async function answerRoute(
  options: RestOptions,
  exchange: Exchange,
  route: Route,
  path: ReadonlyMap<FieldPlan, string>,
  query: URLSearchParams,
): Promise<void> {
  const { request, requestId, gone } = exchange;
  const contextValues = options.contextValues?.(request) ?? createContextValues();
  const limits = { maxBytes: options.maxBodyBytes, timeoutMs: options.bodyTimeoutMs ?? 30_000 };

  async function readMessage(): Promise<Message> {
    const { rawBody } = route;
    const maxRaw = rawBody?.rawBodyBytes;
    const body =
      maxRaw === undefined
        ? await readBody(request, limits)
        : await readBeginning(request, { ...limits, maxBytes: Math.min(maxRaw, limits.maxBytes) });
    const strict = options.strict?.(contextValues) ?? LENIENT;
    const plan = route.input;
    const decoded = decodeRequest({
      plan,
      body,
      query,
      path,
      strict,
      maxDepth: options.maxJsonDepth ?? 64,
      rawBody,
    });
    exchange.warnings.push(...decoded.warnings);
    return decoded.message;
  }
  const message = () =>
    readMessage().catch((error: unknown) => {
      if (error instanceof ConnectError) throw error;
      if (error instanceof Refusal) throw toConnectError(error);
      report(options, exchange, error);
      throw new ConnectError("internal error", Code.Internal);
    });

  const header = callHeaders(request, route.streaming ? "application/connect+proto" : "application/proto", requestId);
  const target = route.streaming ? undefined : options.unary?.get(route.handler.requestPath);
  if (target !== undefined) {
    return sendUnary(exchange, route, await callUnary(target, { header, contextValues, gone, message }));
  }
  // The handler pulls from this after its gate has let the request pass.
  async function* body(): AsyncGenerator<Uint8Array> {
    const bytes = toBinary(route.input.desc, await message());
    yield route.streaming ? envelope(bytes) : bytes;
  }
  const result = await route.handler({
    httpVersion: request.httpVersion,
    url: `http://localhost${route.handler.requestPath}`,
    method: "POST",
    header,
    body: body(),
    signal: gone,
    contextValues,
  });
  if (route.streaming) return sendStream(options, exchange, route, result);
  return sendUnary(exchange, route, await unaryResult(route, result));
}

async function unaryResult({ output }: Route, result: UniversalServerResponse): Promise<CallResult> {
  const bytes = await readAll(result);
  const { status, header = new Headers() } = result;
  if (status !== 200) return { header, error: JSON.parse(bytes.toString()) };
  return { header, message: fromBinary(output.desc, bytes) };
}

function sendUnary(exchange: Exchange, { output, responseBody }: Route, result: CallResult): void {
  if (exchange.gone.aborted) return;
  returnHeaders(result.header, exchange.warnings, exchange.response);
  if ("error" in result) {
    sendError(exchange, connectError(result.error, exchange.requestId));
    return;
  }
  const { message } = result;
  if (responseBody?.plainText) send(exchange, 200, textOf(responseBody, message), "text/plain; charset=utf-8");
  else send(exchange, 200, responseBody ? encodeField(responseBody, message) : encodeMessage(output, message));
}

async function sendStream(
  options: RestOptions,
  exchange: Exchange,
  route: Route,
  result: UniversalServerResponse,
): Promise<void> {
  const { request, response, requestId, gone, warnings } = exchange;
  const format = streamFormat(request.headers.accept);
  const writer = new StreamWriter(response, route, format, options.streamStallMs ?? 60_000, gone);
  let started = false;
  for await (const part of readStream(bodyOf(result))) {
    const error = part.kind === "end" && part.error !== undefined ? connectError(part.error, requestId) : undefined;
    if (!started) {
      gone.throwIfAborted();
      returnHeaders(result.header, warnings, response);
      if (error !== undefined) return sendError(exchange, error);
      writer.start();
      started = true;
    }
    if (part.kind === "end") return writer.end(error);
    await writer.message(part.data);
  }
  throw new Error("a stream of a handler ended without its last part");
}

function sendError(exchange: Exchange, error: RestError): void {
  for (const [name, value] of Object.entries(error.headers)) exchange.response.setHeader(name, value);
  send(exchange, error.status, error.body);
}

function send({ request, response }: Exchange, status: number, text: string, type = "application/json"): void {
  const bytes = Buffer.from(text);
  response.statusCode = status;
  response.setHeader("content-type", type);
  response.setHeader("content-length", bytes.length);
  if (request.method === "HEAD") response.end();
  else if ("stream" in response || bytes.length > MAX_STRING_BYTES) response.end(bytes);
  else response.end(bytes.toString("latin1"), "latin1");
}

async function readAll(result: UniversalServerResponse): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of bodyOf(result)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function bodyOf({ body, status }: UniversalServerResponse): AsyncIterable<Uint8Array> {
  if (body === undefined) throw new Error(`a handler answered ${status} without a body`);
  return body;
}

function report(options: RestOptions, { request, requestId }: Exchange, error: unknown): void {
  options.onFault?.(error, { requestId, target: `${request.method} ${request.url}` });
}
