import { setTimeout as delay } from "node:timers/promises";
import { LruCache } from "../domain/lru-cache.ts";
import type { Place } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import type { Address } from "./address.ts";
import { type Connect, createConnector } from "./connect.ts";
import { Deadline } from "./deadline.ts";
import { type Answer, exchange, Unanswered } from "./exchange.ts";
import { type AttemptError, AttemptFailure } from "./failure.ts";
import type { OutboundPost } from "./outbound-post.ts";
import { ConnectionPool } from "./pool.ts";
import { firstValue, receiverControl } from "./receiver-control.ts";
import { createHeaderWriter } from "./request-headers.ts";
import { createLookup, type Lookup, resolveTarget } from "./resolve.ts";
import { MAX_VALUE, shownRequestHeaders, shownResponseHeaders } from "./shown-headers.ts";
import { parseTarget, type Target, type TargetPolicy } from "./target.ts";
import { msSince, type Timings } from "./timings.ts";

/** How many addresses of a name are tried when connections are refused; all within the one deadline. */
const MAX_ADDRESSES_TRIED = 4;
/** What it is told in that a name led nowhere, so that the time tells nothing of the networks in which it was looked up. */
const NOWHERE_STEP_MS = 500;
const NOWHERE = "the host name leads to no address that requests may go to";
/** How many targets are remembered as parsed. */
const MAX_TARGETS = 1_000;

/** What is known of every attempt. */
interface Attempted {
  /** From the call of `post`, in whole milliseconds. */
  readonly durationMs: number;
  readonly timings: Timings;
  /** As they were to be sent; credentials and the signature hidden. */
  readonly requestHeaders: Readonly<Record<string, string>>;
}

interface Answered extends Attempted {
  readonly status: number;
  /** Those that may be recorded; of a 3xx, which is not followed, `location` too, without credentials, query and fragment. */
  readonly responseHeaders: Readonly<Record<string, string>>;
  /** At most the first 16 KiB. */
  readonly responseBody: Uint8Array;
  /** Whether `responseBody` is all of it. */
  readonly responseComplete: boolean;
  /** The receiver wants no more requests at all: 410, or it said so in a header. */
  readonly disable: boolean;
}

/** What became of one attempt. Only a 2xx is `delivered`; every other answer is `rejected`; no answer is `failed`. */
export type AttemptOutcome =
  | (Answered & { readonly kind: "delivered" })
  | (Answered & {
      readonly kind: "rejected";
      /** 429 or 503: the receiver cannot keep up, so others that are for it should wait too. */
      readonly throttled: boolean;
      /** The least wait that the receiver asked for, in Retry-After or, throttled, in RateLimit-Reset: 0 to a day. */
      readonly retryAfterMs?: number;
      /** The exact wait that the receiver asked for, by carillon-control: 0 to a day. */
      readonly retryInMs?: number;
      /** No further attempt of this one: 410, or the receiver said so in a header. */
      readonly permanent: boolean;
    })
  | (Attempted & {
      readonly kind: "failed";
      readonly error: AttemptError;
      /** For the tenant; tells nothing about the network that this server stands in. */
      readonly detail: string;
    });

/** The one way out of this server. */
export interface Egress extends AsyncDisposable {
  /**
   * Makes one attempt. A request that ends on a kept connection before the first byte of an answer is sent once more, on a
   * new connection to the same address, within the same deadline. Never throws for anything that the network or the
   * receiver does.
   * Throws for faults of the caller: Refusal when `headers` break `checkHeaders`, whatever
   * `open` throws, RangeError when `sign` refuses the id or `parseSigningKey` a key, when `contentType` cannot be a header, or when `timeoutMs` is not in 1 to 2^31 - 1.
   */
  post(request: OutboundPost): Promise<AttemptOutcome>;
}

/** What an egress works with. `lookup` and `connect` are DNS and TCP, replaced where a test must not reach either. */
export interface EgressOptions {
  readonly policy: TargetPolicy;
  /**
   * Opens what is sealed for that place. What signs is kept, as a key that shows nothing of itself, while it is among those used
   * most recently; of anything else nothing is kept.
   */
  readonly open: (sealed: string, place: Place) => string;
  readonly lookup?: Lookup;
  readonly connect?: Connect;
  /** Unix time in milliseconds, for requests that do not say what time it is. */
  readonly now?: () => number;
  /**
   * Told why a request was not sent, for the operator: what the guard refused, and names that could not be resolved. The
   * tenant is told less.
   */
  readonly onRefused?: (request: OutboundPost, cause: AttemptFailure) => void;
  /** Whether that is the time for all requests, whatever they say: where theirs is virtual, as receivers live in this one. */
  readonly ownTime?: boolean;
  /** The value of user-agent, unless a request's headers carry one. */
  readonly userAgent?: string;
}

/** Opens the way out. Disposing of it cancels what is in flight and closes every connection. */
export function createEgress({
  policy,
  open,
  lookup = createLookup(),
  connect = createConnector({ ownPorts: wildcardPorts(policy) }),
  now = Date.now,
  onRefused = () => {},
  ownTime = false,
  userAgent = "Carillon",
}: EgressOptions): Egress {
  const pool = new ConnectionPool(connect);
  const headersOf = createHeaderWriter(open, userAgent);
  const targets = new LruCache<Target>(MAX_TARGETS);
  const closing = new AbortController();

  async function post(request: OutboundPost): Promise<AttemptOutcome> {
    const started = performance.now();
    const timings: Timings = {};
    const atMs = ownTime ? undefined : request.at?.getTime();
    const nowMs = atMs === undefined ? now : () => Math.round(atMs + performance.now() - started);
    const headers = headersOf(request, nowMs());
    const attempted = (): Attempted => ({
      durationMs: Math.round(performance.now() - started),
      timings,
      requestHeaders: shownRequestHeaders(headers),
    });
    if (!(request.timeoutMs >= 1 && request.timeoutMs < 2 ** 31)) throw new RangeError("timeoutMs");

    using deadline = new Deadline(request.timeoutMs, [request.signal, closing.signal]);
    let target: Target | undefined;
    try {
      deadline.throwIfOver();
      target = targets.getOrBuild(request.url, () => parseTarget("url", request.url, policy));
      const answer = await send(request, target, headers, deadline, timings);
      return outcomeOf(answer, target, nowMs(), attempted());
    } catch (error) {
      const failure = failureOf(error, deadline);
      if (failure.error === "blocked_address" || failure.error === "dns_failed") {
        onRefused(request, failure);
        if (target !== undefined && target.address === undefined) {
          const elapsedMs = performance.now() - started;
          const waitMs = NOWHERE_STEP_MS - (elapsedMs % NOWHERE_STEP_MS);
          await delay(waitMs, undefined, { signal: deadline.signal }).catch(() => {});
          return { kind: "failed", error: "dns_failed", detail: NOWHERE, ...attempted(), timings: {} };
        }
      }
      return { kind: "failed", error: failure.error, detail: failure.detail, ...attempted() };
    }
  }

  /** Tries the addresses of the target in turn until one takes the connection. */
  async function send(
    { body, owner: { projectId } }: OutboundPost,
    target: Target,
    headers: Record<string, string>,
    deadline: Deadline,
    timings: Timings,
  ): Promise<Answer> {
    const resolvingMs = performance.now();
    const addresses = (await resolveTarget(target, policy, lookup, deadline)).slice(0, MAX_ADDRESSES_TRIED);
    if (target.address === undefined) timings.dnsMs = msSince(resolvingMs);
    const request = { path: target.path, headers, body };
    let reuse = true;

    async function sendTo(address: Address): Promise<Answer> {
      using connection = pool.borrow({ projectId, target, address, reuse, deadline, timings });
      try {
        return await exchange(connection.client, request, deadline, timings);
      } catch (error) {
        if (!(error instanceof Unanswered) || connection.fresh) throw error;
      }
      // Most likely the receiver was closing the kept connection just then, and never saw the request.
      reuse = false;
      return sendTo(address);
    }

    for (const [index, address] of addresses.entries()) {
      try {
        return await sendTo(address);
      } catch (error) {
        const refused = error instanceof AttemptFailure && error.error === "connect_failed";
        if (!refused || index === addresses.length - 1) throw error;
      }
    }
    throw new AttemptFailure("dns_failed", "the host name has no address");
  }

  return {
    post,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await pool[Symbol.asyncDispose]();
    },
  };
}

function outcomeOf(answer: Answer, target: Target, nowMs: number, attempted: Attempted): AttemptOutcome {
  const { status, headers, body: responseBody, bodyComplete: responseComplete } = answer;
  const { abort, disable, retryInMs, retryAfterMs } = receiverControl(status, headers, nowMs);
  const location = status >= 300 && status < 400 ? redacted(firstValue(headers, "location"), target) : undefined;
  const answered: Answered = {
    ...attempted,
    status,
    responseHeaders: { ...shownResponseHeaders(headers), ...(location !== undefined && { location }) },
    responseBody,
    responseComplete,
    disable,
  };
  if (status >= 200 && status < 300) return { kind: "delivered", ...answered };

  return {
    kind: "rejected",
    ...answered,
    throttled: status === 429 || status === 503,
    permanent: abort || disable,
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
    ...(retryInMs === undefined ? {} : { retryInMs }),
  };
}

/** Where a redirect points, as it is recorded. */
function redacted(location: string | undefined, target: Target): string | undefined {
  const url = location === undefined ? null : URL.parse(location, target.href);
  if (url === null || !/^https?:$/.test(url.protocol)) return undefined;
  return (url.origin + url.pathname).slice(0, MAX_VALUE);
}

function failureOf(error: unknown, deadline: Deadline): AttemptFailure {
  if (error instanceof AttemptFailure) return error;
  if (deadline.isOver) return new AttemptFailure("cancelled", "the attempt was given up", { cause: error });
  if (error instanceof Refusal)
    return new AttemptFailure("blocked_address", "the target's address is not allowed", { cause: error });
  throw error;
}

function wildcardPorts(policy: TargetPolicy): number[] {
  const own = policy.ownAddresses ?? [];
  return own.filter(({ host }) => host === "0.0.0.0" || host === "::").map(({ port }) => port);
}
