import { isIPv4, isIPv6 } from "node:net";

/** An IP address as a number, so that no other spelling of it can be told apart from it. */
export interface Address {
  readonly family: 4 | 6;
  /** 32 bits for family 4, 128 bits for family 6. */
  readonly value: bigint;
}

/** A block of addresses. `prefix` counts the leading bits that are fixed: 0 to 32 or 0 to 128. */
export interface Network extends Address {
  readonly prefix: number;
}

/** Whether an address may be dialled. An allow-list can open a "denied" address, never a "never" one. */
export type Verdict = { readonly kind: "public" } | { readonly kind: "denied" | "never"; readonly reason: string };

type Row = readonly [network: Network, kind: "denied" | "never", reason: string];

const PUBLIC: Verdict = { kind: "public" };

/**
 * The number behind an address in text, or undefined when the text is not an address.
 * IPv4 in dotted decimal only; IPv6 without a zone. An IPv4-mapped address (`::ffff:a.b.c.d`) comes out as the IPv4
 * address, because that is what the kernel dials.
 */
export function parseAddress(text: string): Address | undefined {
  if (isIPv4(text)) return { family: 4, value: fromDotted(text) };
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const value = fromColons(text);
  return value >> 32n === 0xffffn ? { family: 4, value: low32(value) } : { family: 6, value };
}

/** The usual text of an address: dotted decimal, or eight groups without leading zeros and without `::`. */
export function formatAddress(address: Address): string {
  if (address.family === 4) {
    const value = Number(address.value);
    return `${value >>> 24}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`;
  }
  return Array.from({ length: 8 }, (_, group) =>
    ((address.value >> BigInt(112 - 16 * group)) & 0xffffn).toString(16),
  ).join(":");
}

/** Parses `address` or `address/prefix`; undefined when it is neither or when bits behind the prefix are set. */
export function parseNetwork(text: string): Network | undefined {
  const [host = "", length, ...rest] = text.split("/");
  const address = parseAddress(host);
  if (address === undefined || rest.length > 0) return undefined;
  const bits = address.family === 4 ? 32 : 128;
  if (length === undefined) return { ...address, prefix: bits };
  // A prefix behind a mapped address would count from the wrong end.
  if (!/^\d{1,3}$/.test(length) || Number(length) > bits || (address.family === 4 && host.includes(":"))) {
    return undefined;
  }
  const prefix = Number(length);
  const hostBits = BigInt(bits - prefix);
  return (address.value >> hostBits) << hostBits === address.value ? { ...address, prefix } : undefined;
}

/** Whether the address lies in the network. */
export function within(network: Network, address: Address): boolean {
  if (network.family !== address.family) return false;
  const hostBits = BigInt((network.family === 4 ? 32 : 128) - network.prefix);
  return network.value >> hostBits === address.value >> hostBits;
}

/** Whether a network can be the prefix of a NAT64 gateway: IPv6, with one of the lengths of RFC 6052. */
export function isNat64Prefix({ family, prefix }: Network): boolean {
  return family === 6 && [32, 40, 48, 56, 64, 96].includes(prefix);
}

/** `classify` for an address in text; text that is not an address is never dialled. */
export function classifyText(text: string): Verdict {
  const address = parseAddress(text);
  return address === undefined ? { kind: "never", reason: "not an address" } : classify(address);
}

/**
 * Says whether an address belongs to the public internet.
 * IPv4 is public unless a table names it; IPv6 is public only inside 2000::/3, the one block that is handed out, less
 * its special parts. An IPv4 address carried inside an IPv6 one is judged too, and the harsher of both verdicts holds:
 * `nat64` are the prefixes of this network's own gateways, beside the well-known one.
 * Tables: the IANA special-purpose registries (RFC 6890) and the metadata addresses that the clouds document.
 */
export function classify(address: Address, nat64: readonly Network[] = []): Verdict {
  if (address.family === 4) return lookUp(IPV4, address) ?? PUBLIC;
  if (isLoopback(address)) return { kind: "denied", reason: "loopback" };

  const translated = nat64
    .filter((prefix) => within(prefix, address))
    .map(({ prefix }) => behindPrefix(address, prefix));
  const carried = [...embedded(address.value), ...translated].map((value) => classify({ family: 4, value }));
  const never = carried.find((verdict) => verdict.kind === "never");
  if (never !== undefined) return never;
  const own = lookUp(IPV6, address);
  if (own !== undefined) return own;
  if (!within(NAT64, address) && !within(GLOBAL, address)) {
    return { kind: "denied", reason: "outside the global unicast block" };
  }
  return carried.find((verdict) => verdict.kind === "denied") ?? PUBLIC;
}

/** Whether the address is 127.0.0.0/8 or ::1. */
export function isLoopback(address: Address): boolean {
  return address.family === 4 ? address.value >> 24n === 127n : address.value === 1n;
}

/** The IPv4 addresses that an IPv6 address of a transition mechanism leads to. */
function embedded(value: bigint): bigint[] {
  const found: bigint[] = [];
  const address: Address = { family: 6, value };
  // IPv4-compatible (RFC 4291), SIIT (RFC 6145), NAT64 (RFC 6052) and local NAT64 with a /96 (RFC 8215).
  if ([COMPATIBLE, SIIT, NAT64, LOCAL_NAT64].some((network) => within(network, address))) found.push(low32(value));
  // 6to4 (RFC 3056): the 32 bits behind 2002.
  if (within(SIX_TO_FOUR, address)) found.push(low32(value >> 80n));
  // Teredo (RFC 4380): the server, then the client with its bits inverted.
  if (within(TEREDO, address)) found.push(low32(value >> 64n), low32(~value));
  // ISATAP (RFC 5214): interface id 0000:5efe or 0200:5efe, whatever the two flag bits of the first octet say.
  if (((value >> 32n) & 0xfcffffffn) === 0x5efen) found.push(low32(value));
  // The NAT64 prefix of a network can be any global one. Only the metadata address is worth a guess: refusing every
  // private-looking tail would refuse ordinary hosts such as 2606:4700::1111.
  if (low32(value) === METADATA_V4) found.push(METADATA_V4);
  return found;
}

/** The IPv4 address behind a NAT64 prefix (RFC 6052 section 2.2): the bits from 64 to 71 are no part of it. */
function behindPrefix({ value }: Address, prefix: number): bigint {
  if (prefix === 96) return low32(value);
  const withoutGap = ((value >> 64n) << 56n) | BigInt.asUintN(56, value);
  return low32(withoutGap >> BigInt(120 - prefix - 32));
}

function lookUp(table: readonly Row[], address: Address): Verdict | undefined {
  const row = table.find(([network]) => within(network, address));
  return row && { kind: row[1], reason: row[2] };
}

function low32(value: bigint): bigint {
  return BigInt.asUintN(32, value);
}

function fromDotted(text: string): bigint {
  return text.split(".").reduce((sum, octet) => (sum << 8n) | BigInt(octet), 0n);
}

function fromColons(text: string): bigint {
  // A dotted tail is two groups.
  const groups = text.replace(/[\d.]+\.\d+$/, (tail) => {
    const value = fromDotted(tail);
    return `${(value >> 16n).toString(16)}:${(value & 0xffffn).toString(16)}`;
  });
  const [head = "", tail] = groups.split("::");
  const left = head === "" ? [] : head.split(":");
  const right = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros = Array<string>(8 - left.length - right.length).fill("0");
  return [...left, ...zeros, ...right].reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}

function network(text: string): Network {
  const parsed = parseNetwork(text);
  if (parsed === undefined) throw new RangeError(`not a network: ${text}`);
  return parsed;
}

const METADATA_V4 = fromDotted("169.254.169.254");
const GLOBAL = network("2000::/3");
const COMPATIBLE = network("::/96");
const SIIT = network("::ffff:0:0:0/96");
const NAT64 = network("64:ff9b::/96");
const LOCAL_NAT64 = network("64:ff9b:1::/48");
const SIX_TO_FOUR = network("2002::/16");
const TEREDO = network("2001::/32");

// "never" rows stand before the wider rows that contain them.
const IPV4: readonly Row[] = [
  [network("0.0.0.0/8"), "never", "this host"],
  [network("169.254.0.0/16"), "never", "link-local, cloud metadata"],
  [network("168.63.129.16"), "never", "cloud metadata"], // Azure
  [network("100.100.100.200"), "never", "cloud metadata"], // Alibaba Cloud
  [network("192.0.0.192"), "never", "cloud metadata"], // Oracle Cloud
  [network("224.0.0.0/4"), "never", "multicast"],
  [network("255.255.255.255"), "never", "broadcast"],
  [network("10.0.0.0/8"), "denied", "private"],
  [network("100.64.0.0/10"), "denied", "carrier-grade NAT"],
  [network("127.0.0.0/8"), "denied", "loopback"],
  [network("172.16.0.0/12"), "denied", "private"],
  [network("192.0.0.0/24"), "denied", "protocol assignments"],
  [network("192.0.2.0/24"), "denied", "documentation"],
  [network("192.31.196.0/24"), "denied", "AS112"],
  [network("192.52.193.0/24"), "denied", "AMT"],
  [network("192.88.99.0/24"), "denied", "6to4 relay"],
  [network("192.168.0.0/16"), "denied", "private"],
  [network("192.175.48.0/24"), "denied", "AS112"],
  [network("198.18.0.0/15"), "denied", "benchmarking"],
  [network("198.51.100.0/24"), "denied", "documentation"],
  [network("203.0.113.0/24"), "denied", "documentation"],
  [network("240.0.0.0/4"), "denied", "reserved"],
];

const IPV6: readonly Row[] = [
  [network("::"), "never", "this host"],
  [network("fe80::/10"), "never", "link-local"],
  [network("ff00::/8"), "never", "multicast"],
  [network("fd00:ec2::/32"), "never", "cloud metadata"], // AWS
  [network("fd20:ce::254"), "never", "cloud metadata"], // Google Cloud
  [network("::/96"), "denied", "IPv4-compatible"],
  [network("::ffff:0:0:0/96"), "denied", "IPv4-translated"],
  [network("64:ff9b:1::/48"), "denied", "local NAT64"],
  [network("fc00::/7"), "denied", "unique local"],
  [network("2001::/23"), "denied", "protocol assignments"],
  [network("2001:db8::/32"), "denied", "documentation"],
  [network("2002::/16"), "denied", "6to4"],
  [network("2620:4f:8000::/48"), "denied", "AS112"],
  [network("3fff::/20"), "denied", "documentation"],
];
