import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { gzipSync } from "node:zlib";
import { Webhook } from "standardwebhooks";
import { describe, expect, onTestFinished, test } from "vitest";
import { formatAddress } from "../../src/webhook/address.ts";
import { createConnector } from "../../src/webhook/connect.ts";
import { type AttemptOutcome, createEgress, type Egress, type EgressOptions } from "../../src/webhook/post.ts";
import { newSecret } from "../../src/webhook/sign.ts";
import { parseAllowList } from "../../src/webhook/target.ts";
import { selfSigned } from "../support/certificate.ts";
import { type Receiver, type Reply, startReceiver } from "../support/receiver.ts";
import { openSealed, signersWith } from "../support/signing.ts";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const DEVELOPMENT = { allowHttp: true, allowLoopback: true, allow: [] };

function post(egress: Egress, url: string, changes: Partial<Parameters<Egress["post"]>[0]> = {}) {
  return egress.post({
    url,
    body: Buffer.from('{"n":1}'),
    contentType: "application/json",
    about: {},
    headers: {},
    id: "msg_1",
    owner: { projectId: "project", ownerId: "project" },
    signers: signersWith(SECRET),
    timeoutMs: 5_000,
    signal: new AbortController().signal,
    ...changes,
  });
}

/** An egress and a receiver that lives as long as the test. */
async function pair(reply: Reply = {}, options: Partial<EgressOptions> = {}): Promise<[Egress, Receiver]> {
  const receiver = await startReceiver();
  receiver.respond(reply);
  const egress = createEgress({ open: openSealed, policy: DEVELOPMENT, ...options });
  onTestFinished(async () => {
    await egress[Symbol.asyncDispose]();
    await receiver[Symbol.asyncDispose]();
  });
  return [egress, receiver];
}

/** The URL of a port on loopback where nothing listens. */
async function closedPort(): Promise<number> {
  const receiver = await startReceiver();
  await receiver[Symbol.asyncDispose]();
  return receiver.port;
}

/** A TCP server that answers every connection's first bytes with the given ones. */
async function startRaw(bytes: string): Promise<Server & AsyncDisposable & { readonly url: string }> {
  const server = createServer((socket) => {
    socket.on("error", () => {}).once("data", () => socket.end(bytes));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  return Object.assign(server, { url: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}/` });
}

describe("a request", () => {
  test("carries the body byte for byte, the user's headers and our own", async () => {
    const [egress, receiver] = await pair({}, { userAgent: "Carillon/1.2.3" });
    const body = Buffer.from([0, 255, 10, 13, 0x7b]);
    await post(egress, `${receiver.url}/hook?a=%20b#part`, {
      body,
      contentType: "application/octet-stream",
      headers: { Authorization: "Bearer x", "X-Latin": "é" },
    });
    const request = await receiver.next();
    expect(request).toMatchObject({ method: "POST", path: "/hook?a=%20b" });
    expect(request.body).toEqual(body);
    expect(request.headers).toMatchObject({
      host: `127.0.0.1:${receiver.port}`,
      "content-type": "application/octet-stream",
      "content-length": "5",
      "user-agent": "Carillon/1.2.3",
      "accept-encoding": "identity",
      authorization: "Bearer x",
      "x-latin": "é",
      "webhook-id": "msg_1",
    });
    expect(request.headers).not.toHaveProperty("transfer-encoding");
  });

  test("has the user's own content-type and user-agent when the headers name them", async () => {
    const [egress, receiver] = await pair();
    await post(egress, receiver.url, { headers: { "Content-Type": "text/plain", "User-Agent": "mine" } });
    const { headers, rawHeaders } = await receiver.next();
    expect(headers).toMatchObject({ "content-type": "text/plain", "user-agent": "mine" });
    expect(rawHeaders.filter((name) => /^content-type$/i.test(name))).toHaveLength(1);
  });

  test("sends an empty body with its length", async () => {
    const [egress, receiver] = await pair();
    expect(await post(egress, receiver.url, { body: new Uint8Array() })).toMatchObject({ kind: "delivered" });
    const request = await receiver.next();
    expect(request.headers["content-length"]).toBe("0");
    expect(() =>
      new Webhook(SECRET).verify("", request.headers as Record<string, string>, { jsonParse: false }),
    ).not.toThrow();
  });

  test("is verified by the standardwebhooks package as it arrived, and not with one byte changed", async () => {
    const [egress, receiver] = await pair();
    const rotated = newSecret();
    await post(egress, receiver.url, { signers: signersWith(SECRET, rotated) });
    const { body, headers } = await receiver.next();
    for (const secret of [SECRET, rotated]) {
      const webhook = new Webhook(secret);
      expect(webhook.verify(body.toString(), headers as Record<string, string>)).toEqual({ n: 1 });
      const changed = Buffer.from(body);
      changed[5] = (changed[5] ?? 0) ^ 1;
      expect(() => webhook.verify(changed.toString(), headers as Record<string, string>)).toThrow(/signature/);
    }
    expect(() => new Webhook(newSecret()).verify(body.toString(), headers as Record<string, string>)).toThrow();
  });

  test("opens what signs once while it is in use, and for no other owner than its own", async () => {
    const opened: string[] = [];
    const open: EgressOptions["open"] = (sealed, place) => {
      opened.push(place.join("/"));
      return openSealed(sealed, place);
    };
    const [egress, receiver] = await pair({}, { open });
    const signers = signersWith(SECRET);
    for (let n = 0; n < 3; n++) await post(egress, receiver.url, { signers });
    expect(opened).toHaveLength(1);
    const foreign = signers.map((signer) => ({ ...signer, ownerId: "other" }));
    await expect(post(egress, receiver.url, { signers: foreign })).rejects.toThrow(/sealed for another place/);
    expect(opened).toHaveLength(2);

    const rotated = newSecret();
    await post(egress, receiver.url, { signers: [...signersWith(rotated), ...signers] });
    const requests = [await receiver.next(), await receiver.next(), await receiver.next(), await receiver.next()];
    const { body, headers } = requests[3] ?? expect.fail();
    expect(`${headers["webhook-signature"]}`.split(" ")).toHaveLength(2);
    expect(() => new Webhook(rotated).verify(body.toString(), headers as Record<string, string>)).not.toThrow();
  });

  test("keeps its id over attempts and is signed anew for each", async () => {
    let nowMs = 1_700_000_000_000;
    const [egress, receiver] = await pair({}, { now: () => nowMs });
    await post(egress, receiver.url);
    nowMs += 60_000;
    await post(egress, receiver.url);
    const [first, second] = receiver.requests;
    expect(first?.headers["webhook-timestamp"]).toBe("1700000000");
    expect(second?.headers["webhook-timestamp"]).toBe("1700000060");
    expect(second?.headers["webhook-id"]).toBe(first?.headers["webhook-id"]);
    expect(second?.headers["webhook-signature"]).not.toBe(first?.headers["webhook-signature"]);
  });

  test("is refused as the caller's fault when its headers or its secrets break the rules", async () => {
    const [egress, receiver] = await pair();
    await expect(post(egress, receiver.url, { headers: { host: "other" } })).rejects.toThrow(/reserved/);
    await expect(post(egress, receiver.url, { contentType: "a\r\nx: y" })).rejects.toThrow(RangeError);
    await expect(post(egress, receiver.url, { signers: [] })).rejects.toThrow(RangeError);
    await expect(post(egress, receiver.url, { timeoutMs: 0 })).rejects.toThrow(RangeError);
    expect(receiver.count).toBe(0);
  });
});

describe("an answer", () => {
  test.each([200, 201, 202, 204, 299])("of status %i is delivered", async (status) => {
    const [egress, receiver] = await pair({ status });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered", status, responseComplete: true });
  });

  test.each([400, 401, 404, 429, 500, 503])("of status %i is rejected, and not for good", async (status) => {
    const [egress, receiver] = await pair({ status, body: "no", headers: { location: "/there" } });
    const outcome = await post(egress, receiver.url);
    expect(outcome).toMatchObject({ kind: "rejected", status, permanent: false });
    expect(outcome).not.toHaveProperty("retryAfterMs");
    expect(outcome).not.toHaveProperty("responseHeaders.location");
    expect(bodyOf(outcome)).toBe("no");
  });

  test("of status 410 is rejected for good", async () => {
    const [egress, receiver] = await pair({ status: 410 });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "rejected", status: 410, permanent: true });
  });

  test.each([301, 302, 303, 307, 308])("of status %i is rejected and not followed", async (status) => {
    const elsewhere = await startReceiver();
    const [egress, receiver] = await pair({
      status,
      headers: { location: `http://user:pw@127.0.0.1:${elsewhere.port}/next?token=1#x` },
    });
    expect(await post(egress, receiver.url)).toMatchObject({
      kind: "rejected",
      status,
      permanent: false,
      responseHeaders: { location: `${elsewhere.url}/next` },
    });
    expect(elsewhere.count + elsewhere.connections).toBe(0);
    expect(receiver.count).toBe(1);
    await elsewhere[Symbol.asyncDispose]();
  });

  test.each([
    ["/there?q=1", "/there"],
    ["javascript:alert(1)", undefined],
    ["http://[bad", undefined],
  ])("with Location %s records %s", async (location, recorded) => {
    const [egress, receiver] = await pair({ status: 302, headers: { location } });
    const outcome = await post(egress, receiver.url);
    expect(outcome.kind !== "failed" && outcome.responseHeaders["location"]).toBe(recorded && receiver.url + recorded);
  });

  test("hands on Retry-After in seconds and as a date", async () => {
    const now = Date.parse("Wed, 21 Oct 2026 07:28:00 GMT");
    const [egress, receiver] = await pair({}, { now: () => now });
    receiver.respond({ status: 429, headers: { "retry-after": "120" } });
    expect(await post(egress, receiver.url)).toMatchObject({ retryAfterMs: 120_000 });
    receiver.respond({ status: 503, headers: { "retry-after": "Wed, 21 Oct 2026 07:29:30 GMT" } });
    expect(await post(egress, receiver.url)).toMatchObject({ retryAfterMs: 90_000 });
    receiver.respond({ status: 503, headers: { "retry-after": "soon" } });
    expect(await post(egress, receiver.url)).not.toHaveProperty("retryAfterMs");
  });

  test("is kept up to 16 KiB", async () => {
    const [egress, receiver] = await pair({ status: 500, body: "x".repeat(16_384) });
    expect(await post(egress, receiver.url)).toMatchObject({ responseComplete: true });
    receiver.respond({ status: 500, body: "x".repeat(60_000) });
    const outcome = await post(egress, receiver.url);
    expect(outcome).toMatchObject({ status: 500, responseComplete: false });
    expect(bodyOf(outcome)).toHaveLength(16_384);
  });

  test("without an end is cut off", async () => {
    const [egress, receiver] = await pair({ trickle: { chunk: "x".repeat(4_096), everyMs: 0 } });
    const outcome = await post(egress, receiver.url, { timeoutMs: 60_000 });
    expect(outcome).toMatchObject({ kind: "delivered", responseComplete: false });
    expect(bodyOf(outcome)).toHaveLength(16_384);
    await receiver.drained();
  });

  test("that trickles ends at the deadline and counts by its status", async () => {
    const [egress, receiver] = await pair({ status: 503, trickle: { chunk: ".", everyMs: 20 } });
    const outcome = await post(egress, receiver.url, { timeoutMs: 250 });
    expect(outcome).toMatchObject({ kind: "rejected", status: 503, responseComplete: false });
    expect(outcome.durationMs).toBeGreaterThanOrEqual(240);
    expect(outcome.durationMs).toBeLessThan(2_000);
  });

  test.each([{ reset: "after_headers" }, { hang: "after_headers" }] as const)(
    "that breaks off after its status counts by its status: %o",
    async (reply) => {
      const [egress, receiver] = await pair(reply);
      expect(await post(egress, receiver.url, { timeoutMs: 300 })).toMatchObject({
        kind: "delivered",
        status: 200,
        responseComplete: false,
      });
    },
  );

  test("is not decompressed, bomb or not", async () => {
    const bomb = gzipSync(Buffer.alloc(8 * 1024 * 1024));
    const [egress, receiver] = await pair({ headers: { "content-encoding": "gzip" }, body: bomb });
    const outcome = await post(egress, receiver.url);
    expect(outcome).toMatchObject({ kind: "delivered", responseComplete: true });
    expect(outcome.kind === "delivered" && Buffer.from(outcome.responseBody)).toEqual(bomb);
  });

  test("with more than it announced ends where it announced, and the rest is nobody's answer", async () => {
    const [egress, receiver] = await pair({
      raw: "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n",
    });
    const outcome = await post(egress, receiver.url);
    expect(outcome).toMatchObject({ kind: "delivered", responseComplete: true });
    expect(bodyOf(outcome)).toBe("ok");
    receiver.respond({ status: 201 });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered", status: 201 });
  });

  test("with less than it announced counts by its status", async () => {
    await using server = await startRaw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort");
    const [egress] = await pair();
    const outcome = await post(egress, server.url);
    expect(outcome).toMatchObject({ kind: "delivered", responseComplete: false });
    expect(bodyOf(outcome)).toBe("short");
  });

  test("comes after a few interim responses, but not after a flood of them", async () => {
    const interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    const [egress, receiver] = await pair({
      raw: `${interim.repeat(3)}HTTP/1.1 202 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`,
    });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered", status: 202 });
    receiver.respond({ raw: `${interim.repeat(50)}HTTP/1.1 202 OK\r\ncontent-length: 0\r\n\r\n` });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "failed", error: "response_invalid" });
  });
});

describe("an attempt fails", () => {
  test.each([
    ["huge headers", `HTTP/1.1 200 OK\r\nx: ${"y".repeat(20_000)}\r\n\r\n`],
    ["many headers", `HTTP/1.1 200 OK\r\n${"x: y\r\n".repeat(10_000)}\r\n`],
    ["headers without an end", `HTTP/1.1 200 OK\r\nx: ${"y".repeat(20_000)}`],
    ["garbage", "SSH-2.0-OpenSSH_9.2p1\r\n"],
    ["HTTP/0.9", "<html>hello</html>"],
    ["an upgrade", "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"],
    ["length and chunks", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
  ])("as response_invalid on %s", async (_, bytes) => {
    const [egress, receiver] = await pair({ raw: bytes });
    const outcome = await post(egress, receiver.url);
    expect(outcome).toMatchObject({ kind: "failed", error: "response_invalid" });
    expect(JSON.stringify(outcome)).not.toMatch(/SSH|127\.0/);
  });

  test("as timeout when nothing answers", async () => {
    const [egress, receiver] = await pair({ hang: "before_headers" });
    const outcome = await post(egress, receiver.url, { timeoutMs: 200 });
    expect(outcome).toMatchObject({ kind: "failed", error: "timeout" });
    expect(outcome.durationMs).toBeGreaterThanOrEqual(190);
    expect(outcome.durationMs).toBeLessThan(2_000);
  });

  test("and lets go of its connection", async () => {
    const [egress, receiver] = await pair({ hang: "before_headers" });
    expect(await post(egress, receiver.url, { timeoutMs: 50 })).toMatchObject({ error: "timeout" });
    await receiver.drained();
    receiver.respond({ trickle: { chunk: ".", everyMs: 10 } });
    expect(await post(egress, receiver.url, { timeoutMs: 50 })).toMatchObject({ kind: "delivered" });
    await receiver.drained();
  });

  test("as timeout when headers trickle in", async () => {
    const server = createServer((socket) => {
      socket.on("error", () => {}).write("HTTP/1.1 200 OK\r\n");
      const timer = setInterval(() => socket.write("x: y\r\n"), 20);
      socket.once("close", () => clearInterval(timer));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const address = server.address();
    const [egress] = await pair();
    const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
    expect(await post(egress, url, { timeoutMs: 250 })).toMatchObject({ kind: "failed", error: "timeout" });
    server.close();
  });

  test("as timeout while DNS hangs, and dns_failed when the name is unknown or has no address or too many", async () => {
    const lookups: Record<string, () => Promise<string[]>> = {
      "hangs.example.com": () => new Promise(() => {}),
      "unknown.example.com": () => Promise.reject(Object.assign(new Error("ENOTFOUND"), { code: "ENOTFOUND" })),
      "empty.example.com": () => Promise.resolve([]),
      "many.example.com": () => Promise.resolve(Array.from({ length: 17 }, (_, n) => `8.8.8.${n}`)),
    };
    const [egress] = await pair({}, { lookup: (host) => lookups[host]?.() ?? Promise.reject(new Error(host)) });
    expect(await post(egress, "https://hangs.example.com", { timeoutMs: 100 })).toMatchObject({ error: "timeout" });
    for (const name of ["unknown", "empty", "many"]) {
      expect(await post(egress, `https://${name}.example.com`)).toMatchObject({ kind: "failed", error: "dns_failed" });
    }
  });

  test("as reset when the connection is cut before the answer", async () => {
    const [egress, receiver] = await pair({ reset: "before_headers" });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "failed", error: "reset" });
    expect(receiver.count).toBe(1);
  });

  test("as connect_failed when nothing listens, without the address in the text", async () => {
    const [egress] = await pair();
    const port = await closedPort();
    const outcome = await post(egress, `http://127.0.0.1:${port}/`);
    expect(outcome).toMatchObject({ kind: "failed", error: "connect_failed" });
    expect(JSON.stringify(outcome)).not.toMatch(/127\.0|ECONN|:\d{4,5}/);
  });

  test("as timeout when the connection takes longer than the deadline, and nothing is sent afterwards", async () => {
    const { promise: gate, resolve: open } = Promise.withResolvers<void>();
    const { promise: connected, resolve: onConnected } = Promise.withResolvers<void>();
    const connect = createConnector();
    const [egress, receiver] = await pair(
      {},
      {
        connect: async (endpoint, signal, timings) => {
          await gate;
          setImmediate(onConnected);
          return connect(endpoint, signal, timings);
        },
      },
    );
    expect(await post(egress, receiver.url, { timeoutMs: 50 })).toMatchObject({ kind: "failed", error: "timeout" });
    open();
    await connected;
    await post(egress, receiver.url, { id: "second" });
    expect(receiver.requests.map((request) => request.headers["webhook-id"])).toEqual(["second"]);
  });

  test("as cancelled when the caller gives up, before and during", async () => {
    const [egress, receiver] = await pair({ hang: "before_headers" });
    expect(await post(egress, receiver.url, { signal: AbortSignal.abort() })).toMatchObject({ error: "cancelled" });
    expect(receiver.connections).toBe(0);
    const caller = new AbortController();
    const outcome = post(egress, receiver.url, { signal: caller.signal });
    await receiver.next();
    caller.abort();
    expect(await outcome).toMatchObject({ kind: "failed", error: "cancelled" });
  });

  test("as cancelled when the egress is disposed of", async () => {
    const [egress, receiver] = await pair({ hang: "before_headers" });
    const outcome = post(egress, receiver.url);
    await receiver.next();
    await egress[Symbol.asyncDispose]();
    expect(await outcome).toMatchObject({ kind: "failed", error: "cancelled" });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "failed", error: "cancelled" });
  });
});

describe("connections", () => {
  test("are used again", async () => {
    const [egress, receiver] = await pair();
    for (let n = 0; n < 20; n++) await post(egress, receiver.url);
    expect(receiver.count).toBe(20);
    expect(receiver.connections).toBe(1);
  });

  test("are never opened by a request that was given up", async () => {
    const connect = createConnector();
    const { promise: dialled, resolve: onDial } = Promise.withResolvers<AbortSignal>();
    const { promise: gate, resolve: open } = Promise.withResolvers<void>();
    const [egress, receiver] = await pair(
      {},
      {
        connect: async (endpoint, signal, timings) => {
          onDial(signal);
          await gate;
          return connect(endpoint, signal, timings);
        },
      },
    );
    const caller = new AbortController();
    const outcome = post(egress, receiver.url, { signal: caller.signal });
    const dialling = await dialled;
    caller.abort();
    open();
    expect(await outcome).toMatchObject({ error: "cancelled" });
    expect(dialling.aborted).toBe(true);
    await post(egress, receiver.url);
    expect(receiver.connections).toBe(1);
  });

  test("carry one request at a time", async () => {
    const { promise: gate, resolve: open } = Promise.withResolvers<Reply>();
    const [egress, receiver] = await pair();
    receiver.respond(() => gate);
    const outcomes = Array.from({ length: 5 }, () => post(egress, receiver.url));
    for (let n = 0; n < 5; n++) await receiver.next();
    expect(receiver.connections).toBe(5);
    open({});
    for (const outcome of await Promise.all(outcomes)) expect(outcome.kind).toBe("delivered");
  });

  test("fall back to another permitted address when the first refuses", async () => {
    const receiver = await startReceiver();
    const port = receiver.port;
    const refuse = createConnector();
    const tried: bigint[] = [];
    await using egress = createEgress({
      open: openSealed,
      policy: { allowHttp: false, allowLoopback: false, allow: parseAllowList(`hook.example.com:${port}`) },
      lookup: async () => ["127.0.0.9", "127.0.0.1"],
      connect: (endpoint, signal, timings) => {
        tried.push(endpoint.address.value & 0xffn);
        return refuse(endpoint.address.value === 0x7f000009n ? { ...endpoint, port: 1 } : endpoint, signal, timings);
      },
    });
    expect(await post(egress, `http://hook.example.com:${port}/`)).toMatchObject({ kind: "delivered" });
    expect(tried).toEqual([9n, 1n]);
    expect(receiver.requests[0]?.headers.host).toBe(`hook.example.com:${port}`);
    await receiver[Symbol.asyncDispose]();
  });

  test("to a name that has moved are not used again", async () => {
    await using receiver = await startReceiver();
    const answers = [["127.0.0.1"], ["127.0.0.1"], ["127.0.0.3"]];
    await using egress = createEgress({
      open: openSealed,
      policy: { allowHttp: false, allowLoopback: false, allow: parseAllowList("127.0.0.1") },
      lookup: async () => answers.shift() ?? [],
    });
    const url = `http://hook.example.com:${receiver.port}/`;
    expect(await post(egress, url)).toMatchObject({ kind: "delivered" });
    expect(await post(egress, url)).toMatchObject({ kind: "delivered" });
    expect(await post(egress, url)).toMatchObject({ kind: "failed", error: "dns_failed" });
    expect(receiver.count).toBe(2);
  });

  test("ignore the proxies of the environment", async () => {
    await using proxy = await startReceiver();
    for (const name of ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"]) process.env[name] = proxy.url;
    process.env["NODE_USE_ENV_PROXY"] = "1";
    onTestFinished(() => {
      for (const name of ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NODE_USE_ENV_PROXY"]) {
        delete process.env[name];
      }
    });
    const [egress, receiver] = await pair();
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered" });
    expect(proxy.connections).toBe(0);
  });

  test("to this server itself are refused, by address and through a wildcard", async () => {
    await using receiver = await startReceiver();
    for (const host of ["127.0.0.1", "0.0.0.0", "::"]) {
      await using egress = createEgress({
        open: openSealed,
        policy: { ...DEVELOPMENT, ownAddresses: [{ host, port: receiver.port }] },
      });
      expect(await post(egress, receiver.url)).toMatchObject({ error: "blocked_address" });
      const byName = await post(egress, `http://localhost:${receiver.port}/`);
      // With IPv4 alone its own, the name may still mean somebody else's port on ::1.
      expect(byName).toMatchObject({ error: host === "127.0.0.1" ? "connect_failed" : "dns_failed" });
    }
    // Through the connector alone, as for an address of this machine that the policy cannot know.
    await using egress = createEgress({
      open: openSealed,
      policy: DEVELOPMENT,
      connect: createConnector({ ownPorts: [receiver.port] }),
    });
    expect(await post(egress, receiver.url)).toMatchObject({ error: "blocked_address" });
    expect(receiver.count).toBe(0);
  });

  test("reach localhost in development, on IPv4", async () => {
    const [egress, receiver] = await pair();
    expect(await post(egress, `http://localhost:${receiver.port}/`)).toMatchObject({ kind: "delivered" });
    expect(receiver.requests[0]?.headers.host).toBe(`localhost:${receiver.port}`);
  });
});

describe("a request on a kept connection", () => {
  /** What a receiver does with a request on a connection on which it has answered one. */
  type Ending = (socket: Socket) => void;

  /** A receiver that answers the first request of each connection, and ends the next one in the given way. */
  async function closing(ending: Ending, { endsNew = false } = {}) {
    const requests: string[] = [];
    let connections = 0;
    const server = createServer((socket) => {
      const number = ++connections;
      let answered = 0;
      socket
        .on("error", () => {})
        .on("data", (bytes) => {
          requests.push(`${number} ${/webhook-id: (\S+)/.exec(bytes.toString())?.[1]}`);
          if (answered++ > 0 || (endsNew && number > 1)) ending(socket);
          else socket.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const [egress] = await pair();
    onTestFinished(async () => {
      await egress[Symbol.asyncDispose]();
      server.close();
    });
    const address = server.address();
    const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}/`;
    expect(await post(egress, url, { id: "kept" })).toMatchObject({ kind: "delivered" });
    return { egress, url, requests };
  }

  test.each<[string, Ending]>([
    ["closes", (socket) => socket.end()],
    ["resets", (socket) => socket.resetAndDestroy()],
  ])("that the receiver %s unanswered is sent once more, on a new one", async (_, ending) => {
    const { egress, url, requests } = await closing(ending);
    const outcome = await post(egress, url, { id: "stale" });
    expect(outcome).toMatchObject({ kind: "delivered" });
    expect(outcome.timings).toHaveProperty("connectMs");
    expect(requests).toEqual(["1 kept", "1 stale", "2 stale"]);
  });

  test("is sent no third time", async () => {
    const { egress, url, requests } = await closing((socket) => socket.end(), { endsNew: true });
    expect(await post(egress, url, { id: "stale" })).toMatchObject({ kind: "failed", error: "reset" });
    expect(requests).toEqual(["1 kept", "1 stale", "2 stale"]);
  });

  test.each([
    ["a first byte", "H", "reset"],
    ["an interim response", "HTTP/1.1 103 Early Hints\r\n\r\n", "reset"],
    ["garbage", "SSH-2.0\r\n", "response_invalid"],
  ])("is not sent again after %s of an answer", async (_, bytes, error) => {
    const { egress, url, requests } = await closing((socket) => socket.end(bytes));
    expect(await post(egress, url, { id: "begun" })).toMatchObject({ kind: "failed", error });
    expect(requests).toEqual(["1 kept", "1 begun"]);
  });

  test("is not sent again when its time is up or its caller gives up", async () => {
    const late = await closing(() => {});
    expect(await post(late.egress, late.url, { id: "late", timeoutMs: 50 })).toMatchObject({ error: "timeout" });
    expect(late.requests).toEqual(["1 kept", "1 late"]);

    const caller = new AbortController();
    const given = await closing((socket) => {
      caller.abort();
      socket.end();
    });
    const outcome = await post(given.egress, given.url, { id: "given-up", signal: caller.signal });
    expect(outcome).toMatchObject({ error: "cancelled" });
    expect(given.requests).toEqual(["1 kept", "1 given-up"]);
  });

  test("ends at its deadline on the new one too", async () => {
    let ended = 0;
    const { egress, url, requests } = await closing((socket) => void (ended++ === 0 && socket.end()), {
      endsNew: true,
    });
    expect(await post(egress, url, { id: "stale", timeoutMs: 300 })).toMatchObject({ error: "timeout" });
    expect(requests).toEqual(["1 kept", "1 stale", "2 stale"]);
  });

  test("is sent once more to the very address that was judged, whatever the name means by then", async () => {
    await using receiver = await startReceiver();
    receiver.respond((_, index) => (index === 1 ? { reset: "before_headers" } : {}));
    const connect = createConnector();
    const dialled: string[] = [];
    const answers = [["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]];
    await using egress = createEgress({
      open: openSealed,
      policy: { allowHttp: false, allowLoopback: false, allow: parseAllowList("127.0.0.1") },
      lookup: async () => answers.shift() ?? [],
      connect: (endpoint, signal, timings) => {
        dialled.push(formatAddress(endpoint.address));
        return connect(endpoint, signal, timings);
      },
    });
    const url = `http://hook.example.com:${receiver.port}/`;
    for (let n = 0; n < 2; n++) expect(await post(egress, url)).toMatchObject({ kind: "delivered" });
    expect(receiver.count).toBe(3);
    expect(await post(egress, url)).toMatchObject({ error: "dns_failed" });
    expect(dialled).toEqual(["127.0.0.1", "127.0.0.1"]);
  });

  test("is not sent twice by a new connection that the guard refuses", async () => {
    await using receiver = await startReceiver();
    receiver.respond((_, index) => (index === 1 ? { reset: "before_headers" } : {}));
    const connectors = [createConnector(), createConnector({ ownPorts: [receiver.port] })];
    await using egress = createEgress({
      open: openSealed,
      policy: DEVELOPMENT,
      connect: (...dial) => (connectors.shift() ?? expect.fail())(...dial),
    });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered" });
    expect(await post(egress, receiver.url)).toMatchObject({ error: "blocked_address" });
    expect(receiver.count).toBe(2);
  });

  test("that closes behind each answer is counted as opened for each", async () => {
    const server = createServer((socket) => {
      socket.on("error", () => {}).once("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const [egress] = await pair();
    const address = server.address();
    const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}/`;
    for (let n = 0; n < 20; n++) {
      const outcome = await post(egress, url);
      expect(outcome.kind).toBe("delivered");
      expect(outcome.timings).toHaveProperty("connectMs");
    }
  });
});

describe("what is known of an attempt", () => {
  test("is where its time went, with the connection only where one was opened", async () => {
    const name = "hook.example.com";
    const certificate = selfSigned([name]);
    await using receiver = await startReceiver({ tls: certificate });
    await using egress = createEgress({
      open: openSealed,
      policy: { allowHttp: false, allowLoopback: false, allow: parseAllowList(`${name}:${receiver.port}`) },
      lookup: async () => ["127.0.0.1"],
      connect: createConnector({ ca: certificate.cert }),
    });
    const url = `https://${name}:${receiver.port}/`;
    const first = await post(egress, url);
    const { dnsMs = -1, connectMs = -1, tlsMs = -1, firstByteMs = -1 } = first.timings;
    for (const ms of [dnsMs, connectMs, tlsMs, firstByteMs]) expect(ms).toBeGreaterThanOrEqual(0);
    expect(dnsMs + connectMs + tlsMs + firstByteMs).toBeLessThan(first.durationMs + 2);
    expect(tlsMs).toBeGreaterThan(0);
    const second = await post(egress, url);
    expect(Object.keys(second.timings).toSorted()).toEqual(["dnsMs", "firstByteMs"]);
  });

  test("is what was reached before it failed", async () => {
    const [egress, receiver] = await pair({ reset: "before_headers" });
    const { kind, timings } = await post(egress, receiver.url);
    expect([kind, Object.keys(timings)]).toEqual(["failed", ["connectMs"]]);
  });

  test("is what was sent, without credentials and without the signature", async () => {
    const [egress, receiver] = await pair();
    const headers = { authorization: "Bearer x", "x-api-key": "y", "x-shop": "7" };
    const { requestHeaders } = await post(egress, receiver.url, { headers });
    expect(requestHeaders).toMatchObject({
      authorization: "***",
      "x-api-key": "***",
      "x-shop": "7",
      "webhook-id": "msg_1",
      "webhook-signature": "***",
    });
    expect((await receiver.next()).headers).toMatchObject({ authorization: "Bearer x" });
  });

  test("is what was answered, without cookies and without the name of the software", async () => {
    const headers = { "x-request-id": "7".repeat(300), server: "nginx", "set-cookie": "a=b", "retry-after": "1" };
    const [egress, receiver] = await pair({ status: 503, headers });
    const outcome = await post(egress, receiver.url);
    if (outcome.kind === "failed") return expect.fail();
    expect(outcome.responseHeaders).toMatchObject({ "x-request-id": "7".repeat(256), "retry-after": "1" });
    expect(Object.keys(outcome.responseHeaders)).not.toEqual(expect.arrayContaining(["server"]));
    expect(Object.keys(outcome.responseHeaders)).not.toEqual(expect.arrayContaining(["set-cookie"]));
  });
});

describe("what a receiver asks for", () => {
  test.each([
    [{ status: 410 }, { kind: "rejected", permanent: true, disable: true, throttled: false }],
    [
      { status: 500, headers: { "carillon-control": "abort" } },
      { permanent: true, disable: false },
    ],
    [
      { status: 500, headers: { "webhook-delivery": "disable" } },
      { permanent: true, disable: true },
    ],
    [
      { status: 200, headers: { "carillon-control": "disable" } },
      { kind: "delivered", disable: true },
    ],
    [{ status: 200 }, { kind: "delivered", disable: false }],
    [{ status: 503 }, { throttled: true, permanent: false }],
    [
      { status: 429, headers: { "ratelimit-reset": "9" } },
      { throttled: true, retryAfterMs: 9_000 },
    ],
    [{ status: 500, headers: { "carillon-control": "retry-at=0" } }, { retryInMs: 0 }],
  ])("by %j is in the outcome", async (reply, expected) => {
    const [egress, receiver] = await pair(reply);
    expect(await post(egress, receiver.url)).toMatchObject(expected);
  });
});

describe("TLS", () => {
  const name = "hook.example.com";

  async function attempt(certificate: { cert: string; key: string }, ca = certificate.cert): Promise<AttemptOutcome> {
    await using receiver = await startReceiver({ tls: certificate });
    await using egress = createEgress({
      open: openSealed,
      policy: { allowHttp: false, allowLoopback: false, allow: parseAllowList(`${name}:${receiver.port}`) },
      lookup: async () => ["127.0.0.1"],
      connect: createConnector({ ca }),
    });
    const outcome = await post(egress, `https://${name}:${receiver.port}/`);
    expect(receiver.count).toBe(outcome.kind === "failed" ? 0 : 1);
    return outcome;
  }

  test("is spoken with a certificate for the target's name", async () => {
    expect(await attempt(selfSigned([name]))).toMatchObject({ kind: "delivered" });
  });

  test("fails on a certificate for another name", async () => {
    expect(await attempt(selfSigned(["other.example.com", "127.0.0.1"]))).toMatchObject({
      kind: "failed",
      error: "tls_failed",
      detail: "the certificate is for another name",
    });
  });

  test("fails on a certificate of an unknown authority", async () => {
    expect(await attempt(selfSigned([name]), selfSigned([name]).cert)).toMatchObject({
      error: "tls_failed",
      detail: "the certificate is not signed by a known authority",
    });
  });

  test("fails on an expired certificate", async () => {
    expect(await attempt(selfSigned([name], -86_400_000))).toMatchObject({
      error: "tls_failed",
      detail: "the certificate has expired",
    });
  });

  test("verifies the address when the target is an address", async () => {
    const certificate = selfSigned(["127.0.0.1"]);
    await using receiver = await startReceiver({ tls: certificate });
    await using egress = createEgress({
      open: openSealed,
      policy: DEVELOPMENT,
      connect: createConnector({ ca: certificate.cert }),
    });
    expect(await post(egress, receiver.url)).toMatchObject({ kind: "delivered" });
    await using other = createEgress({
      open: openSealed,
      policy: DEVELOPMENT,
      connect: createConnector({ ca: selfSigned([]).cert }),
    });
    expect(await post(other, receiver.url)).toMatchObject({ kind: "failed", error: "tls_failed" });
  });

  test("fails against a plain HTTP port", async () => {
    const [egress, receiver] = await pair();
    expect(await post(egress, `https://127.0.0.1:${receiver.port}/`)).toMatchObject({ error: "tls_failed" });
  });
});

function bodyOf(outcome: AttemptOutcome): string | undefined {
  return outcome.kind === "failed" ? undefined : Buffer.from(outcome.responseBody).toString();
}
