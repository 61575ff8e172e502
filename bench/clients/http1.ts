import { connect, type Socket } from "node:net";

/** An answer's status and body. */
export interface Http1Answer {
  readonly status: number;
  readonly body: Buffer;
}

interface Waiting {
  resolve(answer: Http1Answer): void;
  reject(error: Error): void;
}

const HEAD_END = Buffer.from("\r\n\r\n");

/**
 * An HTTP/1.1 client for load: keep-alive connections with one request each, no allocation of headers, no pool logic.
 * It knows what Carillon answers (a Content-Length or chunks) and nothing else of the protocol.
 */
export class Http1Client implements Disposable {
  readonly #port: number;
  readonly #idle: Connection[] = [];
  readonly #all: Connection[] = [];

  constructor(port: number) {
    this.#port = port;
  }

  /** Sends `POST path`. `head` is what `requestHead` made of the path. Opens a connection where none is idle. */
  async post(head: string, body: string | Uint8Array): Promise<Http1Answer> {
    const connection = this.#idle.pop() ?? this.#open();
    const answer = await connection.send(head, body);
    this.#idle.push(connection);
    return answer;
  }

  [Symbol.dispose](): void {
    for (const connection of this.#all) connection.close();
  }

  #open(): Connection {
    const connection = new Connection(this.#port);
    this.#all.push(connection);
    return connection;
  }
}

/** The head of every POST to `path`, but for its Content-Length. */
export function requestHead(path: string, headers: Readonly<Record<string, string>>): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `POST ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\n${lines.join("")}content-length: `;
}

class Connection {
  readonly #socket: Socket;
  #waiting: Waiting | undefined;
  #received: Buffer = Buffer.alloc(0);

  constructor(port: number) {
    this.#socket = connect({ port, host: "127.0.0.1", noDelay: true });
    this.#socket.on("data", (chunk) => this.#onData(chunk));
    this.#socket.on("error", (error) => this.#fail(error));
    this.#socket.on("close", () => this.#fail(new Error("the connection was closed")));
  }

  send(head: string, body: string | Uint8Array): Promise<Http1Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Http1Answer>();
    this.#waiting = { resolve, reject };
    if (typeof body === "string") {
      this.#socket.write(`${head}${Buffer.byteLength(body)}\r\n\r\n${body}`);
    } else {
      this.#socket.cork();
      this.#socket.write(`${head}${body.byteLength}\r\n\r\n`);
      this.#socket.write(body);
      this.#socket.uncork();
    }
    return promise;
  }

  close(): void {
    this.#socket.destroy();
  }

  #onData(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
    const answer = readAnswer(this.#received);
    if (answer === undefined) return;
    this.#received = Buffer.alloc(0);
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.resolve(answer);
  }

  #fail(error: Error): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.reject(error);
  }
}

/** The answer that `received` holds, or undefined while it is not whole. */
function readAnswer(received: Buffer): Http1Answer | undefined {
  const headEnd = received.indexOf(HEAD_END);
  if (headEnd < 0) return undefined;
  const head = received.toString("latin1", 0, headEnd);
  const status = Number(head.slice(9, 12));
  const bodyStart = headEnd + HEAD_END.length;
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1];
  if (length === undefined) return readChunks(received, bodyStart, status);
  const bodyEnd = bodyStart + Number(length);
  return received.length < bodyEnd ? undefined : { status, body: received.subarray(bodyStart, bodyEnd) };
}

function readChunks(received: Buffer, from: number, status: number): Http1Answer | undefined {
  const chunks: Buffer[] = [];
  for (let at = from; ; ) {
    const lineEnd = received.indexOf("\r\n", at);
    if (lineEnd < 0) return undefined;
    const size = Number.parseInt(received.toString("latin1", at, lineEnd), 16);
    const end = lineEnd + 2 + size + 2;
    if (received.length < end) return undefined;
    if (size === 0) return { status, body: Buffer.concat(chunks) };
    chunks.push(received.subarray(lineEnd + 2, end - 2));
    at = end;
  }
}
