import { expect, test } from "vitest";
import {
  classify,
  classifyText,
  formatAddress,
  isNat64Prefix,
  parseAddress,
  parseNetwork,
  within,
} from "../../src/webhook/address.ts";
import { CLOSED_IPV4, CLOSED_IPV6, number } from "./corpus.ts";

const ranges = CLOSED_IPV4.map(([first, last]) => [number(first), number(last)] as const);
const isClosed = (value: bigint): boolean => ranges.some(([first, last]) => first <= value && value <= last);

test.each(CLOSED_IPV4)("%s to %s is closed at both edges and inside, and its neighbours are what they are", (a, b) => {
  const [first, last] = [number(a), number(b)];
  for (const value of [first - 1n, first, (first + last) / 2n, last, last + 1n]) {
    if (value < 0n || value >= 2n ** 32n) continue;
    const kind = classify({ family: 4, value }).kind;
    expect(kind !== "public", formatAddress({ family: 4, value })).toBe(isClosed(value));
  }
});

test.each(CLOSED_IPV6)("%s is closed", (text) => {
  expect(classifyText(text).kind).not.toBe("public");
});

test.each(
  "2000::1|2001:200::1|2001:db7:ffff::1|2001:db9::1|2003::1|2606:4700::1111|2620:4f:7fff::1|2620:4f:8001::1|3ffe::1|3fff:1000::1".split(
    "|",
  ),
)("%s is public", (text) => {
  expect(classifyText(text)).toEqual({ kind: "public" });
});

test.each(
  "||127.1|1.2.3|1.2.3.4.5|01.2.3.4|1.2.3.256|0x7f.0.0.1|2130706433|fe80::1%lo|[::1]|::1/128|:::|1:2:3:4:5:6:7:8:9|::ffff:1.2.3".split(
    "|",
  ),
)("%j is no address, so it is never dialled", (text) => {
  expect(parseAddress(text)).toBeUndefined();
  expect(classifyText(text).kind).toBe("never");
});

/** A NAT64 prefix of each length, with where 10.0.2.33, 169.254.169.254 and 8.8.4.4 are behind it by RFC 6052's table. */
const BEHIND_PREFIXES = [
  ["2a00:db8::/32", "2a00:db8:a00:221::", "2a00:db8:a9fe:a9fe::", "2a00:db8:808:404::"],
  ["2a00:db8:100::/40", "2a00:db8:10a:2:21::", "2a00:db8:1a9:fea9:fe::", "2a00:db8:108:804:4::"],
  ["2a00:db8:122::/48", "2a00:db8:122:a00:2:2100::", "2a00:db8:122:a9fe:a9:fe00::", "2a00:db8:122:808:4:400::"],
  ["2a00:db8:122:300::/56", "2a00:db8:122:30a:0:221::", "2a00:db8:122:3a9:fe:a9fe::", "2a00:db8:122:308:8:404::"],
  [
    "2a00:db8:122:344::/64",
    "2a00:db8:122:344:a:2:2100:0",
    "2a00:db8:122:344:a9:fea9:fe00:0",
    "2a00:db8:122:344:8:804:400:0",
  ],
  ["2a00:db8:122:344::/96", "2a00:db8:122:344::a00:221", "2a00:db8:122:344::a9fe:a9fe", "2a00:db8:122:344::808:404"],
] as const;

test.each(BEHIND_PREFIXES)("behind the NAT64 prefix %s counts the IPv4 address", (text, inside, metadata, outside) => {
  const prefix = parseNetwork(text);
  if (prefix === undefined) throw new Error("not parsed");
  expect(isNat64Prefix(prefix)).toBe(true);
  const kindOf = (address: string) => classify({ family: 6, value: number(address) }, [prefix]).kind;
  expect([inside, metadata, outside].map(kindOf)).toEqual(["denied", "never", "public"]);
  expect(classifyText(inside).kind).toBe("public");
});

test("every spelling of an IPv6 address is one number", () => {
  const spellings = ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1", "2001:db8:0:0::0:1", "2001:db8::0.0.0.1"];
  expect(new Set(spellings.map(number))).toEqual(new Set([0x20010db8000000000000000000000001n]));
  expect(formatAddress({ family: 6, value: number("2001:db8::1") })).toBe("2001:db8:0:0:0:0:0:1");
  expect(parseAddress("::ffff:1.2.3.4")).toEqual(parseAddress("1.2.3.4"));
});

test("a network is an address and a prefix without bits behind it", () => {
  for (const bad of [
    "10.0.0.1/8",
    "10.0.0.0/33",
    "::/129",
    "10.0.0.0/",
    "10.0.0.0/8/8",
    "10.0.0.0/-1",
    "::ffff:10.0.0.0/104",
    "x/8",
  ]) {
    expect(parseNetwork(bad), bad).toBeUndefined();
  }
  const network = parseNetwork("10.0.0.0/8");
  const all = parseNetwork("0.0.0.0/0");
  if (network === undefined || all === undefined) throw new Error("not parsed");
  expect(within(network, { family: 4, value: number("10.255.255.255") })).toBe(true);
  expect(within(network, { family: 4, value: number("11.0.0.0") })).toBe(false);
  expect(within(network, { family: 6, value: number("10.0.0.1") })).toBe(false);
  expect(within(all, { family: 4, value: number("255.0.0.1") })).toBe(true);
});
