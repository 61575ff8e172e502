import type { IncomingMessage, ServerResponse } from "node:http";
import { constants, type Http2ServerRequest, type Http2ServerResponse, type ServerHttp2Stream } from "node:http2";
import { Code, ConnectError, type ContextValues } from "@connectrpc/connect";
import type { Call } from "./call.ts";
import type { UnaryMethod } from "./registry.ts";

/** A request of Node's HTTP/1 server, or of the compatibility layer of its HTTP/2 server. */
export type UnaryHttpRequest = IncomingMessage | Http2ServerRequest;
/** The response to a {@link UnaryHttpRequest}. */
export type UnaryHttpResponse = ServerResponse | Http2ServerResponse;

/** A request that is answered here. */
export interface Arrival {
  readonly target: UnaryMethod;
  readonly exchange: Exchange;
  readonly url: string;
  readonly header: Headers;
  readonly contextValues: ContextValues | undefined;
}

/** Fields for Node: names in lower case, a list for a name that comes several times. */
type NodeFields = Record<string, string | string[]>;

/** Codes of a reset stream that mean more than that the stream has ended. */
const RESET_CODES: Readonly<Record<number, Code>> = {
  [constants.NGHTTP2_PROTOCOL_ERROR]: Code.Internal,
  [constants.NGHTTP2_INTERNAL_ERROR]: Code.Internal,
  [constants.NGHTTP2_FLOW_CONTROL_ERROR]: Code.Internal,
  [constants.NGHTTP2_SETTINGS_TIMEOUT]: Code.Internal,
  [constants.NGHTTP2_FRAME_SIZE_ERROR]: Code.Internal,
  [constants.NGHTTP2_COMPRESSION_ERROR]: Code.Internal,
  [constants.NGHTTP2_CONNECT_ERROR]: Code.Internal,
  [constants.NGHTTP2_REFUSED_STREAM]: Code.Unavailable,
  [constants.NGHTTP2_CANCEL]: Code.Canceled,
  [constants.NGHTTP2_ENHANCE_YOUR_CALM]: Code.ResourceExhausted,
  [constants.NGHTTP2_INADEQUATE_SECURITY]: Code.PermissionDenied,
  [constants.NGHTTP2_HTTP_1_1_REQUIRED]: Code.PermissionDenied,
};

/**
 * One request and its answer, on Node's own objects. HTTP/2 goes to the stream beneath the compatibility layer, whose
 * own streams would only pass on every byte once more.
 */
export class Exchange {
  readonly #response: UnaryHttpResponse;
  readonly #stream: ServerHttp2Stream | undefined;
  readonly #source: IncomingMessage | ServerHttp2Stream;
  #isReceived: boolean;
  #timer: NodeJS.Timeout | undefined;
  #call: Call | undefined;
  #stopReceiving: ((reason: unknown) => void) | undefined;

  /** An HTTP/2 stream is reset when the request has not arrived in full after `receiveTimeoutMs`. */
  constructor(request: UnaryHttpRequest, response: UnaryHttpResponse, receiveTimeoutMs: number) {
    this.#response = response;
    this.#stream = "stream" in request ? request.stream : undefined;
    this.#source = "stream" in request ? request.stream : request;
    this.#isReceived = this.#stream?.endAfterHeaders ?? false;
    if (this.#stream !== undefined && !this.#isReceived) {
      this.#timer = setTimeout(() => this.#stream?.close(constants.NGHTTP2_CANCEL), receiveTimeoutMs);
    }
    (this.#stream ?? response).once("close", () => this.#onClose());
  }

  /** Has the call aborted when the client goes away. */
  attach(call: Call): void {
    this.#call = call;
  }

  #onClose(): void {
    clearTimeout(this.#timer);
    if (this.#call === undefined || this.#call.signal.aborted) return;
    this.#call.abort(this.#resetError());
    this.#stopReceiving?.(this.#call.signal.reason);
  }

  #resetError(): ConnectError | undefined {
    const reset = this.#stream?.rstCode ?? constants.NGHTTP2_NO_ERROR;
    const code = RESET_CODES[reset];
    if (code === undefined) return undefined;
    return new ConnectError(`http/2 stream closed with error code 0x${reset.toString(16)}`, code);
  }

  /**
   * Reads the body: `push` is given one chunk after the other, the next one when the promise that it may return has
   * resolved. It stops where `push` throws.
   *
   * @throws what `push` throws; the reason of the call's signal when the client goes away.
   */
  receive(push: (chunk: Uint8Array) => Promise<void> | undefined | void): Promise<void> {
    const source = this.#source;
    if (source.readableEnded) return Promise.resolve();
    if (source.destroyed) return Promise.reject(this.#call?.signal.reason);
    return new Promise((resolve, reject) => {
      let pending: Promise<void> | undefined | void;
      this.#stopReceiving = reject;
      const fail = (error: unknown): void => {
        source.pause();
        source.off("data", onData);
        reject(error);
      };
      const onData = (chunk: Buffer): void => {
        try {
          pending = push(chunk);
          if (pending === undefined) return;
          source.pause();
          pending.then(() => source.resume(), fail);
        } catch (error) {
          fail(error);
        }
      };
      source.on("data", onData);
      source.once("end", () => {
        this.#isReceived = true;
        clearTimeout(this.#timer);
        // The end may come while the last chunk is still worked on.
        resolve(pending as Promise<void> | undefined);
      });
    });
  }

  /** Answers, unless the client has gone. With `trailer`, HTTP/2 sends trailers. */
  respond(status: number, header: Headers, body: Uint8Array | undefined, trailer?: Headers): void {
    if (this.#stream === undefined) this.#respondHttp1(status, header, body);
    else this.#respondHttp2(this.#stream, status, header, body, trailer);
  }

  #respondHttp1(status: number, header: Headers, body: Uint8Array | undefined): void {
    const response = this.#response as ServerResponse;
    if (response.destroyed) return;
    if (!this.#isReceived) this.#passOver(response);
    response.writeHead(status, nodeFields(header));
    response.end(body);
  }

  #respondHttp2(
    stream: ServerHttp2Stream,
    status: number,
    header: Headers,
    body: Uint8Array | undefined,
    trailer: Headers | undefined,
  ): void {
    const response = this.#response as Http2ServerResponse;
    if (stream.destroyed || stream.closed) return;
    if (!this.#isReceived) this.#passOver(stream);
    const fields = { ":status": status, ...response.getHeaders(), ...nodeFields(header) };
    stream.respond(fields, { waitForTrailers: trailer !== undefined });
    if (trailer !== undefined) response.addTrailers(nodeFields(trailer));
    stream.end(body);
  }

  /**
   * Has what is left unread of the body passed over once the answer is out. It would hold up an HTTP/1.1 connection, and
   * Node would reset an HTTP/2 stream, upon which some clients that are still sending throw the answer away.
   */
  #passOver(written: UnaryHttpResponse | ServerHttp2Stream): void {
    written.once("finish", () => this.#source.resume());
  }
}

function nodeFields(headers: Headers): NodeFields {
  const fields: NodeFields = {};
  for (const [name, value] of headers) {
    const earlier = fields[name];
    fields[name] = earlier === undefined ? value : [earlier, value].flat();
  }
  return fields;
}
