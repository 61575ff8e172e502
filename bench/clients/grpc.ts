import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { encodeHead, Http2Client } from "./http2.ts";

/** A gRPC client for load: unary calls and server streams on connections of its own. */
export class GrpcClient implements Disposable {
  readonly #connections: readonly Http2Client[];
  readonly #headers: Readonly<Record<string, string>>;
  readonly #heads = new Map<DescMethod, Buffer>();
  #turn = 0;

  /** Opens `connections` connections to the port; calls take them in turn. */
  constructor(port: number, key: string, connections = 1) {
    this.#connections = Array.from({ length: connections }, () => new Http2Client(port));
    this.#headers = { "content-type": "application/grpc", te: "trailers", authorization: `Bearer ${key}` };
  }

  /** One call. Rejects with the method's name where there is no answer; the refusal itself is not read. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    return fromBinary(method.output, await this.call(method, toBinary(method.input, create(method.input, request))));
  }

  /** As `unary`, with messages in their binary form. */
  call(method: DescMethodUnary, request: Uint8Array): Promise<Buffer> {
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
    let answer: Buffer | undefined;
    const reader = new MessageReader((bytes) => {
      answer = bytes;
    });
    this.#connection().request(this.#head(method), frame(request), {
      onData: (chunk) => reader.read(chunk),
      onEnd: (error) => {
        // A call that was refused answers with trailers only.
        if (answer !== undefined) resolve(answer);
        else reject(error ?? new Error(`${method.name} was refused`));
      },
    });
    return promise;
  }

  /** A server stream. Calls `onMessage` with the binary form of each message; disposing it cancels the call. */
  stream<I extends DescMessage>(
    method: DescMethodServerStreaming<I>,
    request: MessageInitShape<I>,
    onMessage: (message: Buffer) => void,
    onEnd: (error: Error) => void,
  ): Disposable {
    const reader = new MessageReader(onMessage);
    const call = this.#connection().request(
      this.#head(method),
      frame(toBinary(method.input, create(method.input, request))),
      {
        onData: (chunk) => reader.read(chunk),
        onEnd: (error) => onEnd(error ?? new Error(`${method.name} ended`)),
      },
    );
    return { [Symbol.dispose]: () => call.cancel() };
  }

  [Symbol.dispose](): void {
    for (const connection of this.#connections) connection[Symbol.dispose]();
  }

  #connection(): Http2Client {
    this.#turn = (this.#turn + 1) % this.#connections.length;
    return this.#connections[this.#turn] as Http2Client;
  }

  #head(method: DescMethod): Buffer {
    const known = this.#heads.get(method);
    if (known !== undefined) return known;
    const head = encodeHead(`/${method.parent.typeName}/${method.name}`, this.#headers);
    this.#heads.set(method, head);
    return head;
  }
}

/** Puts a gRPC stream's messages together. */
class MessageReader {
  readonly #onMessage: (bytes: Buffer) => void;
  #unread: Buffer = Buffer.alloc(0);

  constructor(onMessage: (bytes: Buffer) => void) {
    this.#onMessage = onMessage;
  }

  read(chunk: Buffer): void {
    const all = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    let at = 0;
    while (all.length - at >= 5) {
      const end = at + 5 + all.readUInt32BE(at + 1);
      if (all.length < end) break;
      this.#onMessage(all.subarray(at + 5, end));
      at = end;
    }
    this.#unread = all.subarray(at);
  }
}

function frame(message: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(5 + message.length);
  bytes[0] = 0;
  bytes.writeUInt32BE(message.length, 1);
  bytes.set(message, 5);
  return bytes;
}
