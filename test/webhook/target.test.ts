import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/errors.ts";
import { checkTarget, parseAllowList, parseNat64Prefixes } from "../../src/webhook/target.ts";

const PRODUCTION = { allowHttp: false, allowLoopback: false, allow: [] };

describe("checkTarget", () => {
  test.each([
    ["HTTPS://Example.COM:443", "https://example.com/"],
    ["https://example.com./a/../b?c=d#e", "https://example.com/b?c=d"],
    ["https://münchen.de/ü", "https://xn--mnchen-3ya.de/%C3%BC"],
    ["https://8.8.2056:8443/", "https://8.8.8.8:8443/"],
    ["https://[2606:4700:0:0::1111]/", "https://[2606:4700::1111]/"],
  ])("returns the normalised form of %s", (url, expected) => {
    expect(checkTarget("url", url, PRODUCTION)).toBe(expected);
    expect(checkTarget("url", expected, PRODUCTION)).toBe(expected);
  });

  test.each([
    ["http://example.com", /scheme must be https/],
    ["https://u:p@example.com", /user name/],
    ["https://localhost", /not a public one/],
    ["https://10.0.0.1", /not public \(private\)/],
    ["https://example.com:25", /port 25/],
    ["ftp://example.com", /expected https/],
    ["nonsense", /expected https/],
    ["https://exa mple.com", /spaces/],
  ])("refuses %s and names the field and the rule", (url, rule) => {
    const check = () => checkTarget("push.url", url, PRODUCTION);
    expect(check).toThrow(Refusal);
    expect(check).toThrow(rule);
    expect(check).toThrow(/^push\.url cannot be a target: /);
  });

  test("takes 2,048 characters, counted in the normalised form too", () => {
    const of = (length: number, tail = "") => `https://example.com/${"x".repeat(length - 20 - tail.length)}${tail}`;
    expect(checkTarget("url", of(2_048), PRODUCTION)).toHaveLength(2_048);
    expect(() => checkTarget("url", of(2_049), PRODUCTION)).toThrow(/2048/);
    expect(() => checkTarget("url", of(2_048, "ü"), PRODUCTION)).toThrow(/2048/);
  });

  test("refuses the server's own host name and address on its own port", () => {
    const own = [
      { host: "carillon.example.com", port: 443 },
      { host: "8.8.8.8", port: 8443 },
    ];
    const policy = { ...PRODUCTION, ownAddresses: own };
    expect(() => checkTarget("url", "https://Carillon.Example.com./", policy)).toThrow(/own/);
    expect(() => checkTarget("url", "https://8.8.8.8:8443/", policy)).toThrow(/own/);
    expect(checkTarget("url", "https://carillon.example.com:8443/", policy)).toBeDefined();
    expect(checkTarget("url", "https://8.8.8.8/", policy)).toBeDefined();
  });
});

test("says of what is closed anyway nothing more when it is the server's own", () => {
  const own = [
    { host: "10.0.0.1", port: 443 },
    { host: "db.internal", port: 443 },
  ];
  for (const host of ["10.0.0.1", "db.internal"]) {
    const told = [own, []].map((ownAddresses) => {
      try {
        return checkTarget("url", `https://${host}/`, { ...PRODUCTION, ownAddresses });
      } catch (error) {
        return String(error);
      }
    });
    expect(told[0]).toMatch(/not (a )?public/);
    expect(told[0]).toBe(told[1]);
  }
});

describe("parseNat64Prefixes", () => {
  test("takes networks of the lengths that gateways have", () => {
    expect(parseNat64Prefixes("")).toEqual([]);
    expect(parseNat64Prefixes(" 2001:db8:64::/96,2001:db8::/32 ").map(({ prefix }) => prefix)).toEqual([96, 32]);
  });

  test.each(["2001:db8::/33", "2001:db8::1/96", "10.0.0.0/8", "::ffff:10.0.0.0", "2001:db8::", "gateway"])(
    "refuses %s, and names it",
    (entry) => {
      expect(() => parseNat64Prefixes(`2001:db8:64::/96, ${entry}`)).toThrow(JSON.stringify(entry));
    },
  );
});

describe("parseAllowList", () => {
  test("takes networks and addresses with and without a port, and names with one", () => {
    const list = parseAllowList(
      " 10.0.0.0/8 ,192.168.1.7, 10.0.0.1:8080,10.0.0.0/8:80,Receiver:3000,fd00::/8,[fd00::1]:80,[fd00::/8]:81,",
    );
    expect(
      list.map((entry) => ("host" in entry ? entry.host : `/${entry.network.prefix}`) + (entry.port ?? "")),
    ).toEqual(["/8", "/32", "/328080", "/880", "receiver3000", "/8", "/12880", "/881"]);
    expect(parseAllowList("")).toEqual([]);
  });

  test.each(
    "10.0.0.1/8|10.0.0.0/33|receiver|a:0|a:65536|*:80|http://a:80|1.2.3:80|[fd00::1]|[a]:80|a b:80|10.0.0.0/8:".split(
      "|",
    ),
  )("names the bad entry %s", (entry) => {
    expect(() => parseAllowList(`10.0.0.0/8, ${entry}`)).toThrow(JSON.stringify(entry));
  });
});
