import { Refusal } from "../errors.ts";
import {
  type Address,
  classify,
  isLoopback,
  isNat64Prefix,
  type Network,
  parseAddress,
  parseNetwork,
  within,
} from "./address.ts";
import { brokenNameRule, isMetadataName, isPublicName, isPublicPort } from "./host-rules.ts";

/** One thing the operator opened: a network (on one port, or on every port), or a host name on one port. */
export type AllowEntry =
  | { readonly network: Network; readonly port: number | undefined }
  | { readonly host: string; readonly port: number };

/** What the operator opened beyond the public internet. Metadata and link-local addresses cannot be opened. */
export type AllowList = readonly AllowEntry[];

/** Where requests may go. */
export interface TargetPolicy {
  /** Plain http to any permitted address. Without it, http goes only to what `allow` covers. */
  readonly allowHttp: boolean;
  /** Loopback addresses and the name `localhost`, with any port, over http too: for development. */
  readonly allowLoopback: boolean;
  readonly allow: AllowList;
  /** Prefixes of this network's NAT64 gateways: an address behind one leads to the IPv4 address in it, and is judged by that. */
  readonly nat64?: readonly Network[];
  /**
   * Where this server itself can be reached; never a target. A `host` of `0.0.0.0` or `::` means every address of this
   * machine.
   */
  readonly ownAddresses?: readonly { readonly host: string; readonly port: number }[];
}

/**
 * Parses the operator's allow-list: entries between commas, each `address`, `network/prefix`, either of them with
 * `:port` (IPv6 in brackets then), or `host:port`. Empty text is an empty list.
 * Throws RangeError that names the entry that is none of these.
 */
export function parseAllowList(text: string): AllowList {
  return text
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "")
    .map(parseEntry);
}

/**
 * Parses the operator's NAT64 prefixes: IPv6 networks of 32, 40, 48, 56, 64 or 96 bits between commas. Empty text is none.
 * Throws RangeError that names the entry that is none of these.
 */
export function parseNat64Prefixes(text: string): readonly Network[] {
  return text
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "")
    .map((entry) => {
      const network = parseNetwork(entry);
      if (network !== undefined && isNat64Prefix(network)) return network;
      throw new RangeError(`${JSON.stringify(entry)} is no IPv6 network of 32, 40, 48, 56, 64 or 96 bits`);
    });
}

function parseEntry(entry: string): AllowEntry {
  const whole = parseNetwork(entry);
  if (whole !== undefined) return { network: whole, port: undefined };

  const match = /^(?:\[(?<bracketed>[^\]]+)\]|(?<bare>[^:[\]]+)):(?<port>\d{1,5})$/.exec(entry);
  const port = Number(match?.groups?.["port"]);
  if (match === null || port < 1 || port > 65535) throw badEntry(entry, "expected a network, or host:port");
  const { bracketed, bare = "" } = match.groups ?? {};
  const network = parseNetwork(bracketed ?? bare);
  if (network !== undefined) return { network, port };
  // A last label of digits would be read as an address, in one of its short forms.
  if (bracketed !== undefined || brokenNameRule(bare.toLowerCase()) !== undefined || /(^|\.)\d+$/.test(bare)) {
    throw badEntry(entry, "neither a network nor a host name");
  }
  return { host: bare.toLowerCase(), port };
}

function badEntry(entry: string, detail: string): RangeError {
  return new RangeError(`allow-list entry ${JSON.stringify(entry)}: ${detail}`);
}

/** Whether the operator opened this host name on this port. */
export function allowsHost(policy: TargetPolicy, host: string, port: number): boolean {
  return policy.allow.some((entry) => "host" in entry && entry.host === host && entry.port === port);
}

/** Whether an entry of the list, other than a host name, covers the address on this port. */
export function allowsAddress(policy: TargetPolicy, address: Address, port: number): boolean {
  return policy.allow.some(
    (entry) =>
      "network" in entry && (entry.port === undefined || entry.port === port) && within(entry.network, address),
  );
}

/** Whether a host name could turn out to lie in a network that the operator opened on this port. */
function mayBeAllowed(policy: TargetPolicy, port: number): boolean {
  return policy.allow.some((entry) => "network" in entry && (entry.port === undefined || entry.port === port));
}

/** Whether the address and port are this server's own. */
export function isOwn(policy: TargetPolicy, address: Address, port: number): boolean {
  return (policy.ownAddresses ?? []).some((own) => {
    if (own.port !== port) return false;
    const host = parseAddress(own.host);
    if (host === undefined) return false;
    // A wildcard listens on loopback as well; the other addresses of the machine are noticed after the connect.
    if (host.value === 0n) return isLoopback(address);
    return host.family === address.family && host.value === address.value;
  });
}

/** The longest target URL in characters; the customary limit of proxies and servers. */
const MAX_URL = 2048;

/** What a request line and a connection need of a checked URL. */
export interface Target {
  /** As it is stored and shown: parsed once, without fragment, without a trailing dot of the host. */
  readonly href: string;
  readonly origin: string;
  /** Path and query. */
  readonly path: string;
  /** An ASCII name in lower case, or an address without brackets. */
  readonly host: string;
  /** Of a host that is one; undefined for a name. */
  readonly address: Address | undefined;
  readonly port: number;
  readonly tls: boolean;
}

/**
 * Checks a target URL without asking DNS and returns its normalised form, which is what to store and to show.
 * Throws Refusal TARGET_REFUSED that names the field and the broken rule. A name that passes may still resolve to an
 * address that is refused when the request is sent.
 */
export function checkTarget(field: string, url: string, policy: TargetPolicy): string {
  return parseTarget(field, url, policy).href;
}

/** `checkTarget`, with the parts that sending needs. */
export function parseTarget(field: string, url: string, policy: TargetPolicy): Target {
  const refuse = (rule: string): Refusal => Refusal.field(field, rule, "TARGET_REFUSED");

  // The URL parser removes or rewrites these, so that what a reader sees is not what is dialled.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (/[\u0000-\u0020\u007f-\u00a0\u2028\u2029\ufeff\\]/.test(url)) {
    throw refuse("a URL has no spaces, control characters or backslashes");
  }
  const authority = /^https?:\/\/(?<authority>[^/?#]+)/i.exec(url)?.groups?.["authority"];
  const parsed = URL.parse(url);
  if (authority === undefined || parsed === null) throw refuse("expected https://host/path");
  // The normalised form may be the longer one, and it is checked again before it is used.
  if (Math.max(url.length, parsed.href.length) > MAX_URL) throw refuse(`a URL has at most ${MAX_URL} characters`);
  if (authority.includes("@")) throw refuse("a URL carries no user name or password");
  if (authority.endsWith(":")) throw refuse("the port is empty");

  const tls = parsed.protocol === "https:";
  const port = parsed.port === "" ? (tls ? 443 : 80) : Number(parsed.port);
  const host = parsed.hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "");
  const address = parseAddress(host);

  if (address === undefined) {
    const rule = brokenNameRule(host);
    if (rule !== undefined) throw refuse(rule);
  }
  if (port < 1) throw refuse("port 0 is not allowed");

  const opened =
    allowsHost(policy, host, port) ||
    (address === undefined ? mayBeAllowed(policy, port) : allowsAddress(policy, address, port));
  const loopback = address === undefined ? host === "localhost" : isLoopback(address);
  const openedLoopback = policy.allowLoopback && loopback;

  if (address !== undefined) {
    const verdict = classify(address, policy.nat64);
    if (verdict.kind === "never") throw refuse(`the address is not allowed (${verdict.reason})`);
    // Before the server's own, so that nobody finds out what that is by asking for one address after the other.
    if (verdict.kind === "denied" && !opened && !openedLoopback) {
      throw refuse(`the address is not public (${verdict.reason})`);
    }
    if (isOwn(policy, address, port)) throw refuse("the address is this server's own");
  } else {
    if (isMetadataName(host)) throw refuse("the host name is a metadata service's");
    if (!isPublicName(host) && !opened && !openedLoopback) throw refuse("the host name is not a public one");
    if (policy.ownAddresses?.some((own) => own.port === port && own.host.toLowerCase() === host)) {
      throw refuse("the address is this server's own");
    }
  }
  if (!opened && !openedLoopback) {
    if (!tls && !policy.allowHttp) throw refuse("the scheme must be https");
    if (!isPublicPort(port, policy.allowHttp)) throw refuse(`port ${port} is not allowed`);
  }

  parsed.hash = "";
  if (address === undefined) parsed.hostname = host;
  const { href, origin, pathname, search } = parsed;
  return { href, origin, path: pathname + search, host, address, port, tls };
}
