import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { buffer } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { PublishRequestSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import { connectRaw } from "../http/harness.ts";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { createQueue, ok } from "./calls.ts";
import { connectJson } from "./outcomes.ts";

let carillon: TestCarillon;
let queue: string;
let session: ClientHttp2Session;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
  queue = await createQueue(carillon);
  session = connectHttp2(carillon.url);
});
afterAll(async () => {
  session.destroy();
  await carillon[Symbol.asyncDispose]();
});
// After whatever came in, the server answers a normal request.
afterEach(async () => void ok(await carillon.rest("POST", "/queue/publish", { queue, payload: {} })));

/** Status names of gRPC by number, as far as they may come up here. */
const GRPC_CODES = ["ok", "canceled", "unknown", "invalid_argument", "deadline_exceeded"] as const;
const MORE_GRPC_CODES: Readonly<Record<number, string>> = {
  8: "resource_exhausted",
  12: "unimplemented",
  13: "internal",
};

/** A message of gRPC: one byte of flags, four of length, and the data. */
function frame(data: Uint8Array, { flags = 0, length = data.length } = {}): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(flags);
  head.writeUInt32BE(length, 1);
  return Buffer.concat([head, data]);
}

/** Publish over gRPC with these bytes for a body. Gives the status of the call. */
async function grpcBytes(body: Uint8Array, headers: Readonly<Record<string, string>> = {}): Promise<string> {
  const stream = session.request({
    ":method": "POST",
    ":path": "/scheduling.v1.QueueService/Publish",
    "content-type": "application/grpc",
    te: "trailers",
    authorization: `Bearer ${TEST_KEY}`,
    ...headers,
  });
  stream.setTimeout(10_000, () => stream.destroy(new Error("no answer within 10 s")));
  let status: string | undefined;
  const take = (fields: Record<string, unknown>) => {
    status = (fields["grpc-status"] as string | undefined) ?? status;
  };
  stream.on("response", take);
  stream.on("trailers", take);
  stream.end(body);
  await buffer(stream);
  const code = Number(status ?? Number.NaN);
  return GRPC_CODES[code] ?? MORE_GRPC_CODES[code] ?? `status ${status}`;
}

const valid = () => toBinary(PublishRequestSchema, create(PublishRequestSchema, { queue, payload: Buffer.from("{}") }));

describe("item 12: protobuf", () => {
  /** Bytes that are no PublishRequest. */
  const broken: readonly (readonly [name: string, bytes: () => Uint8Array])[] = [
    ["a string that says it is longer than the message", () => Uint8Array.of(0x0a, 0x7f, 0x61)],
    ["a varint of eleven bytes", () => Uint8Array.of(0x20, ...Array.from({ length: 11 }, () => 0xff), 0x01)],
    ["a tag of field 0", () => Uint8Array.of(0x00, 0x01)],
    ["wire type 7", () => Uint8Array.of(0x0f)],
    ["an end of a group that never began", () => Uint8Array.of(0x0c)],
    ["groups 10,000 deep", () => new Uint8Array(10_000).fill(0x7b)],
    [
      "groups 100,000 deep, with their ends",
      () => Buffer.concat([Buffer.alloc(100_000, 0x7b), Buffer.alloc(100_000, 0x7c)]),
    ],
    ["a string that is not UTF-8", () => Uint8Array.of(0x0a, 0x02, 0xc3, 0x28)],
    ["a field of another wire type", () => Buffer.concat([valid(), Uint8Array.of(0x22, 0x01, 0x61)])],
    ["half of a message", () => valid().subarray(0, -3)],
  ];

  // The table of status codes of gRPC has INTERNAL for a request that the server cannot parse.
  test.each(broken)("%s is refused over gRPC", async (_name, bytes) => {
    expect(await grpcBytes(frame(bytes()))).toMatch(/^(internal|invalid_argument)$/);
  });

  test.each(broken)("%s is refused over Connect", async (_name, bytes) => {
    const body = new Uint8Array(bytes());
    const headers = { "content-type": "application/proto" };
    const outcome = await connectJson(carillon, "scheduling.v1.QueueService/Publish", body, headers);
    expect(outcome.code, outcome.text).toBe("invalid_argument");
  });

  test("unknown fields are passed over", async () => {
    const unknown = Uint8Array.of(0xf8, 0xff, 0xff, 0xff, 0x0f, 0x01, 0xfa, 0x3e, 0x01, 0x61);
    expect(await grpcBytes(frame(Buffer.concat([valid(), unknown])))).toBe("ok");
  });

  test("a map with very many entries is refused", async () => {
    const entries = Array.from({ length: 100_000 }, (_, n) => {
      const key = Buffer.from(`x-${n}`);
      return Buffer.concat([Uint8Array.of(0x3a, key.length + 2, 0x0a, key.length), key]);
    });
    expect(await grpcBytes(frame(Buffer.concat([valid(), ...entries])))).toBe("invalid_argument");
  });
});

describe("item 12: frames of gRPC", () => {
  test("a length of 4 GiB with five bytes is refused", async () => {
    expect(await grpcBytes(frame(Buffer.from("five!"), { length: 0xffff_ffff }))).toMatch(
      /^(invalid_argument|resource_exhausted)$/,
    );
  });

  test("a message that ends early, and a head that ends early, are refused", async () => {
    expect(await grpcBytes(frame(valid()).subarray(0, -4))).toBe("invalid_argument");
    expect(await grpcBytes(frame(valid()).subarray(0, 3))).toBe("invalid_argument");
  });

  test("no message, and two messages, are refused", async () => {
    expect(await grpcBytes(Buffer.alloc(0))).toMatch(/^(invalid_argument|unimplemented)$/);
    expect(await grpcBytes(Buffer.concat([frame(valid()), frame(valid())]))).toMatch(
      /^(invalid_argument|unimplemented)$/,
    );
  });

  // What the gRPC specification asks for: docs/compression.md of grpc/grpc has INTERNAL for this one.
  test("a message that says it is compressed, without an encoding, is refused", async () => {
    expect(await grpcBytes(frame(valid(), { flags: 1 }))).toMatch(/^(internal|invalid_argument)$/);
  });

  test("an encoding that is not offered is refused", async () => {
    expect(await grpcBytes(frame(valid(), { flags: 1 }), { "grpc-encoding": "br" })).toBe("unimplemented");
  });

  test("damaged gzip data, and gzip data that grows beyond the limit, are refused", async () => {
    const gzip = { "grpc-encoding": "gzip" };
    expect(await grpcBytes(frame(Buffer.from("not gzip"), { flags: 1 }), gzip)).toBe("invalid_argument");
    const bomb = gzipSync(Buffer.alloc(64 * 1_048_576));
    expect(await grpcBytes(frame(bomb, { flags: 1 }), gzip)).toBe("resource_exhausted");
    expect(await grpcBytes(frame(gzipSync(valid()), { flags: 1 }), gzip)).toBe("ok");
  });
});

describe("item 13: HTTP/1.1", () => {
  const port = () => Number(new URL(carillon.url).port);

  /** Sends the bytes and returns what came until the server closed the connection, or for a second after an answer. */
  async function exchange(bytes: string): Promise<string> {
    using raw = await connectRaw(port());
    raw.socket.setTimeout(10_000, () => raw.socket.destroy());
    raw.socket.write(bytes, "latin1");
    return await raw.closed;
  }

  const head = (...lines: string[]) =>
    [
      "POST /v1/scheduling/queue/publish HTTP/1.1",
      "Host: localhost",
      `Authorization: Bearer ${TEST_KEY}`,
      "Connection: close",
      ...lines,
      "",
      "",
    ].join("\r\n");
  const body = () => JSON.stringify({ queue, payload: "smuggled" });

  test.each<[name: string, request: () => string, statuses: readonly number[]]>([
    [
      "Content-Length and Transfer-Encoding",
      () => `${head("Content-Length: 6", "Transfer-Encoding: chunked")}0\r\n\r\nGET /x HTTP/1.1\r\n\r\n`,
      [400],
    ],
    ["two different Content-Lengths", () => `${head("Content-Length: 5", "Content-Length: 40")}${body()}`, [400]],
    ["a Content-Length that is a list", () => `${head("Content-Length: 5, 5")}${body()}`, [400]],
    ["a Content-Length with a sign", () => `${head("Content-Length: +5")}${body()}`, [400]],
    ["a Content-Length beyond 2^64", () => `${head("Content-Length: 99999999999999999999999")}x`, [400]],
    ["a Content-Length of 5 TB", () => `${head("Content-Length: 5000000000000")}x`, [413]],
    ["an unknown Transfer-Encoding", () => `${head("Transfer-Encoding: xchunked")}${body()}`, [400, 501]],
    ["a chunk size that is no number", () => `${head("Transfer-Encoding: chunked")}zz\r\n`, [400]],
    ["a folded header", () => `${head("X-Folded: a", " b", `Content-Length: ${body().length}`)}${body()}`, [400]],
    ["a header name with a blank", () => head("X A: b"), [400]],
    ["a header without a colon", () => head("nonsense"), [400]],
    ["a NUL in a header", () => head("X-A: a\0b"), [400]],
    ["a bare CR in a header", () => head("X-A: a\rX-B: b"), [400]],
    ["no Host", () => "GET /v1/scheduling/queue/list HTTP/1.1\r\nConnection: close\r\n\r\n", [400]],
    ["two Hosts", () => head("Host: other"), [400, 401]],
    ["1,000 headers", () => head(...Array.from({ length: 1_000 }, (_, n) => `X-${n}: v`)), [400, 431]],
    ["a header of 1 MB", () => head(`X-Big: ${"x".repeat(1_048_576)}`), [431]],
    ["a target of 1 MB", () => `GET /${"x".repeat(1_048_576)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, [414, 431]],
    ["an unknown method", () => "BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", [400, 405]],
    ["CONNECT", () => "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", [0, 405]],
    ["an expectation that is not 100-continue", () => `${head("Expect: miracles", "Content-Length: 0")}`, [417]],
    ["bytes that are no HTTP", () => "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [0, 400]],
  ])("%s is refused, and the connection ends", async (_name, request, statuses) => {
    const before = ok(await carillon.rest("GET", `/queue/stats/${queue}`)).available;
    const received = await exchange(request());
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(received)?.[1] ?? 0);
    expect(statuses, received.slice(0, 500)).toContain(status);
    expect(ok(await carillon.rest("GET", `/queue/stats/${queue}`)).available, "nothing was published").toBe(before);
  });

  test("Expect: 100-continue is answered", async () => {
    const json = body();
    using raw = await connectRaw(port());
    raw.socket.setTimeout(10_000, () => raw.socket.destroy());
    raw.socket.write(head("Expect: 100-continue", `Content-Length: ${json.length}`));
    await raw.until("HTTP/1.1 100 Continue");
    raw.socket.write(json);
    expect(await raw.closed).toContain("HTTP/1.1 200 OK");
  });
});
