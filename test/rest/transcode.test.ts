import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { gzipSync } from "node:zlib";
import { Code, ConnectError, type ConnectRouter, createContextKey, createContextValues } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { type PublishRequest, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { Refusal } from "../../src/errors.ts";
import { toConnectError } from "../../src/rpc/refusal.ts";
import { keyGate, type RestServer, serveRest, signal } from "./rest-server.ts";

interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  readonly json: { readonly [key: string]: unknown; readonly error?: { readonly [key: string]: unknown } };
}

async function call(server: RestServer, method: string, path: string, init: RequestInit = {}): Promise<Answer> {
  const response = await fetch(`${server.origin}${path}`, { method, ...init });
  const text = await response.text();
  return { status: response.status, headers: response.headers, text, json: text === "" ? {} : JSON.parse(text) };
}

/** Answers publish with what it was asked, and the next consume with that message. */
function echo(router: ConnectRouter): void {
  let published: PublishRequest | undefined;
  router.service(QueueService, {
    publish(request) {
      published = request;
      return { messageId: "msg_1" };
    },
    consume: () => ({
      messages:
        published?.payload === undefined
          ? []
          : [{ messageId: "msg_1", payload: published.payload, contentType: published.contentType }],
    }),
    getQueue: ({ queue }) => ({ queue: { queue } }),
    deleteQueue: ({ queue, idempotencyKey }) => ({ queue: `${queue} ${idempotencyKey}`, deleted: true }),
  });
}

describe.each([{ http2: false }, { http2: true }])("over HTTP/2: $http2", ({ http2 }) => {
  /** One request over the version under test, with the body in one piece. */
  async function send(
    server: RestServer,
    headers: Record<string, string>,
    body: Buffer,
  ): Promise<{ status: number; text: string }> {
    if (!http2) {
      const { ":method": method = "POST", ":path": path = "/", ...others } = headers;
      const request = httpRequest(`${server.origin}${path}`, { method, headers: others });
      request.on("error", () => {});
      request.end(body);
      const [response] = await once(request, "response");
      return { status: response.statusCode, text: Buffer.concat(await response.toArray()).toString() };
    }
    const session = connectHttp2(server.origin);
    try {
      const stream = session.request({ ":method": "POST", ...headers });
      stream.on("error", () => {});
      stream.end(body);
      const [answered] = await once(stream, "response");
      return { status: answered[":status"], text: Buffer.concat(await stream.toArray()).toString() };
    } finally {
      session.destroy();
    }
  }

  test("publish and consume carry a payload byte for byte", async () => {
    await using server = await serveRest(echo, { http2 });
    const payload = '{ "b" : 9007199254740993,\n "a":[1.0, 1e400] }';
    const published = await send(
      server,
      { ":path": "/v1/scheduling/queue/publish" },
      Buffer.from(`{"queue":"q","payload": ${payload} }`),
    );
    expect(published).toEqual({ status: 200, text: '{"message_id":"msg_1","deduplicated":false}' });
    const consumed = await send(server, { ":path": "/queue/consume" }, Buffer.from('{"queue":"q"}'));
    expect(consumed.text).toContain(`"payload":${payload},`);
    expect(server.faults).toEqual([]);
  });

  test("a body over the limit is refused with 413, announced or not, and the server goes on", async () => {
    await using server = await serveRest(echo, { http2, maxBodyBytes: 1000 });
    for (const size of [1001, 3_000_000]) {
      const answer = await send(server, { ":path": "/queue/publish" }, Buffer.alloc(size, 0x20));
      expect(answer.status).toBe(413);
      expect(JSON.parse(answer.text).error).toMatchObject({
        code: "RESOURCE_EXHAUSTED",
        reason: "BODY_TOO_LARGE",
        details: [{ limit: "1000" }],
      });
    }
    const fits = await send(server, { ":path": "/queue/publish" }, Buffer.alloc(1000, 0x20));
    expect(fits.status).toBe(200);
  });

  test("gzip is taken within the same limit, other encodings are not", async () => {
    await using server = await serveRest(echo, { http2, maxBodyBytes: 1000 });
    const path = { ":path": "/queue/publish" };
    const gzip = { ...path, "content-encoding": "gzip" };
    expect((await send(server, gzip, gzipSync('{"queue":"q","payload":1}'))).status).toBe(200);
    expect((await send(server, gzip, gzipSync(Buffer.alloc(200_000, 0x20)))).status).toBe(413);
    for (const damaged of [Buffer.from("{}"), gzipSync("{}").subarray(0, 12)]) {
      const answer = await send(server, gzip, damaged);
      expect([answer.status, JSON.parse(answer.text).error.reason]).toEqual([400, "BODY_INVALID"]);
    }
    for (const encoding of ["br", "gzip, gzip", "deflate"]) {
      const answer = await send(server, { ...path, "content-encoding": encoding }, Buffer.from("{}"));
      expect([answer.status, JSON.parse(answer.text).error.reason]).toEqual([415, "BODY_ENCODING_UNSUPPORTED"]);
    }
    expect(server.faults).toEqual([]);
  });

  test("the body is read after the gate has let the request pass, and not before", async () => {
    const gated = signal();
    await using server = await serveRest(echo, {
      http2,
      requestGate(context) {
        gated.resolve();
        keyGate(context);
      },
    });
    // The body never ends, so an answer proves that nobody waited for it.
    if (http2) {
      const session = connectHttp2(server.origin);
      const stream = session.request({ ":method": "POST", ":path": "/queue/publish" });
      stream.on("error", () => {});
      stream.write("{");
      const [headers] = await once(stream, "response");
      expect(headers[":status"]).toBe(401);
      // The server calls off the rest of the body, or the stream would stay open as long as the client likes.
      stream.resume();
      await once(stream, "close");
      session.destroy();
    } else {
      const request = httpRequest(`${server.origin}/queue/publish`, {
        method: "POST",
        headers: { "content-length": "100000" },
      });
      request.on("error", () => {});
      request.write("{");
      const [response] = await once(request, "response");
      expect(response.statusCode).toBe(401);
      expect(response.headers["www-authenticate"]).toBe("Bearer");
      request.destroy();
    }
    await gated.promise;
  });

  test("a body that stops arriving is refused with 408", async () => {
    await using server = await serveRest(echo, { http2, bodyTimeoutMs: 20 });
    if (http2) {
      const session = connectHttp2(server.origin);
      const stream = session.request({ ":method": "POST", ":path": "/queue/publish" });
      stream.on("error", () => {});
      stream.write("{");
      const [headers] = await once(stream, "response");
      expect(headers[":status"]).toBe(408);
      stream.resume();
      await once(stream, "close");
      session.destroy();
    } else {
      const request = httpRequest(`${server.origin}/queue/publish`, { method: "POST" });
      request.on("error", () => {});
      request.write("{");
      const [response] = await once(request, "response");
      expect(response.statusCode).toBe(408);
      request.destroy();
    }
  });

  test("a client that leaves aborts the handler", async () => {
    const [entered, aborted] = [signal(), signal()];
    await using server = await serveRest(
      (router) =>
        router.service(QueueService, {
          async consume(_, { signal: gone }) {
            entered.resolve();
            await new Promise((resolve) => gone.addEventListener("abort", resolve));
            aborted.resolve();
            return {};
          },
        }),
      { http2 },
    );
    const abort = new AbortController();
    if (http2) {
      const session = connectHttp2(server.origin);
      session.on("error", () => {});
      const stream = session.request({ ":method": "POST", ":path": "/queue/consume" }, { signal: abort.signal });
      stream.on("error", () => {}).end("{}");
      await entered.promise;
      abort.abort();
      await aborted.promise;
      session.destroy();
    } else {
      const answer = call(server, "POST", "/queue/consume", { body: "{}", signal: abort.signal });
      await entered.promise;
      abort.abort();
      await expect(answer).rejects.toThrow();
      await aborted.promise;
    }
    expect(server.faults).toEqual([]);
  });
});

describe("a request", () => {
  test.each([
    undefined,
    "application/json",
    "Application/JSON; charset=utf-8",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/merge-patch+json",
  ])("of the content type %s is read as JSON", async (type) => {
    await using server = await serveRest(echo);
    const headers = type === undefined ? {} : { "content-type": type };
    const body = Buffer.from('{"queue":"q","payload":1}');
    expect((await call(server, "POST", "/queue/publish", { headers, body })).status).toBe(200);
  });

  test("of another content type is refused with 415, but only when it has a body", async () => {
    await using server = await serveRest(echo);
    const headers = { "content-type": "application/xml\u00e9" };
    const answer = await call(server, "POST", "/queue/publish", { headers, body: "<x/>" });
    expect(answer.status).toBe(415);
    expect(answer.json.error).toMatchObject({ code: "INVALID_ARGUMENT", reason: "BODY_TYPE_UNSUPPORTED" });
    expect((await call(server, "POST", "/queue/publish", { headers })).status).toBe(200);
  });

  test("of DELETE may have a body", async () => {
    await using server = await serveRest(echo);
    const answer = await call(server, "DELETE", "/queue/delete/q", { body: '{"idempotency_key":"k"}' });
    expect(answer.text).toBe('{"queue":"q k","deleted":true}');
  });

  test("of HEAD gets the headers of GET and no body", async () => {
    await using server = await serveRest(echo);
    const [get, head] = [await call(server, "GET", "/queue/get/q"), await call(server, "HEAD", "/queue/get/q")];
    expect([head.status, head.text]).toEqual([200, ""]);
    expect(head.headers.get("content-length")).toBe(get.headers.get("content-length"));
    expect(get.headers.get("content-type")).toBe("application/json");
  });

  test("reaches the handler with its headers, but with those of the body left out", async () => {
    let seen = new Headers();
    await using server = await serveRest((router) =>
      router.service(QueueService, {
        publish(_, context) {
          seen = context.requestHeader;
          return {};
        },
      }),
    );
    const headers = {
      "idempotency-key": "k",
      "x-request-id": "req_mine",
      "accept-encoding": "gzip",
      "connect-timeout-ms": "5000",
    };
    const answer = await call(server, "POST", "/queue/publish", { headers, body: "{}" });
    expect(Object.fromEntries(seen)).toMatchObject({
      "idempotency-key": "k",
      "x-request-id": "req_mine",
      "connect-timeout-ms": "5000",
    });
    expect([seen.has("content-length"), seen.has("accept-encoding")]).toEqual([false, false]);
    expect(answer.headers.get("x-request-id")).toBe("req_mine");
  });

  test("with a deadline ends at it", async () => {
    await using server = await serveRest((router) =>
      router.service(QueueService, {
        consume: (_, { signal: gone }) =>
          new Promise((_resolve, reject) => gone.addEventListener("abort", () => reject(gone.reason))),
      }),
    );
    const answer = await call(server, "POST", "/queue/consume", {
      headers: { "connect-timeout-ms": "20" },
      body: "{}",
    });
    expect([answer.status, answer.json.error?.["code"]]).toEqual([504, "DEADLINE_EXCEEDED"]);
  });

  test("is judged by the strictness that the gate found", async () => {
    const strict = createContextKey(false);
    await using server = await serveRest(echo, {
      contextValues: () => createContextValues(),
      requestGate: (context) => void context.values.set(strict, context.requestHeader.has("x-strict")),
      strict: (values) => ({ pathBody: values.get(strict), unknownFields: values.get(strict) }),
    });
    const body = '{"name":"other"}';
    expect((await call(server, "DELETE", "/queue/delete/q", { body })).headers.get("x-scheduling-warning")).toBe(
      "body.name ignored, path names the queue",
    );
    const refused = await call(server, "DELETE", "/queue/delete/q", { body, headers: { "x-strict": "1" } });
    expect([refused.status, refused.json.error?.["reason"]]).toEqual([400, "PATH_BODY_MISMATCH"]);
  });

  test("of the absolute form finds its route", async () => {
    await using server = await serveRest(echo);
    const socket = connectTcp(Number(new URL(server.origin).port), "127.0.0.1");
    socket.end(
      "GET http://example.test/v1/scheduling/queue/get/q?x=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    expect(Buffer.concat(await socket.toArray()).toString()).toContain('{"queue":"q"');
  });
});

describe("a connection", () => {
  test("is good for the next request after a body that was not read to its end", async () => {
    await using server = await serveRest(echo, { maxBodyBytes: 1000 });
    const socket = connectTcp(Number(new URL(server.origin).port), "127.0.0.1");
    const size = 2_000_000;
    socket.write("POST /queue/publish HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    socket.write(`${size.toString(16)}\r\n${" ".repeat(size)}\r\n0\r\n\r\n`);
    socket.end("GET /queue/get/next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    const answers = Buffer.concat(await socket.toArray()).toString();
    expect(answers).toMatch(/^HTTP\/1.1 413 /);
    expect(answers).toContain('{"queue":"next"');
  });
});

describe("an answer", () => {
  test("passes on what the handler says in headers, and joins the warnings", async () => {
    await using server = await serveRest((router) =>
      router.service(QueueService, {
        publish(_, context) {
          context.responseHeader.set("idempotency-replayed", "true");
          context.responseHeader.append("x-scheduling-warning", "queue q was created");
          context.responseTrailer.set("x-trailer", "1");
          return {};
        },
      }),
    );
    const { headers } = await call(server, "POST", "/queue/publish", { body: '{"nope":1}' });
    expect(headers.get("idempotency-replayed")).toBe("true");
    expect(headers.get("x-scheduling-warning")).toBe("queue q was created, unknown field nope ignored");
    const names = [...headers.keys()].filter((name) => !["connection", "date", "keep-alive"].includes(name));
    expect(names).toEqual([
      "content-length",
      "content-type",
      "idempotency-replayed",
      "x-request-id",
      "x-scheduling-warning",
    ]);
  });

  test("to a wrong path is 404 and to a wrong method 405 with Allow", async () => {
    await using server = await serveRest(echo);
    const missing = await call(server, "GET", "/v1/scheduling/nope");
    expect([missing.status, missing.json.error]).toMatchObject([404, { code: "NOT_FOUND", reason: "ROUTE_NOT_FOUND" }]);
    const wrong = await call(server, "PUT", "/v1/scheduling/queue/publish");
    expect([wrong.status, wrong.headers.get("allow"), wrong.json.error]).toMatchObject([
      405,
      "POST",
      { code: "METHOD_NOT_ALLOWED" },
    ]);
    const escaped = await call(server, "GET", "/queue/get/%00");
    expect([escaped.status, escaped.json.error]).toMatchObject([
      400,
      { code: "INVALID_ARGUMENT", reason: "PATH_INVALID" },
    ]);
  });
});

describe("an error", () => {
  async function answerTo(error: unknown): Promise<Answer> {
    await using server = await serveRest((router) =>
      router.service(CronService, {
        getCronJob() {
          throw error;
        },
      }),
    );
    // Awaited here: the server is disposed at the end of this function.
    return await call(server, "GET", "/cron/get/cron_1");
  }

  test("has the reason and the metadata of its refusal", async () => {
    const { status, headers, json } = await answerTo(
      toConnectError(new Refusal("PAYLOAD_TOO_LARGE", { field: "payload", size: "9", limit: "8" })),
    );
    expect(status).toBe(413);
    expect(json).toEqual({
      error: {
        code: "INVALID_ARGUMENT",
        message: "payload is 9 bytes; the limit is 8",
        reason: "PAYLOAD_TOO_LARGE",
        details: [{ field: "payload", size: "9", limit: "8" }],
        request_id: headers.get("x-request-id"),
      },
    });
  });

  test("has a violation of each field, once", async () => {
    const { status, json } = await answerTo(
      toConnectError(Refusal.field("cron_id", "must not be odd", "CRON_EXPR_INVALID")),
    );
    expect(status).toBe(400);
    expect(json.error).toMatchObject({
      reason: "CRON_EXPR_INVALID",
      details: [{ field: "cron_id", message: "must not be odd" }],
    });
  });

  test("has the status and code that the table gives it for REST", async () => {
    const { status, json } = await answerTo(toConnectError(new Refusal("IDEMPOTENCY_KEY_REUSED")));
    expect([status, json.error?.["code"]]).toEqual([422, "IDEMPOTENCY_KEY_REUSED"]);
  });

  test.each([
    [Code.InvalidArgument, 400, "INVALID_ARGUMENT"],
    [Code.FailedPrecondition, 400, "FAILED_PRECONDITION"],
    [Code.OutOfRange, 400, "OUT_OF_RANGE"],
    [Code.Unauthenticated, 401, "UNAUTHENTICATED"],
    [Code.PermissionDenied, 403, "PERMISSION_DENIED"],
    [Code.NotFound, 404, "NOT_FOUND"],
    [Code.Aborted, 409, "ABORTED"],
    [Code.AlreadyExists, 409, "ALREADY_EXISTS"],
    [Code.ResourceExhausted, 429, "RESOURCE_EXHAUSTED"],
    [Code.Canceled, 499, "CANCELED"],
    [Code.Unimplemented, 501, "UNIMPLEMENTED"],
    [Code.Unavailable, 503, "UNAVAILABLE"],
    [Code.DeadlineExceeded, 504, "DEADLINE_EXCEEDED"],
    [Code.Internal, 500, "INTERNAL"],
    [Code.Unknown, 500, "INTERNAL"],
    [Code.DataLoss, 500, "INTERNAL"],
  ])("of code %i is answered %i %s", async (code, status, name) => {
    const answer = await answerTo(new ConnectError("text", code, { "retry-after": "7" }));
    expect(answer.status).toBe(status);
    expect(answer.json.error).toEqual({
      code: name,
      message: status === 500 ? "internal error" : "text",
      details: [],
      request_id: answer.headers.get("x-request-id"),
    });
    expect(answer.headers.get("retry-after")).toBe("7");
    expect(answer.headers.get("www-authenticate")).toBe(status === 401 ? "Bearer" : null);
  });

  test("that is a fault says nothing of its cause", async () => {
    const { status, text } = await answerTo(new Error("secret"));
    expect(status).toBe(500);
    expect(text).not.toContain("secret");
  });

  test("that is a fault of the REST face is reported", async () => {
    await using server = await serveRest(echo, {
      strict() {
        throw new Error("secret");
      },
    });
    const { status, text } = await call(server, "POST", "/queue/publish", { body: "{}" });
    expect([status, text.includes("secret")]).toEqual([500, false]);
    expect(server.faults).toEqual([new Error("secret")]);
  });

  test("of a field keeps the caller's spelling over the handler", async () => {
    await using server = await serveRest(echo);
    const { status, json } = await call(server, "POST", "/queue/publish", { body: '{"delaySeconds":1.5}' });
    expect(status).toBe(400);
    expect(json.error).toMatchObject({
      code: "INVALID_ARGUMENT",
      reason: "FIELD_INVALID",
      message: "delaySeconds: must be a whole number",
      details: [{ field: "delaySeconds", message: "must be a whole number" }],
    });
  });
});
