import { once } from "node:events";
import * as http2 from "node:http2";
import * as net from "node:net";
import * as tls from "node:tls";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { HealthCheckResponse_ServingStatus as Status } from "../../gen/grpc/health/v1/health_pb.js";
import { type Certificate, selfSigned } from "../support/certificate.ts";
import { connectRaw, healthClient, PROTOCOLS, startTestApp, type TestApp } from "./harness.ts";

/** Far above what a drain takes here, far below the grace that tests give it. */
const QUICK_MS = 4_000;
const GRACE_MS = 20_000;

function connectEither(app: TestApp): net.Socket {
  const where = { port: app.port, host: "127.0.0.1" };
  const socket = app.server.address.tls ? tls.connect({ ...where, rejectUnauthorized: false }) : net.connect(where);
  return socket.on("error", () => {});
}

const variants: [string, { readonly tls?: Certificate }][] = [
  ["cleartext", {}],
  ["TLS", { tls: selfSigned(["127.0.0.1"]) }],
];

describe.each(variants)("draining a %s port", (_, options) => {
  test("ends endless streams as unavailable in every protocol, well within the grace", async () => {
    await using app = await startTestApp(options);
    const streams = await Promise.all(
      Object.keys(PROTOCOLS).map(async (protocol) => {
        const stream = healthClient(app, protocol).watch({ service: "" })[Symbol.asyncIterator]();
        const first = await stream.next();
        expect(first.value?.status).toBe(Status.SERVING);
        return stream;
      }),
    );
    const startedAt = performance.now();
    const stopped = app.stop(GRACE_MS);
    for (const stream of streams) {
      const last = await stream.next();
      expect(last.value?.status).toBe(Status.NOT_SERVING);
      const end = await stream.next().catch((error: unknown) => ConnectError.from(error));
      expect(end).toMatchObject({ code: Code.Unavailable, rawMessage: "the server is shutting down" });
    }
    await stopped;
    expect(performance.now() - startedAt).toBeLessThan(QUICK_MS);
  });

  test("lets running calls end, and tells HTTP/1.1 clients that the connection closes", async () => {
    const arrived: (() => void)[] = [];
    const all = Promise.withResolvers<void>();
    await using app = await startTestApp({
      ...options,
      rest: (_, response) => {
        arrived.push(() => response.end("done"));
        if (arrived.length === 2) all.resolve();
      },
    });
    const session = http2.connect(app.url, { rejectUnauthorized: false });
    const overHttp2 = session.request({ ":path": "/x" }).setEncoding("utf8").toArray();
    const socket = connectEither(app);
    let overHttp1 = "";
    socket.on("data", (chunk) => {
      overHttp1 += chunk;
    });
    socket.write("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    await all.promise;
    const stopped = app.stop(GRACE_MS);
    for (const respond of arrived) respond();
    await stopped;
    expect((await overHttp2).join("")).toBe("done");
    if (!socket.closed) await once(socket, "close");
    expect(overHttp1).toMatch(/^HTTP\/1.1 200 OK\r\n/);
    expect(overHttp1.toLowerCase()).toContain("connection: close");
    expect(overHttp1).toContain("done");
  });

  test("does not wait for a connection whose client keeps it open after the last answer", async () => {
    const begun = Promise.withResolvers<() => void>();
    await using app = await startTestApp({
      ...options,
      rest: (_, response) => {
        // The headers are out before the drain, so they cannot say that the connection closes.
        response.writeHead(200);
        response.write("first");
        begun.resolve(() => response.end("last"));
      },
    });
    const socket = connectEither(app);
    socket.write("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    const end = await begun.promise;
    const startedAt = performance.now();
    const stopped = app.stop(GRACE_MS);
    end();
    await stopped;
    expect(performance.now() - startedAt).toBeLessThan(QUICK_MS);
    socket.destroy();
  });

  test("does not wait for connections that carry no request", async () => {
    await using app = await startTestApp(options);
    using silent = await connectRaw(app.port);
    const idle = http2.connect(app.url, { rejectUnauthorized: false });
    await once(idle, "remoteSettings");
    const keptAlive = connectEither(app);
    keptAlive.write("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n");
    await once(keptAlive, "data");
    const startedAt = performance.now();
    await app.stop(GRACE_MS);
    expect(performance.now() - startedAt).toBeLessThan(QUICK_MS);
    await silent.closed;
  });

  test("destroys what is still open when the grace is over", async () => {
    const arrived = Promise.withResolvers<void>();
    let count = 0;
    await using app = await startTestApp({
      ...options,
      rest: (_, response) => {
        response.writeHead(200);
        response.write("endless");
        if (++count === 2) arrived.resolve();
      },
    });
    const session = http2.connect(app.url, { rejectUnauthorized: false });
    session.on("error", () => {});
    const stream = session.request({ ":path": "/x" });
    stream.on("error", () => {});
    // Half-open: it will never close on its own.
    const socket = connectEither(app);
    socket.allowHalfOpen = true;
    socket.write("GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    await arrived.promise;
    const startedAt = performance.now();
    await app.stop(200);
    expect(performance.now() - startedAt).toBeLessThan(QUICK_MS);
    socket.destroy();
    session.destroy();
  });
});

test("a drain does not wait for an HTTP/2 peer that is gone", async () => {
  await using app = await startTestApp();
  using client = await connectRaw(app.port);
  client.socket.allowHalfOpen = true;
  client.socket.write(Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "latin1"));
  while (client.received().length < 9) await once(client.socket, "data");
  client.socket.pause();
  const startedAt = performance.now();
  await app.stop(300);
  expect(performance.now() - startedAt).toBeLessThan(QUICK_MS);
});

test("new connections are refused while draining", async () => {
  const asked = Promise.withResolvers<() => void>();
  await using app = await startTestApp({ rest: (_, response) => asked.resolve(() => response.end()) });
  const running = fetch(`${app.url}/x`);
  const respond = await asked.promise;
  const stopped = app.stop(GRACE_MS);
  await expect(fetch(`${app.url}/healthz`)).rejects.toThrow();
  respond();
  expect((await running).status).toBe(200);
  await stopped;
});
