import { connect, type Socket } from "node:net";

/** What a stream of the client's is told. */
export interface StreamHandler {
  onData(chunk: Buffer): void;
  /** The answer is whole; or `error` says why there is none. */
  onEnd(error?: Error): void;
}

/** A call under way. */
export interface Http2Call {
  /** Resets the stream. Its handler hears no more. */
  cancel(): void;
}

/** A request that waits for a stream to be free. */
interface Pending {
  readonly head: Buffer;
  readonly body: Buffer;
  readonly handler: StreamHandler;
  /** Undefined until it has its stream. */
  id?: number;
  cancelled?: true;
}

interface Stream {
  readonly handler: StreamHandler;
  window: number;
  /** What of the request's body is still to be sent. */
  unsent: Buffer;
  /** Bytes received and not given back to the peer's window. */
  received: number;
}

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;
const END_STREAM = 0x1;
const ACK = 0x1;
const END_HEADERS = 0x4;
const SETTINGS_ENABLE_PUSH = 2;
const SETTINGS_MAX_CONCURRENT_STREAMS = 3;
const SETTINGS_INITIAL_WINDOW_SIZE = 4;
const SETTINGS_MAX_FRAME_SIZE = 5;
const CANCEL = 8;
/** What this client lets the server send ahead, for a connection and for each stream. */
const OUR_WINDOW = 64 * 1024 * 1024;
const INITIAL_WINDOW = 65_535;

/**
 * An HTTP/2 client for load, over cleartext. Node's own costs about as much for a call as the server that it would
 * measure, on the same cores; this one sends heads that were encoded once, all frames of a turn in one write, and does
 * not decode the heads of answers.
 */
export class Http2Client implements Disposable {
  readonly #socket: Socket;
  readonly #streams = new Map<number, Stream>();
  readonly #pending: Pending[] = [];
  #nextId = 1;
  #unread: Buffer = Buffer.alloc(0);
  #unwritten: Buffer[] = [];
  #window = INITIAL_WINDOW;
  #streamWindow = INITIAL_WINDOW;
  #maxFrame = 16_384;
  /** Until the server says otherwise, what RFC 9113 recommends as the least. */
  #maxStreams = 100;
  #received = 0;
  #closed: Error | undefined;

  constructor(port: number) {
    this.#socket = connect({ port, host: "127.0.0.1", noDelay: true });
    this.#socket.on("data", (chunk) => this.#onData(chunk));
    this.#socket.on("error", (error) => this.#failAll(error));
    this.#socket.on("close", () => this.#failAll(new Error("the connection was closed")));
    const settings = Buffer.alloc(12);
    settings.writeUInt16BE(SETTINGS_ENABLE_PUSH, 0);
    settings.writeUInt16BE(SETTINGS_INITIAL_WINDOW_SIZE, 6);
    settings.writeUInt32BE(OUR_WINDOW, 8);
    this.#write(PREFACE);
    this.#writeFrame(SETTINGS, 0, 0, settings);
    this.#writeFrame(WINDOW_UPDATE, 0, 0, uint32(OUR_WINDOW - INITIAL_WINDOW));
  }

  /** Sends a request, when the server allows one more stream. `head` is what `encodeHead` made. */
  request(head: Buffer, body: Buffer, handler: StreamHandler): Http2Call {
    const pending: Pending = { head, body, handler };
    if (this.#closed !== undefined) handler.onEnd(this.#closed);
    else if (this.#streams.size < this.#maxStreams) this.#start(pending);
    else this.#pending.push(pending);
    return {
      cancel: () => {
        pending.cancelled = true;
        if (pending.id === undefined || !this.#streams.delete(pending.id)) return;
        this.#writeFrame(RST_STREAM, 0, pending.id, uint32(CANCEL));
        this.#startNext();
      },
    };
  }

  [Symbol.dispose](): void {
    this.#closed ??= new Error("the client was closed");
    this.#streams.clear();
    this.#pending.length = 0;
    this.#socket.destroy();
  }

  #start(pending: Pending): void {
    const id = this.#nextId;
    this.#nextId += 2;
    pending.id = id;
    const stream: Stream = { handler: pending.handler, window: this.#streamWindow, unsent: pending.body, received: 0 };
    this.#streams.set(id, stream);
    this.#writeFrame(HEADERS, END_HEADERS, id, pending.head);
    this.#send(id, stream);
  }

  #startNext(): void {
    while (this.#streams.size < this.#maxStreams) {
      const next = this.#pending.shift();
      if (next === undefined) return;
      if (!next.cancelled) this.#start(next);
    }
  }

  /** Sends as much of the body as the windows allow. */
  #send(id: number, stream: Stream): void {
    while (stream.unsent.length > 0) {
      const size = Math.min(stream.unsent.length, stream.window, this.#window, this.#maxFrame);
      if (size <= 0) return;
      const isLast = size === stream.unsent.length;
      this.#writeFrame(DATA, isLast ? END_STREAM : 0, id, stream.unsent.subarray(0, size));
      stream.unsent = stream.unsent.subarray(size);
      stream.window -= size;
      this.#window -= size;
    }
  }

  #onData(chunk: Buffer): void {
    const all = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    let at = 0;
    while (all.length - at >= 9) {
      const end = at + 9 + all.readUIntBE(at, 3);
      if (all.length < end) break;
      this.#onFrame(all[at + 3] ?? 0, all[at + 4] ?? 0, all.readUInt32BE(at + 5), all.subarray(at + 9, end));
      at = end;
    }
    this.#unread = all.subarray(at);
  }

  #onFrame(type: number, flags: number, id: number, payload: Buffer): void {
    const stream = this.#streams.get(id);
    switch (type) {
      case DATA:
        this.#giveBack(id, stream, payload.length);
        stream?.handler.onData(payload);
        if (flags & END_STREAM) this.#end(id, stream);
        break;
      case HEADERS:
        if (flags & END_STREAM) this.#end(id, stream);
        break;
      case RST_STREAM:
        this.#end(id, stream, new Error(`the server reset the stream (${payload.readUInt32BE(0)})`));
        break;
      case SETTINGS:
        if (!(flags & ACK)) this.#onSettings(payload);
        break;
      case PING:
        if (!(flags & ACK)) this.#writeFrame(PING, ACK, 0, payload);
        break;
      case GOAWAY:
        this.#failAll(new Error(`the server said goodbye (${payload.readUInt32BE(4)})`));
        break;
      case WINDOW_UPDATE:
        if (id === 0) this.#window += payload.readUInt32BE(0);
        else if (stream !== undefined) stream.window += payload.readUInt32BE(0);
        if (id !== 0 && stream !== undefined) this.#send(id, stream);
        else if (id === 0) for (const [each, waiting] of this.#streams) this.#send(each, waiting);
        break;
    }
  }

  #onSettings(payload: Buffer): void {
    for (let at = 0; at + 6 <= payload.length; at += 6) {
      const value = payload.readUInt32BE(at + 2);
      switch (payload.readUInt16BE(at)) {
        case SETTINGS_MAX_CONCURRENT_STREAMS:
          this.#maxStreams = value;
          break;
        case SETTINGS_INITIAL_WINDOW_SIZE:
          for (const stream of this.#streams.values()) stream.window += value - this.#streamWindow;
          this.#streamWindow = value;
          break;
        case SETTINGS_MAX_FRAME_SIZE:
          this.#maxFrame = value;
          break;
      }
    }
    this.#writeFrame(SETTINGS, ACK, 0, Buffer.alloc(0));
    for (const [id, stream] of this.#streams) this.#send(id, stream);
    this.#startNext();
  }

  #giveBack(id: number, stream: Stream | undefined, size: number): void {
    this.#received += size;
    if (this.#received > OUR_WINDOW / 2) {
      this.#writeFrame(WINDOW_UPDATE, 0, 0, uint32(this.#received));
      this.#received = 0;
    }
    if (stream === undefined) return;
    stream.received += size;
    if (stream.received > OUR_WINDOW / 2) {
      this.#writeFrame(WINDOW_UPDATE, 0, id, uint32(stream.received));
      stream.received = 0;
    }
  }

  #end(id: number, stream: Stream | undefined, error?: Error): void {
    this.#streams.delete(id);
    this.#startNext();
    stream?.handler.onEnd(error);
  }

  #failAll(error: Error): void {
    this.#closed ??= error;
    const waiting = [...this.#streams.values(), ...this.#pending.splice(0)];
    this.#streams.clear();
    for (const { handler } of waiting) handler.onEnd(error);
  }

  #writeFrame(type: number, flags: number, id: number, payload: Buffer): void {
    const frame = Buffer.allocUnsafe(9 + payload.length);
    frame.writeUIntBE(payload.length, 0, 3);
    frame[3] = type;
    frame[4] = flags;
    frame.writeUInt32BE(id, 5);
    payload.copy(frame, 9);
    this.#write(frame);
  }

  /** Gathers what is written in one turn of the event loop. */
  #write(bytes: Buffer): void {
    if (this.#unwritten.length === 0) {
      setImmediate(() => {
        const all = this.#unwritten;
        this.#unwritten = [];
        if (!this.#socket.destroyed) this.#socket.write(all.length === 1 ? (all[0] as Buffer) : Buffer.concat(all));
      });
    }
    this.#unwritten.push(bytes);
  }
}

/** The header block (RFC 7541) of `POST path` with `headers`: literals without indexing, so that it never changes. */
export function encodeHead(path: string, headers: Readonly<Record<string, string>>): Buffer {
  const METHOD_POST = 0x83;
  const SCHEME_HTTP = 0x86;
  return Buffer.concat([
    Buffer.of(METHOD_POST, SCHEME_HTTP),
    literal(":path", path),
    literal(":authority", "127.0.0.1"),
    ...Object.entries(headers).map(([name, value]) => literal(name, value)),
  ]);
}

function literal(name: string, value: string): Buffer {
  return Buffer.concat([Buffer.of(0), text(name), text(value)]);
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  if (bytes.length > 126) throw new Error(`too long for a header of the benchmark: ${value}`);
  return Buffer.concat([Buffer.of(bytes.length), bytes]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
