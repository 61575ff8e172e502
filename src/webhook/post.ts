import type { IncomingHttpHeaders } from "node:http";
import { Refusal } from "../errors.ts";
import { type Connect, createConnector } from "./connect.ts";
import { type Answer, exchange } from "./exchange.ts";
import { type AttemptError, AttemptFailure } from "./failure.ts";
import { checkHeaders, isHeaderValue } from "./headers.ts";
import { ConnectionPools } from "./pool.ts";
import { createLookup, type Lookup, resolveTarget } from "./resolve.ts";
import { retryAfterMs } from "./retry-after.ts";
import { sign } from "./sign.ts";
import { parseTarget, type Target, type TargetPolicy } from "./target.ts";

/** How many addresses of a name are tried when connections are refused; all within the one deadline. */
const MAX_ADDRESSES_TRIED = 4;

/** One request to send. */
export interface OutboundPost {
  /** Checked again before every attempt, since the policy may have changed since it was stored. */
  readonly url: string;
  /** Sent and signed byte for byte. */
  readonly body: Uint8Array;
  /** The value of content-type, unless `headers` carry one. */
  readonly contentType: string;
  /** What the user wants sent along; the rules are those of `checkHeaders`. */
  readonly headers: Readonly<Record<string, string>>;
  /** What we say about the delivery: `run-id` is sent as the header carillon-run-id. Users cannot set such headers. */
  readonly about: Readonly<Record<string, string>>;
  /** `webhook-id`: the same for every attempt of one delivery. Printable ASCII without dots. */
  readonly id: string;
  /** At least one; several while a secret is being rotated. */
  readonly secrets: readonly string[];
  /** From the name's lookup to the last byte of the answer, in milliseconds. */
  readonly timeoutMs: number;
  /** Gives the attempt up; the outcome is `cancelled` then. */
  readonly signal: AbortSignal;
}

interface Answered {
  readonly status: number;
  /** From the call of `post`, in whole milliseconds. */
  readonly durationMs: number;
  /** At most the first 16 KiB. */
  readonly responseBody: Uint8Array;
  /** Whether `responseBody` is all of it. */
  readonly responseComplete: boolean;
}

/** What became of one attempt. Only a 2xx is `delivered`; every other answer is `rejected`; no answer is `failed`. */
export type AttemptOutcome =
  | (Answered & { readonly kind: "delivered" })
  | (Answered & {
      readonly kind: "rejected";
      /** What the receiver asked for in Retry-After: 0 to a day. */
      readonly retryAfterMs?: number;
      /** The receiver wants no more of these: 410. */
      readonly permanent: boolean;
      /** Of a 3xx, which is not followed: where it points, without credentials, query and fragment. */
      readonly location?: string;
    })
  | {
      readonly kind: "failed";
      readonly error: AttemptError;
      /** For the tenant; tells nothing about the network that this server stands in. */
      readonly detail: string;
      readonly durationMs: number;
    };

/** The one way out of this server. */
export interface Egress extends AsyncDisposable {
  /**
   * Makes one attempt. Never throws for anything that the network or the receiver does.
   * Throws for faults of the caller: Refusal when `headers` break `checkHeaders`, RangeError when `sign` refuses the id
   * or a secret, when `contentType` cannot be a header, or when `timeoutMs` is not in 1 to 2^31 - 1.
   */
  post(request: OutboundPost): Promise<AttemptOutcome>;
}

/** What an egress works with. `lookup` and `connect` are DNS and TCP, replaced where a test must not reach either. */
export interface EgressOptions {
  readonly policy: TargetPolicy;
  readonly lookup?: Lookup;
  readonly connect?: Connect;
  /** Unix time in milliseconds, for the signature and for Retry-After dates. */
  readonly now?: () => number;
  /** The value of user-agent, unless a request's headers carry one. */
  readonly userAgent?: string;
}

/** Opens the way out. Disposing of it cancels what is in flight and closes every connection. */
export function createEgress({
  policy,
  lookup = createLookup(),
  connect = createConnector({ ownPorts: wildcardPorts(policy) }),
  now = Date.now,
  userAgent = "Carillon",
}: EgressOptions): Egress {
  const pools = new ConnectionPools(connect);
  const closing = new AbortController();

  async function post(request: OutboundPost): Promise<AttemptOutcome> {
    const started = performance.now();
    const durationMs = (): number => Math.round(performance.now() - started);
    const headers = requestHeaders(request, now(), userAgent);
    if (!(request.timeoutMs >= 1 && request.timeoutMs < 2 ** 31)) throw new RangeError("timeoutMs");

    // A timer of our own rather than AbortSignal.timeout, whose timer would stay behind for up to a quarter of an hour.
    const deadline = new AbortController();
    const timer = setTimeout(
      () => deadline.abort(new AttemptFailure("timeout", "no answer in time")),
      request.timeoutMs,
    );
    const signal = AbortSignal.any([deadline.signal, request.signal, closing.signal]);
    try {
      signal.throwIfAborted();
      const target = parseTarget("url", request.url, policy);
      const answer = await send(target, headers, request.body, signal);
      return outcomeOf(answer, target, now(), durationMs());
    } catch (error) {
      const failure = failureOf(error, signal);
      return { kind: "failed", error: failure.error, detail: failure.detail, durationMs: durationMs() };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Tries the addresses of the target in turn until one takes the connection. */
  async function send(
    target: Target,
    headers: Record<string, string>,
    body: Uint8Array,
    signal: AbortSignal,
  ): Promise<Answer> {
    const addresses = (await resolveTarget(target, policy, lookup, signal)).slice(0, MAX_ADDRESSES_TRIED);
    for (const [index, address] of addresses.entries()) {
      using lease = pools.borrow(target, address);
      try {
        return await exchange(lease.pool, { path: target.path, headers, body }, signal);
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
      await pools[Symbol.asyncDispose]();
    },
  };
}

function requestHeaders(request: OutboundPost, nowMs: number, userAgent: string): Record<string, string> {
  if (!isHeaderValue(request.contentType)) throw new RangeError("contentType cannot be a header");
  const { id, body, secrets } = request;
  return {
    "content-type": request.contentType,
    "user-agent": userAgent,
    ...checkHeaders("headers", request.headers),
    ...Object.fromEntries(Object.entries(request.about).map(([name, value]) => [`carillon-${name}`, value])),
    // Nothing is decompressed here, so nothing is asked for that would have to be.
    "accept-encoding": "identity",
    ...sign({ id, timestampSeconds: Math.floor(nowMs / 1_000), body, secrets }),
  };
}

function outcomeOf(answer: Answer, target: Target, nowMs: number, durationMs: number): AttemptOutcome {
  const { status, body: responseBody, bodyComplete: responseComplete } = answer;
  const answered: Answered = { status, durationMs, responseBody, responseComplete };
  if (status >= 200 && status < 300) return { kind: "delivered", ...answered };

  const wait = firstOf(answer.headers, "retry-after");
  const waitMs = wait === undefined ? undefined : retryAfterMs(wait, nowMs);
  const location = status >= 300 && status < 400 ? redacted(firstOf(answer.headers, "location"), target) : undefined;
  return {
    kind: "rejected",
    ...answered,
    permanent: status === 410,
    ...(waitMs === undefined ? {} : { retryAfterMs: waitMs }),
    ...(location === undefined ? {} : { location }),
  };
}

function firstOf(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function redacted(location: string | undefined, target: Target): string | undefined {
  const url = location === undefined ? null : URL.parse(location, target.href);
  if (url === null || !/^https?:$/.test(url.protocol)) return undefined;
  return (url.origin + url.pathname).slice(0, 512);
}

function failureOf(error: unknown, signal: AbortSignal): AttemptFailure {
  if (error instanceof AttemptFailure) return error;
  if (signal.aborted) return new AttemptFailure("cancelled", "the attempt was given up", { cause: error });
  if (error instanceof Refusal)
    return new AttemptFailure("blocked_address", "the target is not allowed", { cause: error });
  throw error;
}

function wildcardPorts(policy: TargetPolicy): number[] {
  const own = policy.ownAddresses ?? [];
  return own.filter(({ host }) => host === "0.0.0.0" || host === "::").map(({ port }) => port);
}
