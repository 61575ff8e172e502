import { Client } from "undici";
import { type Address, formatAddress } from "./address.ts";
import type { Connect } from "./connect.ts";
import type { Deadline } from "./deadline.ts";
import type { Target } from "./target.ts";
import type { Timings } from "./timings.ts";

/** How long a connection may stay open without a request, so that a change of DNS or policy soon takes effect. */
const IDLE_MS = 10_000;
/** How long when the receiver does not say; most servers close after five seconds and do not tell. */
const DEFAULT_IDLE_MS = 4_000;
/** The most response header bytes; 16 KiB is the default of Node's own parser. */
const MAX_HEADER_BYTES = 16_384;
/** How many connections may wait for their next request. */
const MAX_IDLE = 1_000;

/** What a connection is wanted for: one request. */
export interface Wanted {
  readonly projectId: string;
  readonly target: Target;
  readonly address: Address;
  /** Whether one will do that was opened for an earlier request. */
  readonly reuse: boolean;
  /** Until when one is opened. */
  readonly deadline: Deadline;
  /** Where to note how long it took to open, if one is opened. */
  readonly timings: Timings;
}

/** A connection on loan for one request; `using` gives it back. */
export interface Connection extends Disposable {
  readonly client: Client;
  /** Whether it was opened for this request. */
  readonly fresh: boolean;
}

/** One connection and its reconnects, each for whoever wants it at the time. */
interface Line {
  readonly key: string;
  readonly client: Client;
  wanted: Wanted;
  fresh: boolean;
}

/**
 * Connections to receivers, kept for a while by project, origin and address. No project can tell by a connection that is open
 * already that another one sends to the same place. Requests to a name that has moved find no connection
 * to the old address. How many are on loan is bounded by how many requests the callers have in flight.
 */
export class ConnectionPool implements AsyncDisposable {
  /** Those that wait, by key; the key that was used last is the last one. */
  readonly #idle = new Map<string, Line[]>();
  readonly #connect: Connect;
  #idleCount = 0;
  #closed = false;

  constructor(connect: Connect) {
    this.#connect = connect;
  }

  /** Lends a connection; it is opened when a request is dispatched to it, unless it is open already. */
  borrow(wanted: Wanted): Connection {
    const key = `${wanted.projectId} ${wanted.target.origin} ${formatAddress(wanted.address)}`;
    const kept = wanted.reuse ? this.#idle.get(key)?.at(-1) : undefined;
    if (kept !== undefined) this.#forget(kept);
    const line = kept ?? this.#open(key, wanted);
    line.wanted = wanted;
    line.fresh = kept === undefined;
    return {
      client: line.client,
      get fresh() {
        return line.fresh;
      },
      [Symbol.dispose]: () => this.#giveBack(line),
    };
  }

  /** Closes those that wait; one on loan is closed when it is given back. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    const lines = [...this.#idle.values()].flat();
    this.#idle.clear();
    await Promise.all(lines.map((line) => line.client.destroy()));
  }

  #open(key: string, wanted: Wanted): Line {
    const client = new Client(wanted.target.origin, {
      // The origin's name goes into the Host header; what is dialled is the address.
      connect: (_options, callback) => {
        const { address, target, deadline, timings } = line.wanted;
        line.fresh = true;
        const servername = target.address === undefined ? target.host : undefined;
        this.#connect({ address, port: target.port, tls: target.tls, servername }, deadline.signal, timings).then(
          (socket) => callback(null, socket),
          (error: unknown) => callback(error instanceof Error ? error : new Error("connect failed"), null),
        );
      },
      allowH2: false,
      pipelining: 1,
      keepAliveTimeout: DEFAULT_IDLE_MS,
      keepAliveMaxTimeout: IDLE_MS,
      maxHeaderSize: MAX_HEADER_BYTES,
      // The caller's deadline bounds the whole exchange. These two watch single gaps, and one of them never fires
      // while a reader holds back.
      headersTimeout: 0,
      bodyTimeout: 0,
    });
    const line: Line = { key, client, wanted, fresh: false };
    client.on("disconnect", () => this.#forget(line));
    return line;
  }

  #giveBack(line: Line): void {
    const { connected, size } = line.client.stats;
    if (this.#closed || !connected || size > 0) {
      void line.client.destroy();
      return;
    }
    const waiting = this.#idle.get(line.key) ?? [];
    waiting.push(line);
    this.#idle.delete(line.key);
    this.#idle.set(line.key, waiting);
    if (++this.#idleCount <= MAX_IDLE) return;
    const surplus = this.#idle.values().next().value?.[0];
    if (surplus === undefined) return;
    this.#forget(surplus);
    void surplus.client.destroy();
  }

  /** Takes the line out of those that wait, if it is one of them. */
  #forget(line: Line): void {
    const waiting = this.#idle.get(line.key);
    const index = waiting?.lastIndexOf(line) ?? -1;
    if (waiting === undefined || index < 0) return;
    waiting.splice(index, 1);
    if (waiting.length === 0) this.#idle.delete(line.key);
    this.#idleCount -= 1;
  }
}
