import { once } from "node:events";
import * as http2 from "node:http2";
import * as net from "node:net";
import { setImmediate as turn } from "node:timers/promises";
import * as tls from "node:tls";
import { describe, expect, test } from "vitest";
import { HealthCheckResponse_ServingStatus as Status } from "../../gen/grpc/health/v1/health_pb.js";
import { startOnePort } from "../../src/http/one-port.ts";
import { selfSigned } from "../support/certificate.ts";
import { connectRaw, healthClient, PROTOCOLS, startTestApp } from "./harness.ts";

const PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
const tlsFiles = selfSigned(["127.0.0.1"]);

describe.each([
  ["cleartext", {}],
  ["TLS", { tls: tlsFiles }],
])("one %s port", (_, options) => {
  test.each(Object.keys(PROTOCOLS))("answers %s", async (protocol) => {
    await using app = await startTestApp(options);
    const { status } = await healthClient(app, protocol).check({ service: "" });
    expect(status).toBe(Status.SERVING);
  });

  test("answers 300 calls at once on one HTTP/2 session", async () => {
    await using app = await startTestApp(options);
    const client = healthClient(app, "gRPC over HTTP/2");
    const answers = await Promise.all(Array.from({ length: 300 }, () => client.check({ service: "" })));
    expect(answers.filter(({ status }) => status === Status.SERVING)).toHaveLength(300);
  });

  test("gives every other path to REST, over HTTP/2 too", async () => {
    await using app = await startTestApp(options);
    const session = http2.connect(app.url, { rejectUnauthorized: false });
    const stream = session.request({ ":path": "/v1/things?a=1" });
    const body = (await stream.setEncoding("utf8").toArray()).join("");
    session.close();
    expect(JSON.parse(body)).toMatchObject({ rest: "/v1/things?a=1" });
  });
});

describe("telling cleartext protocols apart", () => {
  test("an HTTP/2 preface may arrive byte by byte", async () => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    for (const byte of Buffer.from(PREFACE)) {
      client.socket.write(Buffer.from([byte]));
      await turn();
    }
    client.socket.write(EMPTY_SETTINGS);
    // A frame header: 3 bytes of length, then type 4, SETTINGS.
    while (client.received().length < 9) await once(client.socket, "data");
    expect(client.received()[3]).toBe(4);
  });

  test("an HTTP/1.1 request that starts like the preface may arrive byte by byte", async () => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    for (const byte of Buffer.from("PROPFIND /x HTTP/1.1\r\nhost: a\r\n\r\n")) {
      client.socket.write(Buffer.from([byte]));
      await turn();
    }
    await client.until('{"rest":"/x"');
  });

  test("a request to upgrade to h2c is answered over HTTP/1.1", async () => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    client.socket.write(
      "GET /x HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
    );
    await client.until("HTTP/1.1 200 OK");
  });

  test("several requests in one packet are all answered", async () => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    client.socket.write("GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n");
    await client.until('{"rest":"/a"');
    await client.until('{"rest":"/b"');
  });

  test("a client that ends or resets while undecided does no harm", async () => {
    await using app = await startTestApp();
    using ended = await connectRaw(app.port);
    ended.socket.end("PRI * HT");
    await ended.closed;
    using reset = await connectRaw(app.port);
    reset.socket.write("PRI");
    await turn();
    reset.socket.resetAndDestroy();
    expect((await fetch(`${app.url}/healthz`)).status).toBe(200);
  });
});

describe("limits", () => {
  test("a silent connection is closed after the sniff time", async () => {
    await using app = await startTestApp({ limits: { sniffTimeoutMs: 100 } });
    using client = await connectRaw(app.port);
    expect(await client.closed).toBe("");
  });

  test("a TLS connection that starts no handshake is closed after the sniff time", async () => {
    await using app = await startTestApp({ tls: tlsFiles, limits: { sniffTimeoutMs: 100 } });
    using client = await connectRaw(app.port);
    expect(await client.closed).toBe("");
  });

  test("half-sent headers are answered 408 and closed", async () => {
    await using app = await startTestApp({ limits: { headersTimeoutMs: 100 } });
    using client = await connectRaw(app.port);
    client.socket.write("GET / HTTP/1.1\r\nhost: a\r\nx-slow:");
    expect(await client.closed).toContain("408 Request Timeout");
  });

  test("a half-sent body is answered 408 and closed", async () => {
    await using app = await startTestApp({ limits: { headersTimeoutMs: 100, requestTimeoutMs: 200 }, rest: () => {} });
    using client = await connectRaw(app.port);
    client.socket.write("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345");
    expect(await client.closed).toContain("408 Request Timeout");
  });

  test.each([
    ["half-sent headers", "GET / HTTP/1.1\r\nhost: a\r\nx-slow:"],
    ["a half-sent body", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345"],
  ])("%s over TLS: answered 408 and closed", async (_, sent) => {
    await using app = await startTestApp({
      tls: tlsFiles,
      limits: { headersTimeoutMs: 100, requestTimeoutMs: 200 },
      rest: () => {},
    });
    const socket = tls.connect({ port: app.port, host: "127.0.0.1", rejectUnauthorized: false });
    socket.write(sent);
    const received = (await socket.setEncoding("latin1").toArray()).join("");
    expect(received).toContain("408 Request Timeout");
  });

  test("an answer may take longer than the time to receive a request", async () => {
    const asked = Promise.withResolvers<() => void>();
    await using app = await startTestApp({
      limits: { headersTimeoutMs: 50, requestTimeoutMs: 50 },
      rest: (_, response) => asked.resolve(() => response.end("late")),
    });
    using overdue = await connectRaw(app.port);
    const answer = fetch(`${app.url}/slow`).then((response) => response.text());
    const respond = await asked.promise;
    // Closed by the same check that would have cut the request, had it counted.
    overdue.socket.write("GET / HTTP/1.1\r\n");
    await overdue.closed;
    respond();
    expect(await answer).toBe("late");
  });

  test("a connection that waits for its next request too long is closed", async () => {
    await using app = await startTestApp({ limits: { keepAliveTimeoutMs: 100 } });
    using client = await connectRaw(app.port);
    client.socket.write("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    expect(await client.closed).toContain("200 OK");
  });

  test("HTTP/1.1 headers over the limit are answered 431", async () => {
    await using app = await startTestApp({ limits: { maxHeaderBytes: 4_096 } });
    using client = await connectRaw(app.port);
    client.socket.write(`GET / HTTP/1.1\r\nhost: a\r\nx-big: ${"a".repeat(5_000)}\r\n\r\n`);
    expect(await client.closed).toContain("431 Request Header Fields Too Large");
  });

  test.each([
    ["bytes", { "x-big": "a".repeat(17_000) }],
    ["count", Object.fromEntries(Array.from({ length: 120 }, (_, i) => [`x-${i}`, "1"]))],
  ])("an HTTP/2 stream whose headers are over the limit in %s is reset, the session goes on", async (_, headers) => {
    await using app = await startTestApp();
    const session = http2.connect(app.url);
    // The limit in bytes holds from the client's acknowledgement of the server's settings on; until then it is 64 KiB.
    await once(session, "remoteSettings");
    const stream = session.request({ ":path": "/", ...headers });
    const [error] = await once(stream, "error").catch((reason: unknown) => [reason]);
    expect(String(error)).toMatch(/NGHTTP2_ENHANCE_YOUR_CALM/);
    const next = session.request({ ":path": "/healthz" });
    const [answer] = await once(next, "response");
    expect(answer[":status"]).toBe(200);
    session.destroy();
  });

  test("connections beyond the limit are closed at once", async () => {
    await using app = await startTestApp({ limits: { maxConnections: 1 } });
    using first = await connectRaw(app.port);
    first.socket.write("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    await first.until("200 OK");
    using second = await connectRaw(app.port);
    expect(await second.closed).toBe("");
  });

  test("a client that opens and resets streams rapidly loses its session", async () => {
    await using app = await startTestApp({ limits: { streamResetBurst: 50, streamResetsPerSecond: 10 } });
    const session = http2.connect(app.url);
    const closed = new Promise<void>((resolve) => session.once("close", () => resolve()));
    let goaway: number | undefined;
    session.on("goaway", (code) => {
      goaway = code;
    });
    session.on("error", () => {});
    let opened = 0;
    while (!session.closed && !session.destroyed && opened < 5_000) {
      const stream = session.request({ ":path": "/x", ":method": "POST" });
      stream.on("error", () => {});
      opened++;
      await turn();
      stream.close(http2.constants.NGHTTP2_CANCEL);
    }
    await closed;
    expect(goaway).toBe(http2.constants.NGHTTP2_INTERNAL_ERROR);
    expect(opened).toBeLessThan(500);
    expect((await fetch(`${app.url}/healthz`)).status).toBe(200);
  });

  test("an HTTP/2 client may upload more than 64 KiB per round trip", async () => {
    await using app = await startTestApp();
    const session = http2.connect(app.url);
    const stream = session.request({ ":path": "/healthz" });
    await once(stream, "response");
    expect(session.state.remoteWindowSize).toBeGreaterThanOrEqual(4_000_000);
    expect(session.remoteSettings.initialWindowSize).toBe(1_048_576);
    expect(session.remoteSettings.maxConcurrentStreams).toBe(250);
    session.destroy();
  });

  test.each([
    ["that answers no ping", { pingIntervalMs: 50, pingTimeoutMs: 50 }],
    ["that ignores GOAWAY", { pingIntervalMs: 50, pingTimeoutMs: 10_000, sessionIdleTimeoutMs: 0 }],
  ])("an HTTP/2 peer %s is cut off", async (_, limits) => {
    await using app = await startTestApp({ limits });
    using client = await connectRaw(app.port);
    // Half-open: the client will never close on its own.
    client.socket.allowHalfOpen = true;
    client.socket.write(Buffer.concat([Buffer.from(PREFACE), EMPTY_SETTINGS]));
    await once(client.socket, "end");
    const startedAt = performance.now();
    await app.stop(20_000);
    expect(performance.now() - startedAt).toBeLessThan(4_000);
  });

  test("an HTTP/2 session without streams is closed with GOAWAY, one with a stream is not", async () => {
    await using app = await startTestApp({
      limits: { pingIntervalMs: 20, pingTimeoutMs: 5_000, sessionIdleTimeoutMs: 100 },
    });
    const busy = http2.connect(app.url);
    const watch = busy.request({
      ":method": "POST",
      ":path": "/grpc.health.v1.Health/Watch",
      "content-type": "application/grpc",
    });
    watch.on("error", () => {});
    watch.end(Buffer.from([0, 0, 0, 0, 0]));
    await once(watch, "response");
    const idle = http2.connect(app.url);
    const [code] = await once(idle, "goaway");
    await once(idle, "close");
    expect(code).toBe(http2.constants.NGHTTP2_NO_ERROR);
    expect(busy.closed).toBe(false);
    busy.destroy();
  });

  test("an HTTP/2 request that never ends is reset after the receive time", async () => {
    await using app = await startTestApp({ requestTimeoutMs: 100 });
    const session = http2.connect(app.url);
    const stream = session.request({
      ":method": "POST",
      ":path": "/grpc.health.v1.Health/Check",
      "content-type": "application/json",
    });
    stream.on("error", () => {});
    stream.write("{");
    await once(stream, "close");
    expect(stream.rstCode).toBe(http2.constants.NGHTTP2_CANCEL);
    session.destroy();
  });

  test("an HTTP/2 client that half-closes its connection is let go", async () => {
    await using app = await startTestApp();
    using client = await connectRaw(app.port);
    client.socket.allowHalfOpen = true;
    client.socket.write(Buffer.concat([Buffer.from(PREFACE), EMPTY_SETTINGS]));
    while (client.received().length < 9) await once(client.socket, "data");
    client.socket.end();
    await client.closed;
  });
});

describe("TLS", () => {
  test("versions below 1.2 are refused", async () => {
    await using app = await startTestApp({ tls: tlsFiles });
    const socket = tls.connect({
      port: app.port,
      host: "127.0.0.1",
      rejectUnauthorized: false,
      minVersion: "TLSv1",
      maxVersion: "TLSv1.1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    const [error] = await once(socket, "error");
    expect(error.code).toMatch(/ALERT_PROTOCOL_VERSION/);
  });

  test("a client without ALPN speaks HTTP/1.1", async () => {
    await using app = await startTestApp({ tls: tlsFiles });
    const socket = tls.connect({ port: app.port, host: "127.0.0.1", rejectUnauthorized: false });
    socket.write("GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    expect((await socket.setEncoding("latin1").toArray()).join("")).toContain('{"rest":"/x"');
  });

  test("a certificate that is none is refused with a clear error", async () => {
    const start = startOnePort({ host: "127.0.0.1", port: 0, tls: { cert: "none", key: "none" }, handler: () => {} });
    await expect(start).rejects.toThrow(/^the TLS certificate or its key cannot be used: /);
  });
});

describe("a port that cannot be opened", () => {
  test("in use: the error names the port and the setting", async () => {
    await using app = await startTestApp();
    const start = startOnePort({ host: "127.0.0.1", port: app.port, handler: () => {} });
    await expect(start).rejects.toThrow(
      `port ${app.port} on 127.0.0.1 is in use by another program; set CARILLON_PORT to a free port`,
    );
  });

  test("an address of another machine: the error names the setting", async () => {
    // TEST-NET-1 is no address of this machine; listening sends nothing.
    const start = startOnePort({ host: "192.0.2.1", port: 0, handler: () => {} });
    await expect(start).rejects.toThrow("192.0.2.1 is not an address of this machine; set CARILLON_HOST");
  });
});

test("disposing the server frees the port at once, whatever is open", async () => {
  const app = await startTestApp({ rest: () => {} });
  using waiting = await connectRaw(app.port);
  waiting.socket.write("GET /never HTTP/1.1\r\nhost: a\r\n\r\n");
  using silent = await connectRaw(app.port);
  await app.server[Symbol.asyncDispose]();
  await Promise.all([waiting.closed, silent.closed]);
  const again = net.createServer().listen(app.port, "127.0.0.1");
  await once(again, "listening");
  again.close();
});
