import { AsyncLocalStorage } from "node:async_hooks";
import { Pool } from "undici";
import { type Address, formatAddress, parseAddress } from "./address.ts";
import type { Connect } from "./connect.ts";
import type { Target } from "./target.ts";
import type { Timings } from "./timings.ts";

/** How long a connection may stay open without a request, so that a change of DNS or policy soon takes effect. */
const IDLE_MS = 10_000;
/** How long when the receiver does not say; most servers close after five seconds and do not tell. */
const DEFAULT_IDLE_MS = 4_000;
/** The most response header bytes; 16 KiB is the default of Node's own parser. */
const MAX_HEADER_BYTES = 16_384;
/** How many idle pools may wait for their next request. */
const MAX_IDLE_POOLS = 1_000;

/** Of the attempt that is dispatching: undici opens a connection in the context of the request that needs it. */
const dispatching = new AsyncLocalStorage<Timings>();

/** Has whatever connection `dispatch` needs note in `timings` how long it took to open. */
export function timed(timings: Timings, dispatch: () => void): void {
  dispatching.run(timings, dispatch);
}

interface Slot {
  readonly pool: Pool;
  users: number;
  idle: NodeJS.Timeout | undefined;
}

/**
 * Open connections, one undici pool for each project, origin and address. No project can tell by a connection that is open
 * already that another one sends to the same place. Requests to a name that has moved find no connection
 * to the old address. How many connections a pool holds is bounded by how many requests its callers have in flight.
 */
export class ConnectionPools implements AsyncDisposable {
  readonly #slots = new Map<string, Slot>();
  readonly #closing = new AbortController();
  readonly #connect: Connect;

  constructor(connect: Connect) {
    this.#connect = connect;
  }

  /** Lends the pool that a project has for an address; `using` gives it back. */
  borrow(projectId: string, target: Target, address: Address): Disposable & { readonly pool: Pool } {
    const key = `${projectId} ${target.origin} ${formatAddress(address)}`;
    const slot = this.#slots.get(key) ?? { pool: this.#open(target, address), users: 0, idle: undefined };
    this.#slots.set(key, slot);
    clearTimeout(slot.idle);
    slot.idle = undefined;
    slot.users += 1;
    return {
      pool: slot.pool,
      [Symbol.dispose]: () => {
        slot.users -= 1;
        if (slot.users > 0 || this.#slots.get(key) !== slot) return;
        // To the end of the map, so that its order is how long pools have waited.
        this.#slots.delete(key);
        this.#slots.set(key, slot);
        slot.idle = setTimeout(() => this.#drop(key, slot), IDLE_MS).unref();
        this.#dropSurplus();
      },
    };
  }

  /** Ends every connection, those with a request on them too. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    const slots = [...this.#slots.values()];
    this.#slots.clear();
    for (const slot of slots) clearTimeout(slot.idle);
    await Promise.all(slots.map((slot) => slot.pool.destroy()));
  }

  #open(target: Target, address: Address): Pool {
    const endpoint = {
      address,
      port: target.port,
      tls: target.tls,
      servername: parseAddress(target.host) === undefined ? target.host : undefined,
    };
    return new Pool(target.origin, {
      // The origin's name goes into the Host header; what is dialled is the endpoint.
      connect: (_options, callback) => {
        this.#connect(endpoint, this.#closing.signal, dispatching.getStore() ?? {}).then(
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
  }

  #drop(key: string, slot: Slot): void {
    clearTimeout(slot.idle);
    if (this.#slots.get(key) === slot) this.#slots.delete(key);
    void slot.pool.destroy();
  }

  /** Closes the pools that have waited longest when too many wait. */
  #dropSurplus(): void {
    if (this.#slots.size <= MAX_IDLE_POOLS) return;
    for (const [key, slot] of this.#slots) {
      if (slot.users > 0) continue;
      this.#drop(key, slot);
      if (this.#slots.size <= MAX_IDLE_POOLS) return;
    }
  }
}
