import type { IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import { Code, ConnectError, type ContextValues } from "@connectrpc/connect";
import type { Call } from "./call.ts";
import type { UnaryMethod } from "./registry.ts";

/** Fields of an answer for Node: names in lower case, a list for a name that comes several times. */
export type NodeFields = Record<string, string | string[]>;

/** A call that has arrived. */
export interface Arrival {
  readonly target: UnaryMethod;
  readonly exchange: Exchange;
  readonly url: string;
  readonly header: Headers;
  readonly contextValues: ContextValues | undefined;
}

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

/** Fields that HTTP/2 has no place for. */
const CONNECTION_FIELDS: ReadonlySet<string> = new Set([
  "connection",
  "http2-settings",
  "keep-alive",
  "proxy-connection",
  "te",
  "transfer-encoding",
  "upgrade",
]);

/** Longest body that is sent as one string with its head, which is one write instead of two. */
const MAX_STRING_BYTES = 16_384;

/** One request and its answer, on Node's own objects. */
export abstract class Exchange {
  readonly #source: IncomingMessage | ServerHttp2Stream;
  #isReceived = false;
  #call: Call | undefined;
  #stopReceiving: ((reason: unknown) => void) | undefined;

  protected constructor(source: IncomingMessage | ServerHttp2Stream, written: ServerResponse | ServerHttp2Stream) {
    this.#source = source;
    written.once("close", () => this.onClose());
  }

  /** Has the call aborted when the client goes away. */
  attach(call: Call): void {
    this.#call = call;
  }

  /**
   * Reads the body: `push` is given one chunk after the other, the next one when the promise that it may return has
   * resolved. It stops where `push` throws.
   *
   * @throws what `push` throws; the reason of the call's signal when the client goes away.
   */
  receive(push: (chunk: Uint8Array) => Promise<void> | undefined): Promise<void> {
    const source = this.#source;
    if (source.readableEnded) return Promise.resolve();
    if (source.destroyed) return Promise.reject(this.#call?.signal.reason);
    return new Promise((resolve, reject) => {
      let pending: Promise<void> | undefined;
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
        // Node's streams outlive their calls by some collections of garbage, and with them what they refer to.
        source.off("data", onData);
        this.onReceived();
        // The end may come while the last chunk is still worked on.
        resolve(pending);
      });
    });
  }

  /** Answers, unless the client has gone. HTTP/2 sends the trailers, if there are any. */
  abstract respond(status: number, header: Headers, body: Uint8Array | undefined, trailer?: Headers): void;

  /** Answers 500 without a body, or cuts off an answer that has begun. */
  abstract fail(): void;

  protected onReceived(): void {
    this.#isReceived = true;
  }

  protected onClose(reason?: ConnectError): void {
    if (this.#call === undefined || this.#call.signal.aborted) return;
    this.#call.abort(reason);
    this.#stopReceiving?.(this.#call.signal.reason);
  }

  /**
   * Has what is left unread of the body passed over once the answer is out. It would hold up an HTTP/1.1 connection, and
   * Node would reset an HTTP/2 stream, upon which some clients that are still sending throw the answer away.
   */
  protected passOverAfter(written: ServerResponse | ServerHttp2Stream): void {
    if (!this.#isReceived) written.once("finish", () => this.#source.resume());
  }
}

export class Http1Exchange extends Exchange {
  readonly #response: ServerResponse;
  readonly #fields: NodeFields;

  /** `fields` are part of the head of every answer. */
  constructor(request: IncomingMessage, response: ServerResponse, fields: NodeFields) {
    super(request, response);
    this.#response = response;
    this.#fields = fields;
  }

  respond(status: number, header: Headers, body: Uint8Array | undefined): void {
    const response = this.#response;
    if (response.destroyed) return;
    this.passOverAfter(response);
    response.writeHead(status, { ...this.#fields, ...nodeFields(header) });
    if (body === undefined || body.length > MAX_STRING_BYTES) response.end(body);
    else response.end(Buffer.from(body.buffer, body.byteOffset, body.length).toString("latin1"), "latin1");
  }

  fail(): void {
    if (this.#response.headersSent) this.#response.destroy();
    // Node remembers the length of a head that it could not write.
    else this.#response.writeHead(500, { ...this.#fields, "content-length": "0" }).end();
  }
}

/** A stream as it comes, without the request and the response that Node can make of it: they take longer than a call. */
export class Http2Exchange extends Exchange {
  readonly #stream: ServerHttp2Stream;
  readonly #fields: NodeFields;
  readonly #timer: NodeJS.Timeout | undefined;

  /** The stream is reset when the request has not arrived in full after `receiveTimeoutMs`. */
  constructor(stream: ServerHttp2Stream, fields: NodeFields, receiveTimeoutMs: number) {
    super(stream, stream);
    this.#stream = stream;
    this.#fields = fields;
    if (stream.endAfterHeaders) this.onReceived();
    else this.#timer = setTimeout(() => stream.close(constants.NGHTTP2_CANCEL), receiveTimeoutMs);
    // A connection that breaks is told by "close"; without a listener "error" would end the process.
    stream.on("error", () => {});
  }

  protected override onReceived(): void {
    clearTimeout(this.#timer);
    super.onReceived();
  }

  protected override onClose(): void {
    clearTimeout(this.#timer);
    const reset = this.#stream.rstCode ?? constants.NGHTTP2_NO_ERROR;
    const code = RESET_CODES[reset];
    if (code === undefined) super.onClose();
    else super.onClose(new ConnectError(`http/2 stream closed with error code 0x${reset.toString(16)}`, code));
  }

  respond(status: number, header: Headers, body: Uint8Array | undefined, trailer?: Headers): void {
    const stream = this.#stream;
    if (stream.destroyed || stream.closed) return;
    this.passOverAfter(stream);
    const fields = { ":status": status, ...this.#fields, ...nodeFields(header, CONNECTION_FIELDS) };
    stream.respond(fields, { waitForTrailers: trailer !== undefined });
    if (trailer !== undefined) {
      stream.once("wantTrailers", () => stream.sendTrailers(nodeFields(trailer, CONNECTION_FIELDS)));
    }
    stream.end(body);
  }

  fail(): void {
    const stream = this.#stream;
    if (stream.headersSent) stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    else if (!stream.destroyed) stream.respond({ ":status": 500, ...this.#fields }, { endStream: true });
  }
}

const NONE: ReadonlySet<string> = new Set();

function nodeFields(headers: Headers, without = NONE): NodeFields {
  const fields: NodeFields = {};
  for (const [name, value] of headers) {
    if (without.has(name)) continue;
    const earlier = fields[name];
    fields[name] = earlier === undefined ? value : [earlier, value].flat();
  }
  return fields;
}
