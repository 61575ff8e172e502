import { once } from "node:events";
import { request as httpRequest } from "node:http";
import { connect as connectHttp2 } from "node:http2";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import {
  type ConsumeStreamRequest,
  type ConsumeStreamResponseSchema,
  QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { keyGate, type RestServer, type RestServerOptions, serveRest, signal } from "./rest-server.ts";

type Part = MessageInitShape<typeof ConsumeStreamResponseSchema>;
type Source = (request: ConsumeStreamRequest, context: HandlerContext) => AsyncIterable<Part>;

function serve(consumeStream: Source, options: RestServerOptions = {}): Promise<RestServer> {
  return serveRest((router) => router.service(QueueService, { consumeStream }), options);
}

async function* three({ queue }: ConsumeStreamRequest): AsyncGenerator<Part> {
  yield {};
  yield { messages: [{ messageId: queue, payload: Buffer.from('{\r\n "a": 1}') }] };
  yield { messages: [] };
}

describe("a stream", () => {
  test("is one line of JSON for each message, whatever line breaks a payload has", async () => {
    await using server = await serve(three);
    const response = await fetch(`${server.origin}/queue/consume_stream/q`);
    expect(response.headers.get("content-type")).toBe("application/x-ndjson");
    expect(response.headers.get("cache-control")).toBe("no-store");
    expect(response.headers.get("x-accel-buffering")).toBe("no");
    const lines = (await response.text()).split("\n");
    expect(lines.pop()).toBe("");
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { messages: [] },
      { messages: [{ message_id: "q", payload: { a: 1 } }] },
      { messages: [] },
    ]);
  });

  test("is server-sent events when Accept asks for them, with heartbeats as comments", async () => {
    await using server = await serve(three);
    const headers = { accept: "text/html, text/event-stream;q=0.9" };
    const response = await fetch(`${server.origin}/queue/consume_stream`, {
      method: "POST",
      body: '{"name":"q"}',
      headers,
    });
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    const events = (await response.text()).split("\n\n");
    expect(events).toEqual([
      ": heartbeat",
      expect.stringMatching(/^data: \{"messages":\[\{.*\}\]\}$/),
      ": heartbeat",
      "",
    ]);
  });

  test("that fails after it began ends with the error", async () => {
    async function* failing(): AsyncGenerator<Part> {
      yield {};
      throw new ConnectError("the queue is gone", Code.NotFound);
    }
    await using server = await serve(failing);
    const lines = await (await fetch(`${server.origin}/queue/consume_stream/q`)).text();
    expect(JSON.parse(lines.split("\n")[1] ?? "")).toMatchObject({
      error: { code: "NOT_FOUND", message: "the queue is gone" },
    });
    const headers = { accept: "text/event-stream" };
    const events = await (await fetch(`${server.origin}/queue/consume_stream/q`, { headers })).text();
    expect(events.split("\n\n")[1]).toMatch(/^event: error\ndata: \{"error":\{"code":"NOT_FOUND"/);
  });

  test("that fails before it began is an error like any other", async () => {
    await using server = await serve(three, { requestGate: keyGate });
    const refused = await fetch(`${server.origin}/queue/consume_stream/q`);
    expect(refused.status).toBe(401);
    expect(refused.headers.get("content-type")).toBe("application/json");
    const headers = { authorization: "Bearer key" };
    const wrong = await fetch(`${server.origin}/queue/consume_stream/q?max_unacked=x`, { headers });
    expect(wrong.status).toBe(400);
    expect(await wrong.json()).toMatchObject({ error: { details: [{ field: "max_unacked" }] } });
  });

  test("with no message at all is an empty success", async () => {
    await using server = await serve(async function* () {});
    const response = await fetch(`${server.origin}/queue/consume_stream/q`);
    expect([response.status, await response.text()]).toEqual([200, ""]);
  });

  test.each([{ http2: false }, { http2: true }])("sends each message at once (HTTP/2: $http2)", async ({ http2 }) => {
    const second = signal();
    await using server = await serve(
      async function* () {
        yield { messages: [{ messageId: "first" }] };
        await second.promise;
        yield { messages: [{ messageId: "second" }] };
      },
      { http2 },
    );
    const session = http2 ? connectHttp2(server.origin) : undefined;
    const stream = session?.request({ ":path": "/queue/consume_stream/q" }) ?? (await http1(server));
    const chunks = stream[Symbol.asyncIterator]();
    expect((await chunks.next()).value.toString()).toContain("first");
    second.resolve();
    expect((await chunks.next()).value.toString()).toContain("second");
    session?.destroy();
  });

  test.each([{ http2: false }, { http2: true }])(
    "of a client that leaves is aborted (HTTP/2: $http2)",
    async ({ http2 }) => {
      const ended = signal();
      await using server = await serve(
        async function* (_, { signal: gone }) {
          try {
            yield {};
            await new Promise((_resolve, reject) => gone.addEventListener("abort", () => reject(gone.reason)));
          } finally {
            ended.resolve();
          }
        },
        { http2 },
      );
      const session = http2 ? connectHttp2(server.origin) : undefined;
      const stream = session?.request({ ":path": "/queue/consume_stream/q" }) ?? (await http1(server));
      await once(stream, "data");
      stream.on("error", () => {}).destroy();
      await ended.promise;
      session?.destroy();
      expect(server.faults).toEqual([]);
    },
  );

  test.each([{ http2: false }, { http2: true }])(
    "waits for a slow client, and cuts off one that takes nothing (HTTP/2: $http2)",
    async ({ http2 }) => {
      const ended = signal();
      let produced = 0;
      await using server = await serve(
        async function* () {
          try {
            for (;;) {
              produced += 1;
              yield { messages: [{ payload: Buffer.from(JSON.stringify("x".repeat(100_000))) }] };
            }
          } finally {
            ended.resolve();
          }
        },
        { http2, streamStallMs: 100 },
      );
      const session = http2 ? connectHttp2(server.origin) : undefined;
      const stream = session?.request({ ":path": "/queue/consume_stream/q" }) ?? (await http1(server));
      stream.on("error", () => {}).pause();
      await ended.promise;
      const closed = new Promise((resolve) => stream.once("close", resolve));
      stream.resume();
      await closed;
      session?.destroy();
      // Socket buffers take some; without back-pressure it would never end.
      expect(produced).toBeLessThan(500);
      expect(server.faults).toEqual([]);
    },
  );
});

async function http1(server: RestServer) {
  const request = httpRequest(`${server.origin}/queue/consume_stream/q`).on("error", () => {});
  request.end();
  const [response] = await once(request, "response");
  return response;
}
