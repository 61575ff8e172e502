import * as http from "node:http";
import * as http2 from "node:http2";
import { gzipSync } from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { connectRaw, healthClient, PROTOCOLS, startTestApp, type TestApp } from "./harness.ts";

const CHECK = "/grpc.health.v1.Health/Check";

interface Answer {
  readonly status: number | undefined;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

/** One HTTP/1.1 request with exactly the given headers, which fetch would refuse or complete. */
async function send(
  app: TestApp,
  path: string,
  headers: http.OutgoingHttpHeaders = {},
  method = "GET",
  body?: string | Uint8Array,
): Promise<Answer> {
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    http
      .request({ port: app.port, host: "127.0.0.1", path, method, headers, agent: false }, resolve)
      .on("error", reject)
      .end(body);
  });
  const text = (await response.setEncoding("utf8").toArray()).join("");
  return { status: response.statusCode, headers: response.headers, body: text };
}

describe("health paths", () => {
  test("/healthz answers ok while the process runs, even when it is not ready", async () => {
    await using app = await startTestApp({ ready: async () => ({ ok: false, detail: "no database" }) });
    expect(await send(app, "/healthz")).toMatchObject({ status: 200, body: '{"status":"ok"}' });
    expect(await send(app, "/healthz", {}, "HEAD")).toMatchObject({ status: 200, body: "" });
  });

  test("/readyz says whether calls can be served, and why not", async () => {
    let ok = true;
    await using app = await startTestApp({ ready: async () => ({ ok, detail: { database: ok } }) });
    expect(await send(app, "/readyz")).toMatchObject({
      status: 200,
      body: '{"status":"ready","detail":{"database":true}}',
    });
    ok = false;
    expect(await send(app, "/readyz")).toMatchObject({
      status: 503,
      body: '{"status":"not_ready","detail":{"database":false}}',
    });
  });

  test("/readyz answers 503 when the check throws", async () => {
    await using throwing = await startTestApp({ ready: () => Promise.reject(new Error("secret")) });
    const answer = await send(throwing, "/readyz");
    expect(answer.status).toBe(503);
    expect(answer.body).not.toContain("secret");
  });

  test("many callers of /readyz cost one check", async () => {
    let checks = 0;
    const asked = Promise.withResolvers<void>();
    const finish = Promise.withResolvers<void>();
    await using app = await startTestApp({
      ready: async () => {
        checks++;
        asked.resolve();
        await finish.promise;
        return { ok: true, detail: null };
      },
    });
    const answers = Array.from({ length: 20 }, () => send(app, "/readyz"));
    await asked.promise;
    // A request sent after the others is answered after they have arrived.
    await send(app, "/healthz");
    finish.resolve();
    expect((await Promise.all(answers)).every(({ status }) => status === 200)).toBe(true);
    expect(checks).toBeLessThanOrEqual(2);
  });

  test("/readyz recovers after a check that hung", async () => {
    const hang = new Promise<never>(() => {});
    let calls = 0;
    await using app = await startTestApp({
      ready: () => (calls++ === 0 ? hang : Promise.resolve({ ok: true, detail: null })),
    });
    expect((await send(app, "/readyz")).status).toBe(503);
    expect((await send(app, "/readyz")).status).toBe(200);
  });

  test("/readyz answers 503 while the process drains", async () => {
    await using app = await startTestApp();
    app.shutdown.abort(new ConnectError("the server is shutting down", Code.Unavailable));
    expect(await send(app, "/readyz")).toMatchObject({
      status: 503,
      body: '{"status":"not_ready","detail":"draining"}',
    });
  });
});

describe("request ids", () => {
  test("the caller's own id reaches the handler and comes back", async () => {
    await using app = await startTestApp();
    const answer = await send(app, "/x", { "x-request-id": "order-17.a_B" });
    expect(answer.headers["x-request-id"]).toBe("order-17.a_B");
    expect(JSON.parse(answer.body)).toMatchObject({ requestId: "order-17.a_B" });
  });

  test.each([
    ["none", undefined],
    ["spaces", "a b"],
    ["too long", "a".repeat(129)],
    ["two", ["a", "b"]],
  ])("a new one is made when the caller's is unfit: %s", async (_, sent) => {
    await using app = await startTestApp();
    const answer = await send(app, "/x", sent === undefined ? {} : { "x-request-id": sent });
    expect(answer.headers["x-request-id"]).toMatch(/^req_[0-9a-f]{32}$/);
    expect(JSON.parse(answer.body)).toMatchObject({ requestId: answer.headers["x-request-id"] });
  });

  test.each(Object.keys(PROTOCOLS))("an RPC's answer has one over %s, and forbids sniffing", async (protocol) => {
    await using app = await startTestApp();
    let headers = new Headers();
    await healthClient(app, protocol).check(
      {},
      { headers: { "x-request-id": "mine" }, onHeader: (h) => (headers = h) },
    );
    expect(headers.get("x-request-id")).toBe("mine");
    expect(headers.get("x-content-type-options")).toBe("nosniff");
  });
});

describe("CORS", () => {
  const preflight = { "access-control-request-method": "PATCH", "access-control-request-headers": "authorization" };
  const cors = { allowedOrigins: ["https://console.example.com"], allowLoopback: false };

  test("a preflight of an allowed origin learns methods, headers and how long to remember them", async () => {
    await using app = await startTestApp({ cors });
    for (const path of ["/v1/things", CHECK]) {
      const answer = await send(app, path, { origin: "https://console.example.com", ...preflight }, "OPTIONS");
      expect(answer.status).toBe(204);
      expect(answer.headers).toMatchObject({
        "access-control-allow-origin": "https://console.example.com",
        "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
        "access-control-max-age": "7200",
        vary: "origin",
      });
      const allowed = answer.headers["access-control-allow-headers"]?.toLowerCase().split(", ");
      expect(allowed).toEqual(
        expect.arrayContaining([
          "authorization",
          "idempotency-key",
          "content-type",
          "connect-protocol-version",
          "x-grpc-web",
        ]),
      );
      expect(answer.headers).not.toHaveProperty("access-control-allow-credentials");
    }
  });

  test.each([
    ["REST", "/v1/things", "GET", undefined],
    ["an RPC", CHECK, "POST", "{}"],
  ])("an allowed origin may read %s and our headers", async (_, path, method, body) => {
    await using app = await startTestApp({ cors });
    const headers = { origin: "https://console.example.com", "content-type": "application/json" };
    const answer = await send(app, path, headers, method, body);
    expect(answer.status).toBe(200);
    expect(answer.headers).toMatchObject({
      "access-control-allow-origin": "https://console.example.com",
      vary: "origin",
    });
    const exposed = answer.headers["access-control-expose-headers"]?.toLowerCase().split(", ");
    expect(exposed).toEqual(
      expect.arrayContaining(["x-scheduling-warning", "idempotency-replayed", "x-request-id", "grpc-status"]),
    );
  });

  test.each([
    "https://evil.example.com",
    "https://console.example.com.evil.com",
    "http://console.example.com",
    "null",
    "http://localhost:5173",
  ])("the origin %s is told nothing", async (origin) => {
    await using app = await startTestApp({ cors });
    const answers = [await send(app, "/x", { origin, ...preflight }, "OPTIONS"), await send(app, "/x", { origin })];
    for (const { headers } of answers) {
      expect(Object.keys(headers).filter((name) => name.startsWith("access-control"))).toEqual([]);
      expect(headers.vary).toBe("origin");
    }
  });

  test.each([
    ["http://localhost:5173", true],
    ["http://app.localhost", true],
    ["https://127.0.0.1:8443", true],
    ["http://127.9.9.9", true],
    ["http://[::1]:3000", true],
    ["http://localhost.evil.com", false],
    ["http://127.0.0.1.evil.com", false],
    ["http://10.0.0.1", false],
    ["file://localhost", false],
    ["null", false],
  ])("in development, whether %s counts as loopback: %s", async (origin, allowed) => {
    await using app = await startTestApp();
    const { headers } = await send(app, "/x", { origin });
    expect(headers["access-control-allow-origin"]).toBe(allowed ? origin : undefined);
  });
});

describe("requests that no handler may see", () => {
  test.each([["a b"], ["a:b:c"], ["[::1"]])("a Host that is no host (%j) is answered 400", async (host) => {
    await using app = await startTestApp();
    const answer = await send(app, CHECK, { host, "content-type": "application/json" }, "POST", "{}");
    expect(answer.status).toBe(400);
    expect(app.faults).toEqual([]);
  });

  test("an :authority that is no host is answered 400", async () => {
    await using app = await startTestApp();
    const session = http2.connect(app.url);
    const stream = session.request({
      ":method": "POST",
      ":path": CHECK,
      ":authority": "a:b:c",
      "content-type": "application/json",
    });
    stream.end("{}");
    const status = await new Promise((resolve) => stream.once("response", (headers) => resolve(headers[":status"])));
    expect(status).toBe(400);
    session.destroy();
  });

  test("a handler that throws is answered 500 and reported, and the port goes on", async () => {
    const broken = new Error("broken");
    await using app = await startTestApp({
      rest: () => {
        throw broken;
      },
    });
    expect((await send(app, "/x")).status).toBe(500);
    expect(app.faults).toEqual([broken]);
    expect((await send(app, "/healthz")).status).toBe(200);
  });

  test("a caller that hangs up in the middle of a stream is no fault", async () => {
    await using app = await startTestApp();
    for (const protocol of Object.keys(PROTOCOLS)) {
      const hangUp = new AbortController();
      const stream = healthClient(app, protocol).watch({}, { signal: hangUp.signal })[Symbol.asyncIterator]();
      await stream.next();
      hangUp.abort();
      await stream.next().catch(() => {});
    }
    await app.stop(5_000);
    expect(app.faults).toEqual([]);
  });
});

describe("size limits", () => {
  const connect = { readMaxBytes: 10_000 };

  test.each(Object.keys(PROTOCOLS))("a message over readMaxBytes is refused over %s", async (protocol) => {
    await using app = await startTestApp({ connect });
    const call = healthClient(app, protocol).check({ service: "a".repeat(20_000) });
    await expect(call).rejects.toMatchObject({ code: Code.ResourceExhausted });
  });

  test("a gzip bomb is refused once it unpacks to more than readMaxBytes, and costs little memory", async () => {
    await using app = await startTestApp({ connect: { readMaxBytes: 1_000_000 } });
    const bomb = gzipSync(`{"service":"${"a".repeat(100_000_000)}"}`);
    const headers = { "content-type": "application/json", "content-encoding": "gzip" };
    const before = process.memoryUsage.rss();
    const answers = await Promise.all(Array.from({ length: 10 }, () => send(app, CHECK, headers, "POST", bomb)));
    for (const answer of answers) {
      expect(answer.status).toBe(429);
      expect(JSON.parse(answer.body).code).toBe("resource_exhausted");
    }
    expect(process.memoryUsage.rss() - before).toBeLessThan(100_000_000);
  });

  test("a gzip bomb in a stream's envelope is refused", async () => {
    await using app = await startTestApp({ connect });
    const packed = gzipSync(Buffer.alloc(1_000_000));
    const envelope = Buffer.concat([Buffer.from([1, 0, 0, 0, 0]), packed]);
    envelope.writeUInt32BE(packed.length, 1);
    const headers = { "content-type": "application/connect+json", "connect-content-encoding": "gzip" };
    const answer = await send(app, "/grpc.health.v1.Health/Watch", headers, "POST", envelope);
    expect(answer.body).toContain("resource_exhausted");
  });

  test("brotli is neither taken nor sent", async () => {
    await using app = await startTestApp({ connect: { compressMinBytes: 1 } });
    const json = { "content-type": "application/json" };
    const taken = await send(app, CHECK, { ...json, "content-encoding": "br" }, "POST", "x");
    expect(JSON.parse(taken.body)).toMatchObject({ code: "unimplemented" });
    const sent = await send(app, CHECK, { ...json, "accept-encoding": "br" }, "POST", "{}");
    expect(sent.headers["content-encoding"]).toBeUndefined();
    const gzipped = await send(app, CHECK, { ...json, "accept-encoding": "br, gzip" }, "POST", "{}");
    expect(gzipped.headers["content-encoding"]).toBe("gzip");
  });

  test.each([
    ["both Content-Length and Transfer-Encoding", "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
    ["two lengths", "content-length: 2\r\ncontent-length: 3\r\n\r\n{}"],
    ["a folded header", "x-a: 1\r\n 2\r\n\r\n"],
    ["no host", "\r\n"],
  ])("a request that two parsers could read differently is answered 400: %s", async (what, rest) => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    client.socket.write(`POST /x HTTP/1.1\r\n${what === "no host" ? "" : "host: a\r\n"}${rest}`);
    await client.until("HTTP/1.1 400 Bad Request");
  });
});
