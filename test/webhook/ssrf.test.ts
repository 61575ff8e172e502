import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/errors.ts";
import { formatAddress } from "../../src/webhook/address.ts";
import { type Connect, createConnector } from "../../src/webhook/connect.ts";
import { AttemptFailure } from "../../src/webhook/failure.ts";
import { isHeaderValue } from "../../src/webhook/headers.ts";
import { createEgress, type Egress, type EgressOptions } from "../../src/webhook/post.ts";
import type { Lookup } from "../../src/webhook/resolve.ts";
import { checkTarget, parseAllowList, parseNat64Prefixes, type TargetPolicy } from "../../src/webhook/target.ts";
import { startReceiver } from "../support/receiver.ts";
import { openSealed, signersWith } from "../support/signing.ts";
import { CLOSED_ANSWERS, CLOSED_IPV4, CLOSED_URLS } from "./corpus.ts";

/** Production, and production with plain http allowed, so that entries cannot pass the test for their scheme alone. */
const PRODUCTION: TargetPolicy = { allowHttp: false, allowLoopback: false, allow: [] };
const WITH_HTTP: TargetPolicy = { ...PRODUCTION, allowHttp: true };
/** An operator who opened everything that can be opened. */
const WIDE_OPEN: TargetPolicy = { allowHttp: true, allowLoopback: true, allow: parseAllowList("0.0.0.0/0, ::/0") };

const PUBLIC: Lookup = async () => ["8.8.8.8"];

/** An egress that never dials: the connector writes down what it was asked for and refuses. */
function recording(options: Partial<EgressOptions>): Egress & { readonly dials: string[] } {
  const dials: string[] = [];
  const connect: Connect = async ({ address, port, tls, servername }) => {
    dials.push(`${tls ? "tls" : "tcp"} ${formatAddress(address)} ${port} ${servername ?? "-"}`);
    throw new AttemptFailure("connect_failed", "no connection could be made");
  };
  const egress = createEgress({ open: openSealed, policy: PRODUCTION, lookup: PUBLIC, connect, ...options });
  return { ...egress, [Symbol.asyncDispose]: () => egress[Symbol.asyncDispose](), dials };
}

function post(egress: Egress, url: string, timeoutMs = 60_000) {
  return egress.post({
    url,
    body: new Uint8Array(),
    contentType: "application/json",
    about: {},
    headers: {},
    id: "msg_1",
    owner: { projectId: "project", ownerId: "project" },
    signers: signersWith("secret"),
    timeoutMs,
    signal: new AbortController().signal,
  });
}

function refusalOf(url: string, policy: TargetPolicy): Refusal {
  try {
    checkTarget("url", url, policy);
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error(`accepted: ${JSON.stringify(url)}`);
}

test("the corpus has at least 400 entries", () => {
  expect(CLOSED_URLS.length + CLOSED_ANSWERS.length).toBeGreaterThanOrEqual(400);
});

describe.each([
  ["in production", PRODUCTION],
  ["in production with http", WITH_HTTP],
])("%s", (_, policy) => {
  test("no closed URL is accepted", () => {
    for (const url of CLOSED_URLS) expect(refusalOf(url, policy)).toMatchObject({ reason: "TARGET_REFUSED" });
  });

  test("no closed URL is dialled, even when it got into the database", async () => {
    await using egress = recording({ policy });
    for (const url of CLOSED_URLS) {
      expect(await post(egress, url), JSON.stringify(url)).toMatchObject({ kind: "failed", error: "blocked_address" });
    }
    expect(egress.dials).toEqual([]);
  });

  test("no name is dialled when one of its addresses is closed", async () => {
    const urls = ["https://name.example.com/", "http://name.example.com:8080/"];
    const attempts = CLOSED_ANSWERS.map(async (answers) => {
      await using egress = recording({ policy, lookup: async () => answers });
      for (const [index, outcome] of (await Promise.all(urls.map((url) => post(egress, url)))).entries()) {
        const error = index === 0 || policy.allowHttp ? "dns_failed" : "blocked_address";
        expect(outcome, answers.join()).toMatchObject({ kind: "failed", error });
        for (const answer of answers) if (answer.length > 3) expect(JSON.stringify(outcome)).not.toContain(answer);
      }
      expect(egress.dials, answers.join()).toEqual([]);
    });
    await Promise.all(attempts);
  });
});

test("in development only loopback is opened, and only by address or as localhost", async () => {
  const policy: TargetPolicy = { allowHttp: true, allowLoopback: true, allow: [] };
  await using egress = recording({ policy, lookup: async () => ["127.0.0.1"] });
  for (const host of "10.0.0.1|0.0.0.0|169.254.169.254|[fd00::1]|[::]|a.localhost|db".split("|")) {
    expect(await post(egress, `http://${host}:8080/`)).toMatchObject({ error: "blocked_address" });
  }
  expect(await post(egress, "http://name.example.com:8080/")).toMatchObject({ error: "dns_failed" });
  expect(egress.dials).toEqual([]);
  for (const host of ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"]) await post(egress, `http://${host}:22/`);
  expect(egress.dials).toEqual([
    "tcp 127.0.0.1 22 -",
    "tcp 127.9.9.9 22 -",
    "tcp 0:0:0:0:0:0:0:1 22 -",
    "tcp 127.0.0.1 22 localhost",
    "tcp 0:0:0:0:0:0:0:1 22 localhost",
  ]);
});

describe("what no allow-list opens", () => {
  const addresses = [
    ..."169.254.169.254|169.254.170.2|169.254.0.1|168.63.129.16|100.100.100.200|192.0.0.192|0.0.0.0|224.0.0.1".split(
      "|",
    ),
    ..."255.255.255.255|::|fe80::1|fd00:ec2::254|fd20:ce::254|ff02::1|::ffff:169.254.169.254|::169.254.169.254".split(
      "|",
    ),
    ..."::ffff:0:169.254.169.254|64:ff9b::169.254.169.254|64:ff9b:1::169.254.169.254|2002:a9fe:a9fe::1".split("|"),
    ..."2001:0:a9fe:a9fe::|2001:0:808:808::5601:5601|2606:4700::5efe:169.254.169.254|2606:4700::a9fe:a9fe".split("|"),
  ];
  const open = [
    WIDE_OPEN,
    {
      ...WIDE_OPEN,
      allow: parseAllowList("169.254.169.254, 169.254.0.0/16, fd00:ec2::254, fe80::/10, hook.example.com:80"),
    },
  ];

  test.each(addresses)("%s", async (address) => {
    for (const policy of open) {
      const url = `http://${address.includes(":") ? `[${address}]` : address}/`;
      refusalOf(url, policy);
      await using egress = recording({ policy, lookup: async () => [address] });
      expect(await post(egress, url)).toMatchObject({ error: "blocked_address" });
      expect(await post(egress, "http://hook.example.com/")).toMatchObject({ error: "dns_failed" });
      expect(egress.dials).toEqual([]);
    }
  });

  test.each(["metadata", "metadata.google.internal", "instance-data"])("the name %s", async (host) => {
    const policy = { ...WIDE_OPEN, allow: parseAllowList(`0.0.0.0/0, ${host}:80`) };
    await using egress = recording({ policy });
    expect(await post(egress, `http://${host}/`)).toMatchObject({ error: "blocked_address" });
    expect(egress.dials).toEqual([]);
  });
});

describe("behind a NAT64 prefix of the operator's", () => {
  const policy = { ...WITH_HTTP, nat64: parseNat64Prefixes("2a00:db8:64::/96") };
  const behind = (dotted: string) => `2a00:db8:64::${dotted}`;

  test("nothing closed is dialled, as a literal or as an answer", async () => {
    const attempts = CLOSED_IPV4.flat().map(async (dotted) => {
      await using egress = recording({ policy, lookup: async () => [behind(dotted)] });
      const literal = await post(egress, `http://[${behind(dotted)}]/`);
      expect(literal, dotted).toMatchObject({ error: "blocked_address" });
      expect(await post(egress, "https://name.example.com/"), dotted).toMatchObject({ error: "dns_failed" });
      expect(egress.dials, dotted).toEqual([]);
    });
    await Promise.all(attempts);
  });

  test("the metadata address stays closed though the operator opened all that can be opened", async () => {
    const open = { ...WIDE_OPEN, nat64: parseNat64Prefixes("fd00:64::/96") };
    await using egress = recording({ policy: open, lookup: async () => ["fd00:64::169.254.170.2"] });
    expect(await post(egress, "http://name.example.com/")).toMatchObject({ error: "dns_failed" });
    expect(egress.dials).toEqual([]);
  });

  test("a public address is dialled", async () => {
    await using egress = recording({ policy, lookup: async () => [behind("8.8.8.8")] });
    await post(egress, "https://name.example.com/");
    expect(egress.dials).toEqual(["tls 2a00:db8:64:0:0:0:808:808 443 name.example.com"]);
  });
});

describe("DNS that changes its mind", () => {
  test("never gets a closed address dialled, in 10,000 flips", async () => {
    let asked = 0;
    const answers = [["8.8.8.8"], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:169.254.169.254"]];
    await using egress = recording({ lookup: async () => answers[asked++ % answers.length] ?? [] });
    const attempts = Array.from({ length: 10_000 }, () => post(egress, "https://name.example.com/"));
    for (const [n, outcome] of (await Promise.all(attempts)).entries()) {
      expect(outcome).toMatchObject({ error: n % answers.length === 0 ? "connect_failed" : "dns_failed" });
    }
    expect(asked).toBe(10_000);
    expect(new Set(egress.dials)).toEqual(new Set(["tls 8.8.8.8 443 name.example.com"]));
    expect(egress.dials).toHaveLength(2_500);
  });

  test("is asked once for each attempt, and never for a target that is an address", async () => {
    const asked: string[] = [];
    await using egress = recording({
      lookup: async (host) => {
        asked.push(host);
        return ["8.8.8.8"];
      },
    });
    await post(egress, "https://Name.Example.com./");
    await post(egress, "https://8.8.4.4/");
    await post(egress, "https://[2606:4700::1111]/");
    expect(asked).toEqual(["name.example.com"]);
  });
});

describe("an answer that points to a closed URL", () => {
  const ways: readonly ((url: string) => { readonly status: number; readonly headers: Record<string, string> })[] = [
    ...[300, 301, 302, 303, 305, 307, 308].map((status) => (location: string) => ({ status, headers: { location } })),
    (url) => ({ status: 201, headers: { location: url, "content-location": url } }),
    (url) => ({ status: 200, headers: { refresh: `0; url=${url}`, link: `<${url}>; rel="preload"` } }),
    (url) => ({ status: 503, headers: { "alt-svc": `h2="${url.replace(/^https?:/, "")}"; ma=86400` } }),
    (url) => ({ status: 401, headers: { "www-authenticate": `Bearer realm="${url}"`, location: url } }),
    (url) => ({ status: 407, headers: { "proxy-authenticate": "Basic", location: url } }),
  ];

  test("is followed nowhere, though the operator opened all that can be opened", { timeout: 120_000 }, async () => {
    await using receiver = await startReceiver();
    const dial = createConnector();
    const dials: string[] = [];
    const asked: string[] = [];
    await using egress = createEgress({
      open: openSealed,
      policy: WIDE_OPEN,
      lookup: async (host) => {
        asked.push(host);
        return ["127.0.0.1"];
      },
      connect: (endpoint, signal, timings) => {
        dials.push(`${formatAddress(endpoint.address)} ${endpoint.port} ${endpoint.servername}`);
        return dial(endpoint, signal, timings);
      },
    });
    // As bytes, so that the names of the corpus that are not ASCII arrive as they are.
    const urls = CLOSED_URLS.map((url) => Buffer.from(url).toString("latin1")).filter(isHeaderValue);
    expect(urls.length).toBeGreaterThan(400);
    for (const [index, url] of urls.entries()) {
      const reply = ways[index % ways.length]?.(url) ?? expect.fail();
      receiver.respond(reply);
      const outcome = await post(egress, `http://hook.example.com:${receiver.port}/`);
      expect(outcome, JSON.stringify(reply)).toMatchObject({ status: reply.status });
    }
    expect(receiver.count).toBe(urls.length);
    expect(new Set(dials)).toEqual(new Set([`127.0.0.1 ${receiver.port} hook.example.com`]));
    expect(new Set(asked)).toEqual(new Set(["hook.example.com"]));
  });
});

describe("what still goes out", () => {
  const dial = (address: string, port: number, name = "-"): string => `tls ${address} ${port} ${name}`;
  const names: Record<string, string[]> = {
    "v6.example.com": ["2606:4700::1111"],
    "both.example.com": ["2606:4700::1111", "8.8.8.8"],
    "many.example.com": Array.from({ length: 16 }, (_, n) => `8.8.8.${n}`),
    "mapped.example.com": ["::ffff:8.8.8.8"],
    "nat64.example.com": ["64:ff9b::8.8.8.8"],
  };
  const lookup: Lookup = async (host) => names[host] ?? ["8.8.8.8"];

  const publicForms: [string, string][] = [
    ..."example.com|hooks.example.com|a.b.c.d.e.f.example.com|xn--mnchen-3ya.de|a_b.example.com|1.example.com|x.co"
      .split("|")
      .concat(
        "a-b.example.com",
        "metadata-api.example.com",
        "localhost.example.com",
        "internal.example.com",
        "0x7f.example.com",
      )
      .concat("local.dev", "8.8.8.8.example.com", `${"a".repeat(63)}.example.com`)
      .map((host): [string, string] => [`https://${host}/`, dial("8.8.8.8", 443, host)]),
    ..."8.8.8.8|1.1.1.1|9.255.255.255|11.0.0.0|100.63.255.255|100.128.0.0|126.255.255.255|128.0.0.0|169.253.255.255"
      .split("|")
      .concat("172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255", "168.63.129.15")
      .map((host): [string, string] => [`https://${host}/`, dial(host, 443)]),
    ...([1024, 3000, 8080, 8443, 8888, 9000, 50051, 65535] as const).map((port): [string, string] => [
      `https://example.com:${port}/`,
      dial("8.8.8.8", port, "example.com"),
    ]),
    ["https://münchen.de/", dial("8.8.8.8", 443, "xn--mnchen-3ya.de")],
    ["https://日本語.jp/", dial("8.8.8.8", 443, "xn--wgv71a119e.jp")],
    ["HTTPS://Example.COM:443/a/../b?c=d#e", dial("8.8.8.8", 443, "example.com")],
    ["https://example.com./", dial("8.8.8.8", 443, "example.com")],
    ["https://134744072/", dial("8.8.8.8", 443)],
    ["https://[2606:4700::1111]/", dial("2606:4700:0:0:0:0:0:1111", 443)],
    ["https://[2a00:1450:4001:800::200e]:8443/", dial("2a00:1450:4001:800:0:0:0:200e", 8443)],
    ["https://[2001:200::1]/", dial("2001:200:0:0:0:0:0:1", 443)],
    ["https://[::ffff:8.8.8.8]/", dial("8.8.8.8", 443)],
    ["https://[64:ff9b::8.8.8.8]/", dial("64:ff9b:0:0:0:0:808:808", 443)],
    ["https://mapped.example.com/", dial("8.8.8.8", 443, "mapped.example.com")],
    ["https://nat64.example.com/", dial("64:ff9b:0:0:0:0:808:808", 443, "nat64.example.com")],
    ["https://v6.example.com/", dial("2606:4700:0:0:0:0:0:1111", 443, "v6.example.com")],
    ["https://both.example.com/", dial("8.8.8.8", 443, "both.example.com")],
    ["https://many.example.com/", dial("8.8.8.0", 443, "many.example.com")],
    ["https://example.com/a%20b?url=http://127.0.0.1/&u=a@b", dial("8.8.8.8", 443, "example.com")],
  ];

  test.each(publicForms)("%s", async (url, expected) => {
    expect(() => checkTarget("url", url, PRODUCTION)).not.toThrow();
    await using egress = recording({ lookup });
    expect(await post(egress, url)).toMatchObject({ error: "connect_failed" });
    expect(egress.dials[0]).toBe(expected);
  });

  test.each([
    ["10.0.0.0/8", "http://10.1.2.3:5432/", ["10.1.2.3"], "tcp 10.1.2.3 5432 -"],
    ["10.1.2.3", "http://10.1.2.3/", ["10.1.2.3"], "tcp 10.1.2.3 80 -"],
    ["10.0.0.0/8:9000", "http://10.1.2.3:9000/", ["10.1.2.3"], "tcp 10.1.2.3 9000 -"],
    ["[fd00::/8]:9000", "http://[fd00::5]:9000/", [], "tcp fd00:0:0:0:0:0:0:5 9000 -"],
    ["fd00::5", "https://[fd00::5]/", [], "tls fd00:0:0:0:0:0:0:5 443 -"],
    ["receiver:3000", "http://receiver:3000/", ["172.18.0.3"], "tcp 172.18.0.3 3000 receiver"],
    ["localhost:3000", "http://localhost:3000/", [], "tcp 127.0.0.1 3000 localhost"],
    ["172.16.0.0/12", "http://receiver:3000/", ["172.18.0.3"], "tcp 172.18.0.3 3000 receiver"],
    ["172.16.0.0/12", "https://hook.internal/", ["172.18.0.3"], "tls 172.18.0.3 443 hook.internal"],
    ["127.0.0.0/8", "http://localhost:3000/", [], "tcp 127.0.0.1 3000 localhost"],
    ["hook.example.com:80", "http://hook.example.com/", ["10.0.0.1", "8.8.8.8"], "tcp 10.0.0.1 80 hook.example.com"],
    ["10.0.0.1,10.0.0.2", "http://a.example.com/", ["10.0.0.1", "10.0.0.2"], "tcp 10.0.0.1 80 a.example.com"],
  ])("with %s on the allow-list: %s", async (list, url, answers, expected) => {
    const policy = { ...PRODUCTION, allow: parseAllowList(list) };
    expect(() => refusalOf(url, PRODUCTION)).not.toThrow();
    await using egress = recording({ policy, lookup: async () => answers });
    expect(await post(egress, url)).toMatchObject({ error: "connect_failed" });
    expect(egress.dials[0]).toBe(expected);
  });

  test.each([
    ["10.0.0.0/8", "http://11.0.0.1/", undefined],
    ["10.0.0.0/8:9000", "http://10.1.2.3:9001/", undefined],
    ["receiver:3000", "http://receiver:3001/", undefined],
    ["receiver:3000", "http://other:3000/", undefined],
    // A network on the list lets such names through the first check; their addresses decide.
    ["10.0.0.0/8", "http://receiver:3000/", ["172.18.0.3"]],
    ["10.0.0.0/8", "http://receiver:3000/", ["8.8.8.8"]],
    ["10.0.0.0/8", "https://receiver:3000/", ["8.8.8.8"]],
    ["10.0.0.0/8", "http://example.com/", ["8.8.8.8"]],
    ["10.0.0.0/8", "http://example.com:8080/", ["8.8.8.8"]],
    ["10.0.0.0/8", "https://example.com:5432/", ["8.8.8.8"]],
    ["10.0.0.0/8", "https://example.com/", ["10.0.0.1", "192.168.0.1"]],
    ["10.0.0.0/8", "http://example.com/", ["10.0.0.1", "8.8.8.8"]],
  ])("and not, with %s on the allow-list: %s", async (list, url, answers) => {
    await using egress = recording({
      policy: { ...PRODUCTION, allow: parseAllowList(list) },
      lookup: async () => answers ?? expect.fail(),
    });
    const error = answers === undefined ? "blocked_address" : "dns_failed";
    expect(await post(egress, url)).toMatchObject({ kind: "failed", error });
    expect(egress.dials).toEqual([]);
  });
});

describe("a name that leads nowhere", () => {
  const unknown = () => Promise.reject(Object.assign(new Error("queryA ENOTFOUND"), { code: "ENOTFOUND" }));
  const lookups: Record<string, Lookup> = {
    "an unknown one": unknown,
    "an unknown one, found out late": async () => {
      await new Promise((resolve) => setTimeout(resolve, 60));
      return unknown();
    },
    "one without addresses": async () => [],
    "one with too many": async () => Array.from({ length: 17 }, (_, n) => `8.8.8.${n}`),
    "an inner one": async () => ["10.1.2.3"],
    "one of the hosts file": async () => ["127.0.0.1", "::1"],
    "one of two horizons": async () => ["8.8.8.8", "192.168.0.1"],
    "one of an answer that is no address": async () => ["nonsense"],
  };

  test("looks the same to the tenant whatever it is, in time too, and the operator is told the cause", async () => {
    const causes: string[] = [];
    const said = Object.entries(lookups).map(async ([kind, lookup]) => {
      await using egress = recording({
        lookup,
        onRefused: ({ url, owner }, { cause }) =>
          causes.push(`${kind}: ${owner.projectId} ${url} ${cause instanceof Error ? cause.message : cause}`),
      });
      const { durationMs, requestHeaders: _, ...outcome } = await post(egress, "https://name.example.com/");
      expect(durationMs, kind).toBeGreaterThanOrEqual(499);
      return outcome;
    });
    for (const outcome of await Promise.all(said)) {
      expect(outcome).toEqual({
        kind: "failed",
        error: "dns_failed",
        detail: "the host name leads to no address that requests may go to",
        timings: {},
      });
    }
    expect(causes).toHaveLength(said.length);
    expect(causes).toEqual(
      expect.arrayContaining([
        "an unknown one: project https://name.example.com/ queryA ENOTFOUND",
        "an inner one: project https://name.example.com/ 10.1.2.3",
        "one of two horizons: project https://name.example.com/ 192.168.0.1",
      ]),
    );
  });

  test("looks like this server itself too, which is found out behind the dial", async () => {
    await using receiver = await startReceiver();
    await using egress = createEgress({
      open: openSealed,
      policy: { ...PRODUCTION, allow: parseAllowList(`hook.example.com:${receiver.port}`) },
      lookup: async () => ["127.0.0.1"],
      connect: createConnector({ ownPorts: [receiver.port] }),
    });
    const outcome = await post(egress, `http://hook.example.com:${receiver.port}/`);
    expect(outcome).toMatchObject({ error: "dns_failed", timings: {} });
    expect(receiver.count).toBe(0);
  });

  test("takes no longer than its deadline", async () => {
    await using egress = recording({ lookup: async () => ["10.1.2.3"] });
    const outcome = await post(egress, "https://name.example.com/", 20);
    expect(outcome).toMatchObject({ error: "dns_failed" });
    expect(outcome.durationMs).toBeLessThan(400);
  });
});
