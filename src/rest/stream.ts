import { once } from "node:events";
import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { encodeField, encodeMessage } from "./encode.ts";
import type { RestError } from "./error-body.ts";
import type { RestResponse } from "./headers.ts";
import type { Route } from "./route-table.ts";

/** Flag of the last envelope of a Connect stream; its data are JSON. */
const END_FLAG = 0b10;
/** Bytes before the data of an envelope: the flags, and the length in 32 bits, most significant byte first. */
const ENVELOPE_HEADER_LENGTH = 5;

/** How the messages of a stream are framed. */
export type StreamFormat = "ndjson" | "sse";

const CONTENT_TYPES: Readonly<Record<StreamFormat, string>> = {
  ndjson: "application/x-ndjson",
  sse: "text/event-stream",
};

/** One part of a Connect stream. */
export type StreamPart =
  | { readonly kind: "message"; readonly data: Uint8Array }
  | { readonly kind: "end"; readonly error?: unknown };

/** The framing that a client asks for: server-sent events when Accept names them, else a line for each message. */
export function streamFormat(accept: string | undefined): StreamFormat {
  const wantsEvents = (accept ?? "").split(",").some((range) => /^\s*text\/event-stream\s*(;|$)/i.test(range));
  return wantsEvents ? "sse" : "ndjson";
}

/** Frames one message as Connect sends it in a stream. */
export function envelope(data: Uint8Array): Uint8Array {
  const framed = Buffer.alloc(ENVELOPE_HEADER_LENGTH + data.length);
  framed.writeUInt32BE(data.length, 1);
  framed.set(data, ENVELOPE_HEADER_LENGTH);
  return framed;
}

/** Takes a Connect stream apart. The chunks may be cut anywhere. */
export async function* readStream(body: AsyncIterable<Uint8Array>): AsyncGenerator<StreamPart> {
  let pending = Buffer.alloc(0);
  for await (const chunk of body) {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= ENVELOPE_HEADER_LENGTH) {
      const end = ENVELOPE_HEADER_LENGTH + pending.readUInt32BE(1);
      if (pending.length < end) break;
      const data = pending.subarray(ENVELOPE_HEADER_LENGTH, end);
      const isEnd = ((pending[0] ?? 0) & END_FLAG) !== 0;
      pending = pending.subarray(end);
      yield isEnd
        ? { kind: "end", error: (JSON.parse(data.toString()) as { error?: unknown }).error }
        : { kind: "message", data };
    }
  }
}

/** Writes the messages of one stream to a client, no faster than it reads. */
export class StreamWriter {
  readonly #response: RestResponse;
  readonly #route: Route;
  readonly #format: StreamFormat;
  readonly #stallMs: number;
  readonly #gone: AbortSignal;

  /**
   * Nothing is sent before the first write.
   *
   * @param stallMs how long a client may take nothing, in milliseconds, before the connection is cut.
   * @param gone aborted when the client goes away; writes then reject.
   */
  constructor(response: RestResponse, route: Route, format: StreamFormat, stallMs: number, gone: AbortSignal) {
    this.#response = response;
    this.#route = route;
    this.#format = format;
    this.#stallMs = stallMs;
    this.#gone = gone;
  }

  /** Sets the status and the headers. They go with the first write. */
  start(): void {
    this.#response.setHeader("content-type", CONTENT_TYPES[this.#format]);
    this.#response.setHeader("cache-control", "no-store");
    this.#response.setHeader("x-accel-buffering", "no");
    this.#response.statusCode = 200;
  }

  /** Writes a message. One with no field set is a sign of life: to server-sent events it goes as a comment. */
  async message(data: Uint8Array): Promise<void> {
    if (data.length === 0 && this.#format === "sse") return this.#write(": heartbeat\n\n");
    const { output, responseBody } = this.#route;
    const message = fromBinary(output.desc, data);
    const json = responseBody === undefined ? encodeMessage(output, message) : encodeField(responseBody, message);
    // Line breaks come from payloads only, as white space between tokens; here they would end the frame.
    const line = json.replace(/[\r\n]/g, " ");
    return this.#write(this.#format === "sse" ? `data: ${line}\n\n` : `${line}\n`);
  }

  /** Ends the stream, with the error as its last frame if there is one. */
  async end(error?: RestError): Promise<void> {
    if (error !== undefined) {
      await this.#write(this.#format === "sse" ? `event: error\ndata: ${error.body}\n\n` : `${error.body}\n`);
    }
    this.#response.end();
  }

  async #write(text: string): Promise<void> {
    this.#gone.throwIfAborted();
    if (writeTo(this.#response, text)) return;
    try {
      await once(this.#response, "drain", {
        signal: AbortSignal.any([this.#gone, AbortSignal.timeout(this.#stallMs)]),
      });
    } catch {
      this.#response.destroy();
      throw new ConnectError("the client takes nothing", Code.Canceled);
    }
  }
}

/** Http2ServerResponse and ServerResponse overload `write` differently. */
function writeTo(response: RestResponse, text: string): boolean {
  return "createPushResponse" in response ? response.write(text) : response.write(text);
}
