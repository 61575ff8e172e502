import { Resolver, lookup as systemLookup } from "node:dns/promises";
import { type Address, classify, formatAddress, isLoopback, parseAddress } from "./address.ts";
import type { Deadline } from "./deadline.ts";
import { AttemptFailure } from "./failure.ts";
import { isPublicName, isPublicPort } from "./host-rules.ts";
import { allowsAddress, allowsHost, isOwn, type Target, type TargetPolicy } from "./target.ts";

/** How long the addresses of a name may take to arrive. */
const LOOKUP_MS = 3_000;
/** How much of that DNS may use. */
const DNS_MS = 2_500;
/** A name with more addresses than this is refused: each one is judged before one is dialled. */
const MAX_ANSWERS = 16;

/**
 * Asks for every IPv4 and IPv6 address of a name. Rejects when the name is unknown or the signal aborts.
 * The answer is text from outside: whoever calls parses and judges it.
 */
export type Lookup = (host: string, signal: AbortSignal) => Promise<readonly string[]>;

/**
 * The addresses that a request to the target may be sent to, in the order to try them; at least one.
 * Asks once, and refuses the name when a single answer is denied: a name that mixes public and private addresses is
 * an attack or a mistake. Throws AttemptFailure `blocked_address` or `dns_failed`; throws the reason when
 * the attempt is given up.
 */
export async function resolveTarget(
  target: Target,
  policy: TargetPolicy,
  lookup: Lookup,
  deadline: Deadline,
): Promise<readonly Address[]> {
  const addresses = await addressesOf(target, policy, lookup, deadline);
  for (const address of addresses) {
    if (address !== undefined && mayDial(policy, target, address)) continue;
    const cause = new Error(address === undefined ? "an answer is no address" : formatAddress(address));
    throw new AttemptFailure("blocked_address", "the target's address is not allowed", { cause });
  }
  // IPv4 first: many self-hosted machines have no way out over IPv6.
  return addresses.filter((address) => address !== undefined).sort((a, b) => a.family - b.family);
}

async function addressesOf(
  target: Target,
  policy: TargetPolicy,
  lookup: Lookup,
  deadline: Deadline,
): Promise<readonly (Address | undefined)[]> {
  if (target.address !== undefined) return [target.address];
  if (target.host === "localhost") {
    // RFC 6761: the name is never asked for. Its address of the other family is dropped, not refused, when closed.
    const loopback = ["127.0.0.1", "::1"].map(parseAddress);
    const open = loopback.filter((address) => address !== undefined && mayDial(policy, target, address));
    return open.length > 0 ? open : loopback;
  }

  const limit = AbortSignal.any([deadline.signal, AbortSignal.timeout(LOOKUP_MS)]);
  let answers: readonly string[];
  try {
    answers = await abortable(lookup(target.host, limit), limit);
  } catch (cause) {
    deadline.throwIfOver();
    throw new AttemptFailure("dns_failed", "the host name could not be resolved", { cause });
  }
  if (answers.length === 0) throw new AttemptFailure("dns_failed", "the host name has no address");
  if (answers.length > MAX_ANSWERS) {
    throw new AttemptFailure("dns_failed", `the host name has more than ${MAX_ANSWERS} addresses`);
  }
  return answers.map(parseAddress);
}

/** Whether a request to the target may be sent to the address: the last judge, which sees the very one dialled. */
function mayDial(policy: TargetPolicy, target: Target, address: Address): boolean {
  const { host, port, tls } = target;
  const verdict = classify(address, policy.nat64);
  if (verdict.kind === "never" || isOwn(policy, address, port)) return false;
  if (allowsHost(policy, host, port) || allowsAddress(policy, address, port)) return true;
  if (policy.allowLoopback && isLoopback(address) && (host === "localhost" || target.address !== undefined)) {
    return true;
  }
  return (
    verdict.kind === "public" && (tls || policy.allowHttp) && isPublicName(host) && isPublicPort(port, policy.allowHttp)
  );
}

/**
 * Makes the lookup for real use: DNS, and for names that DNS does not know the operating system (its hosts file, its
 * search list). DNS goes first because the system's call blocks one of the few threads that files need too, and a
 * hostile name server decides for how long. `servers` (`address:port`) replaces the system's DNS servers.
 */
export function createLookup(servers?: readonly string[]): Lookup {
  return async function lookup(host, signal) {
    const resolver = new Resolver({ timeout: 1_000, tries: 2 });
    if (servers !== undefined) resolver.setServers(servers);
    const cancel = (): void => resolver.cancel();
    signal.addEventListener("abort", cancel, { once: true });
    // Early enough to go on with one family when the server is silent about the other, as some are about IPv6.
    const timer = setTimeout(cancel, DNS_MS);
    try {
      const answers = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
      const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
      if (addresses.length > 0) return addresses;
      for (const answer of answers) {
        if (answer.status === "rejected" && !UNKNOWN_NAME.has(answer.reason?.code)) throw answer.reason;
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", cancel);
    }
    signal.throwIfAborted();
    return (await systemLookup(host, { all: true })).map((answer) => answer.address);
  };
}

/** DNS said that there is no such name or no such record, or there is no DNS server to ask. */
const UNKNOWN_NAME = new Set(["ENOTFOUND", "ENODATA", "ECONNREFUSED"]);

/** The promise, or the signal's reason as soon as it aborts; for work that cannot be interrupted. */
function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
