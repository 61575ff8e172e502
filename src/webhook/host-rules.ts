import { parseAddress } from "./address.ts";

/** Names that mean something only inside some network, so that they never name a public host. */
const PRIVATE_SUFFIXES = [
  "corp",
  "default",
  "home",
  "home.arpa",
  "internal",
  "intranet",
  "lan",
  "local",
  "localdomain",
  "localhost",
  "svc",
];

/** Whether a host is an address or a name that public DNS could know: at least two labels, no private suffix. */
export function isPublicName(host: string): boolean {
  if (parseAddress(host) !== undefined) return true;
  return host.includes(".") && !PRIVATE_SUFFIXES.some((suffix) => host.endsWith(`.${suffix}`));
}

/** Whether a name is one under which clouds serve credentials to their machines. */
export function isMetadataName(host: string): boolean {
  return /^(metadata|instance-data)(\.|$)/.test(host);
}

/** The rule of DNS names (RFC 1035, with the underscore that container networks use) that a host breaks. */
export function brokenNameRule(host: string): string | undefined {
  if (host.length > 253) return "a host name has at most 253 characters";
  for (const label of host.split(".")) {
    if (label === "") return "the host name has an empty label";
    if (label.length > 63) return "a label of a host name has at most 63 characters";
    if (!/^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$/.test(label)) return "the host name is not a DNS name";
  }
  return undefined;
}

/**
 * Ports above 1023 that speak something other than HTTP, where a POST could still do harm or probe a service: the
 * databases, caches, brokers, orchestrators and debuggers that are often left open.
 */
const DENIED_PORTS = new Set([
  1433, 1521, 2049, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 4369, 5060, 5061, 5432, 5433, 5672, 5900, 5984, 6000,
  6379, 6380, 6667, 6697, 9042, 9092, 9200, 9229, 9300, 10250, 10255, 11211, 15672, 25672, 26257, 27017, 27018, 27019,
  61616,
]);

/** Whether requests to public hosts may use the port: 443, 80 with plain http, and 1024 and up less a deny list. */
export function isPublicPort(port: number, allowHttp: boolean): boolean {
  return port === 443 || (port === 80 && allowHttp) || (port >= 1024 && port <= 65535 && !DENIED_PORTS.has(port));
}
