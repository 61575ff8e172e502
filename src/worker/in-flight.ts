import type { Load, Room, Standing } from "../domain/fair-share.ts";

/** How an attempt ended, as far as the endpoint's share is concerned: `neither` says nothing about the endpoint. */
export type FlightEnd = "succeeded" | "failed" | "neither";

/** An attempt under way. */
export interface Flight {
  /**
   * Counts it no more. Says whether its endpoint had as much under way as it may, so that something may wait for this.
   *
   * @param tookMs how long the request took, in milliseconds.
   */
  readonly end: (how: FlightEnd, tookMs: number) => boolean;
}

/** An endpoint that has as much under way as it may. */
export interface FullEndpoint {
  readonly projectId: string;
  readonly endpointId: string;
}

interface Endpoint {
  readonly projectId: string;
  readonly address: string;
  readonly flights: Set<object>;
  window: number;
  standing: Standing;
  /** How many of its flights count as slow. */
  slow: number;
}

interface QuickFlight {
  readonly endpoint: Endpoint;
  readonly startedAt: number;
  /** It went out on the part of the room that new endpoints have. */
  readonly unproven: boolean;
}

/** An attempt that takes longer counts as slow from then on, in milliseconds. */
const SLOW_AFTER_MS = 500;
/** Attempts at a time to an endpoint that nothing is known of. */
const FIRST_WINDOW = 2;
/** Slow attempts at a time, in multiples of the quick ones. They cost a socket each and hardly anything else. */
const SLOW_SHARE = 8;
/** Slow attempts at a time beyond which quick ones keep their place however long they take, in the same multiples. */
const MOST_SLOW_SHARE = 16;
/** Most endpoints that are remembered, beside those that something is under way to. */
const MAX_REMEMBERED = 10_000;

/**
 * What a node has under way, and how much more it may start. Attempts count as quick until they take long; then they give
 * their place to others and count as slow. An endpoint may have more at a time with each success and half as many after
 * a failure. So an endpoint that hangs holds a few slow places and nothing else.
 */
export class InFlight {
  readonly #concurrency: number;
  /** In the order of the newest start of each. */
  readonly #endpoints = new Map<string, Endpoint>();
  readonly #full = new Map<string, FullEndpoint>();
  readonly #busy = new Map<string, number>();
  /** In the order of their start. */
  readonly #quick = new Set<QuickFlight>();
  #quickNew = 0;
  /** Endpoints whose newest answer was a success and came soon. */
  #proven = 0;
  #slow = 0;
  #flights = 0;
  #changed = Promise.withResolvers<void>();

  /** @param concurrency most quick attempts at a time. */
  constructor(concurrency: number) {
    this.#concurrency = concurrency;
  }

  /** Attempts under way. */
  get size(): number {
    return this.#flights;
  }

  /** Resolves when the next attempt has ended. */
  get changed(): Promise<void> {
    return this.#changed.promise;
  }

  /** How many more attempts of each kind may start. */
  room(): Room {
    this.#moveSlow();
    const quick = Math.max(0, this.#concurrency - this.#quick.size);
    const half = this.#proven === 0 ? this.#concurrency : Math.max(1, Math.floor(this.#concurrency / 2));
    return {
      proven: quick,
      new: Math.min(quick, Math.max(0, half - this.#quickNew)),
      slow: Math.max(0, SLOW_SHARE * this.#concurrency - this.#slow),
    };
  }

  /** In how many milliseconds an attempt that is quick now will count as slow; undefined when none is under way. */
  msUntilSlow(): number | undefined {
    const [oldest] = this.#quick;
    return oldest && Math.max(1, Math.ceil(oldest.startedAt + SLOW_AFTER_MS - performance.now()));
  }

  loadOf({ projectId, endpointId }: { readonly projectId: string; readonly endpointId: string }): Load {
    const endpoint = this.#endpoints.get(keyOf(projectId, endpointId));
    if (endpoint === undefined) return { standing: "new", inFlight: 0, window: FIRST_WINDOW };
    return { standing: standingOf(endpoint), inFlight: endpoint.flights.size, window: endpoint.window };
  }

  /** Attempts under way of a project. */
  busyOf(projectId: string): number {
    return this.#busy.get(projectId) ?? 0;
  }

  /** The address of an endpoint that something is under way to. */
  addressOf(projectId: string, endpointId: string): string | undefined {
    return this.#endpoints.get(keyOf(projectId, endpointId))?.address;
  }

  /** Endpoints that have as much under way as they may. */
  full(): FullEndpoint[] {
    return [...this.#full.values()];
  }

  /** Counts an attempt. */
  start(projectId: string, endpointId: string, address: string): Flight {
    const key = keyOf(projectId, endpointId);
    const endpoint = this.#endpoints.get(key) ?? {
      projectId,
      address,
      flights: new Set(),
      window: FIRST_WINDOW,
      standing: "new" as const,
      slow: 0,
    };
    this.#endpoints.delete(key);
    this.#endpoints.set(key, endpoint);
    const standing = standingOf(endpoint);
    const flight: QuickFlight = { endpoint, startedAt: performance.now(), unproven: standing === "new" };
    endpoint.flights.add(flight);
    this.#flights += 1;
    this.#busy.set(projectId, this.busyOf(projectId) + 1);
    if (standing === "slow") this.#countSlow(endpoint);
    else {
      this.#quick.add(flight);
      if (flight.unproven) this.#quickNew += 1;
    }
    this.#noteFull(key, endpoint);
    let over = false;
    return {
      end: (how, tookMs) => {
        if (over) return false;
        over = true;
        const wasFull = this.#full.has(key);
        endpoint.flights.delete(flight);
        this.#flights -= 1;
        this.#leave(projectId);
        if (!this.#leaveQuick(flight)) {
          endpoint.slow -= 1;
          this.#slow -= 1;
        }
        this.#learn(endpoint, how, tookMs);
        this.#noteFull(key, endpoint);
        this.#forgetSurplus();
        this.#changed.resolve();
        this.#changed = Promise.withResolvers();
        return wasFull;
      },
    };
  }

  #learn(endpoint: Endpoint, how: FlightEnd, tookMs: number): void {
    if (how === "neither") return;
    const succeeded = how === "succeeded";
    endpoint.window = succeeded
      ? Math.min(endpoint.window + 1, this.#concurrency)
      : Math.max(1, Math.floor(endpoint.window / 2));
    this.#setStanding(endpoint, succeeded && tookMs < SLOW_AFTER_MS ? "proven" : "slow");
  }

  #setStanding(endpoint: Endpoint, standing: Standing): void {
    this.#proven += Number(standing === "proven") - Number(endpoint.standing === "proven");
    endpoint.standing = standing;
  }

  /** Attempts that have taken long give their place to others. */
  #moveSlow(): void {
    const before = performance.now() - SLOW_AFTER_MS;
    for (const flight of this.#quick) {
      if (flight.startedAt > before || this.#slow >= MOST_SLOW_SHARE * this.#concurrency) return;
      this.#leaveQuick(flight);
      this.#countSlow(flight.endpoint);
    }
  }

  /** False when the flight is slow already. */
  #leaveQuick(flight: QuickFlight): boolean {
    if (!this.#quick.delete(flight)) return false;
    if (flight.unproven) this.#quickNew -= 1;
    return true;
  }

  #noteFull(key: string, { projectId, flights, window }: Endpoint): void {
    if (flights.size >= window) this.#full.set(key, { projectId, endpointId: key.slice(projectId.length + 1) });
    else this.#full.delete(key);
  }

  #countSlow(endpoint: Endpoint): void {
    endpoint.slow += 1;
    this.#slow += 1;
  }

  #leave(projectId: string): void {
    const busy = this.busyOf(projectId) - 1;
    if (busy > 0) this.#busy.set(projectId, busy);
    else this.#busy.delete(projectId);
  }

  /** Forgets those that nothing was sent to for longest. */
  #forgetSurplus(): void {
    for (const [key, endpoint] of this.#endpoints) {
      if (this.#endpoints.size <= MAX_REMEMBERED) return;
      if (endpoint.flights.size > 0) continue;
      this.#setStanding(endpoint, "new");
      this.#endpoints.delete(key);
    }
  }
}

/** With something slow under way it is slow, whatever the newest answer was. */
function standingOf({ slow, standing }: Endpoint): Standing {
  return slow > 0 ? "slow" : standing;
}

function keyOf(projectId: string, endpointId: string): string {
  return `${projectId}/${endpointId}`;
}
