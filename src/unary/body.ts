import type { Message } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Compression, compressedFlag, envelopeDecompress } from "@connectrpc/connect/protocol";

/** Bytes that have come in and not been read yet. */
class ByteQueue {
  readonly #chunks: Uint8Array[] = [];
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /**
   * Takes the first `count` bytes, of which there must be as many. They are a copy, so that a small message does not
   * keep the large buffer that Node read it into.
   */
  take(count: number): Uint8Array<ArrayBuffer> {
    const taken = new Uint8Array(count);
    let at = 0;
    while (at < count) {
      const chunk = this.#chunks[0] as Uint8Array;
      const part = chunk.subarray(0, count - at);
      taken.set(part, at);
      at += part.length;
      if (part.length === chunk.length) this.#chunks.shift();
      else this.#chunks[0] = chunk.subarray(part.length);
    }
    this.#length -= count;
    return taken;
  }
}

/** Gathers a body that is one message. */
export class WholeBody {
  readonly #maxBytes: number;
  readonly #queue = new ByteQueue();

  /** @throws ConnectError resource_exhausted when the Content-Length is above `maxBytes` already. */
  constructor(maxBytes: number, contentLength: string | null) {
    this.#maxBytes = maxBytes;
    const declared = Number.parseInt(contentLength ?? "0", 10);
    if (declared > maxBytes) throw tooLarge(maxBytes, declared);
  }

  /** @throws ConnectError resource_exhausted */
  push(chunk: Uint8Array): undefined {
    this.#queue.push(chunk);
    if (this.#queue.length > this.#maxBytes) throw tooLarge(this.#maxBytes);
  }

  end(): Uint8Array<ArrayBuffer> {
    return this.#queue.take(this.#queue.length);
  }
}

/** Bytes before the data of an envelope: one of flags, four of length. */
const HEAD_BYTES = 5;

interface Envelope {
  readonly flags: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** Reads a body that is one message in an envelope, as gRPC has it, as soon as the message is there. */
export class EnvelopedBody {
  readonly #maxBytes: number;
  readonly #compression: Compression | null;
  readonly #parse: (bytes: Uint8Array<ArrayBuffer>) => Message;
  readonly #queue = new ByteQueue();
  #head: { readonly flags: number; readonly length: number } | undefined;
  #message: Message | undefined;

  constructor(maxBytes: number, compression: Compression | null, parse: (bytes: Uint8Array<ArrayBuffer>) => Message) {
    this.#maxBytes = maxBytes;
    this.#compression = compression;
    this.#parse = parse;
  }

  /**
   * Takes what came. No more may be pushed before a promise that it returns has resolved.
   *
   * @throws ConnectError resource_exhausted for a message above the limit, unimplemented for a second message, and what
   * decompressing and parsing throw.
   */
  push(chunk: Uint8Array): Promise<void> | undefined {
    this.#queue.push(chunk);
    const envelopes = this.#split();
    if (envelopes.some(({ flags }) => (flags & compressedFlag) === compressedFlag)) return this.#unpack(envelopes);
    for (const { data } of envelopes) this.#accept(data);
    return undefined;
  }

  /** The envelopes that are complete. A head above the limit counts before what is wrong with the data before it. */
  #split(): Envelope[] {
    const envelopes: Envelope[] = [];
    for (;;) {
      if (this.#head === undefined) {
        if (this.#queue.length < HEAD_BYTES) return envelopes;
        const head = new DataView(this.#queue.take(HEAD_BYTES).buffer);
        this.#head = { flags: head.getUint8(0), length: head.getUint32(1) };
        if (this.#head.length > this.#maxBytes) throw tooLarge(this.#maxBytes, this.#head.length);
      }
      const { flags, length } = this.#head;
      if (this.#queue.length < length) return envelopes;
      envelopes.push({ flags, data: this.#queue.take(length) });
      this.#head = undefined;
    }
  }

  async #unpack(envelopes: readonly Envelope[]): Promise<void> {
    for (const envelope of envelopes) {
      const { data } = await envelopeDecompress(envelope, this.#compression, this.#maxBytes);
      this.#accept(data as Uint8Array<ArrayBuffer>);
    }
  }

  #accept(data: Uint8Array<ArrayBuffer>): void {
    const message = this.#parse(data);
    if (this.#message !== undefined) {
      throw new ConnectError("protocol error: received extra input message for unary method", Code.Unimplemented);
    }
    this.#message = message;
  }

  /** @throws ConnectError invalid_argument when a message has not come in full, unimplemented when there was none. */
  end(): Message {
    if (this.#queue.length > 0) throw new ConnectError("protocol error: incomplete envelope", Code.InvalidArgument);
    if (this.#message !== undefined) return this.#message;
    throw new ConnectError("protocol error: missing input message for unary method", Code.Unimplemented);
  }
}

function tooLarge(maxBytes: number, size?: number): ConnectError {
  const found = size === undefined ? "message size" : `message size ${size}`;
  return new ConnectError(`${found} is larger than configured readMaxBytes ${maxBytes}`, Code.ResourceExhausted);
}
