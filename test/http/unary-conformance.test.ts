import { Buffer } from "node:buffer";
import type { ClientHttp2Session } from "node:http2";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  binary,
  callHttp1,
  callHttp2,
  envelope,
  type Http2Call,
  http2Session,
  json,
  KEY,
  PUBLISH,
  READ_MAX,
  type Seen,
  startTwins,
} from "./twins.ts";

let twins: Awaited<ReturnType<typeof startTwins>>;
let sessions: readonly [short: ClientHttp2Session, reference: ClientHttp2Session];
beforeAll(async () => {
  twins = await startTwins();
  sessions = [http2Session(twins.short), http2Session(twins.reference)];
});
afterAll(async () => {
  for (const session of sessions) session.destroy();
  await twins[Symbol.asyncDispose]();
});

const auth = { authorization: `Bearer ${KEY}` };
const grpc = { "content-type": "application/grpc", te: "trailers", ...auth };
const proto = { "content-type": "application/proto", ...auth };
const connectJson = { "content-type": "application/json", ...auth };
const NO_CHUNKS: readonly Uint8Array[] = [];

/** The same call on both ways: what the client sees is the same, and is what the short way is given back for. */
async function same(call: Http2Call): Promise<Seen> {
  const [short, reference] = await Promise.all(sessions.map((session) => callHttp2(session, call)));
  expect(short).toEqual(reference);
  return short as Seen;
}

/** The essence of an answer: the status of gRPC, or the HTTP status with the code of Connect. */
function outcome({ status, headers, trailers, body }: Seen): unknown {
  const grpcStatus = trailers?.["grpc-status"] ?? headers["grpc-status"];
  if (grpcStatus !== undefined) return Number(grpcStatus);
  if (status === 200) return "ok";
  const code = /"code":"(\w+)"/.exec(body)?.[1];
  return code === undefined ? status : `${status} ${code}`;
}

type Row = readonly [name: string, call: Http2Call, outcome: unknown];
const g = (name: string, chunks: readonly Uint8Array[], expected: unknown, headers: Http2Call["headers"] = {}): Row => [
  name,
  { headers: { ...grpc, ...headers }, chunks },
  expected,
];
const c = (name: string, chunks: readonly Uint8Array[], expected: unknown, headers: Http2Call["headers"] = {}): Row => [
  name,
  { headers: { ...connectJson, ...headers }, chunks },
  expected,
];
const gzipped = (data: Uint8Array) => envelope(gzipSync(data), { flags: 1 });
const one = [envelope(binary())];
const CODES = Array.from({ length: 16 }, (_, n) => String(n + 1));

describe("gRPC", () => {
  test.each<Row>([
    g("a call", one, 0),
    g("content type application/grpc+proto", one, 0, { "content-type": "application/grpc+proto" }),
    g("JSON in gRPC", [envelope(json())], 0, { "content-type": "application/grpc+json; charset=utf-8" }),
    g("a content type in capitals", one, 0, { "content-type": "Application/gRPC" }),
    g("an unknown sub-type", one, 415, { "content-type": "application/grpc+thrift" }),
    g("headers and trailers, with binary ones", [envelope(binary({ queue: "headers" }))], 0),
    g("echoed metadata", one, 0, { "x-echo": "a, b", "x-other-bin": "AAEC" }),
    g("a content type of the implementation's own", [envelope(binary({ queue: "content-type" }))], 0),
    ...CODES.map((n) => g(`error ${n}`, [envelope(binary({ queue: "error", groupId: n }))], Number(n))),
    g("a refusal", [envelope(binary({ queue: "refusal", groupId: "5" }))], 8),
    g("a fault", [envelope(binary({ queue: "fault" }))], 13),
    g("broken field rules", [envelope(binary({ queue: "no spaces", priority: 10 }))], 3),
    g("text that cannot be stored", [envelope(binary({ headers: { a: "\0" } }))], 3),
    g("no key", one, 16, { authorization: undefined }),
    g("a wrong key", one, 16, { authorization: "Bearer other" }),
    g("a scheme that is not Bearer", one, 16, { authorization: "Basic dGVzdDp0ZXN0" }),
    g("no body", NO_CHUNKS, 12),
    g("an empty message", [envelope(new Uint8Array())], 3),
    g("half a head", [Buffer.alloc(3)], 3),
    g("half a message", [envelope(binary()).subarray(0, -3)], 3),
    g("a head without its message", [envelope(binary()).subarray(0, 5)], 12),
    g("two messages", [...one, ...one], 12),
    g("two messages in one frame", [Buffer.concat([...one, ...one])], 12),
    g("a message and a half", [Buffer.concat([...one, Buffer.alloc(4)])], 3),
    g("a message and a head", [Buffer.concat([...one, envelope(binary()).subarray(0, 5)])], 0),
    g("a message and a broken one", [Buffer.concat([...one, envelope(Uint8Array.of(0x0f))])], 13),
    g(
      "a message byte by byte",
      [...envelope(binary())].map((byte) => Uint8Array.of(byte)),
      0,
    ),
    g("a malformed message", [envelope(Uint8Array.of(0x0a, 0x7f, 0x61))], 13),
    g("malformed JSON", [envelope(Buffer.from("{"))], 3, { "content-type": "application/grpc+json" }),
    g("bytes after the fields", [envelope(Buffer.concat([binary(), Uint8Array.of(0)]))], 13),
    g("a message that says it is compressed", [envelope(binary(), { flags: 1 })], 13),
    g("a compressed message", [gzipped(binary())], 0, { "grpc-encoding": "gzip" }),
    g("an uncompressed message with an encoding", one, 0, { "grpc-encoding": "gzip" }),
    g("identity", one, 0, { "grpc-encoding": "identity", "grpc-accept-encoding": "identity" }),
    g("an unknown encoding", one, 12, { "grpc-encoding": "br" }),
    g("damaged gzip", [envelope(Buffer.from("not gzip"), { flags: 1 })], 3, { "grpc-encoding": "gzip" }),
    g("a gzip bomb", [gzipped(Buffer.alloc(4 * READ_MAX))], 8, { "grpc-encoding": "gzip" }),
    g("damaged gzip, then another message", [envelope(Buffer.from("not gzip"), { flags: 1 }), ...one], 3, {
      "grpc-encoding": "gzip",
    }),
    g("two compressed messages", [gzipped(binary()), gzipped(binary())], 12, { "grpc-encoding": "gzip" }),
    g("a large answer", [envelope(binary({ queue: "big", groupId: "5000" }))], 0),
    g("a large answer, compressed", [envelope(binary({ queue: "big", groupId: "5000" }))], 0, {
      "grpc-accept-encoding": "identity,deflate,gzip",
    }),
    g("a small answer to a client that takes gzip", one, 0, { "grpc-accept-encoding": "identity, gzip" }),
    g("a message above the limit, by its head", [envelope(binary(), { length: READ_MAX + 1 })], 8),
    g("4 GiB, by its head", [envelope(binary(), { length: 0xffff_ffff })], 8),
    g("a message at the limit", [envelope(binary({ payload: Buffer.alloc(READ_MAX - 8, 0x31) }))], 0),
    g("a timeout", one, 0, { "grpc-timeout": "5S" }),
    ...["1H", "100m", "9999999u", "99999999n"].map((t) => g(`timeout ${t}`, one, 0, { "grpc-timeout": t })),
    ...["", "5", "5s", "-1S", "999999999S", "1.5S"].map((t) => g(`timeout "${t}"`, one, 3, { "grpc-timeout": t })),
    g("a timeout above the longest", one, 3, { "grpc-timeout": "99999999H" }),
    g("a timeout that has passed", [envelope(binary({ queue: "stuck" }))], 4, { "grpc-timeout": "0m" }),
    g("a timeout that passes", [envelope(binary({ queue: "stuck" }))], 4, { "grpc-timeout": "30m" }),
    g("a timeout that the implementation hears of", [envelope(binary({ queue: "wait" }))], 4, {
      "grpc-timeout": "30m",
    }),
    g("an unknown encoding before a wrong timeout", one, 12, { "grpc-encoding": "br", "grpc-timeout": "x" }),
    g("no key before an unknown encoding", one, 16, { "grpc-encoding": "br", authorization: undefined }),
    g("a request id", one, 0, { "x-request-id": "r-1" }),
    g("several Authorization headers", one, 16, { authorization: [`Bearer ${KEY}`, "Bearer other"] }),
    g("a header that comes twice", one, 0, { "x-echo": ["a", "b"] }),
    g("a query", one, 0, { ":path": `${PUBLISH}?a=b` }),
    g("a method that nobody has", one, "404 NOT_FOUND", { ":path": "/scheduling.v1.QueueService/Nothing" }),
    g("a method that is not implemented", one, 12, {
      ":path": "/scheduling.v1.QueueService/GetQueue",
    }),
    g("GET", NO_CHUNKS, 405, { ":method": "GET" }),
    g("PUT", one, 405, { ":method": "PUT" }),
    g("from a page", one, 0, { origin: "https://console.example.com" }),
  ])("%s", async (_name, call, expected) => {
    expect(outcome(await same(call))).toEqual(expected);
  });

  test("a message above the limit in many frames is refused", async () => {
    const chunk = Buffer.alloc(64 * 1_024);
    const call = { headers: grpc, chunks: [envelope(Buffer.alloc(0), { length: READ_MAX + 1 }), chunk, chunk] };
    expect(outcome(await same(call))).toBe(8);
  });

  test("a broken message is refused before the client has finished", async () => {
    const call = { headers: grpc, chunks: [envelope(Uint8Array.of(0x0f))], isLeftOpen: true };
    expect(outcome(await same(call))).toBe(13);
  });

  test("a wrong key is refused before the client has sent anything", async () => {
    const call = { headers: { ...grpc, authorization: "Bearer other" }, chunks: [], isLeftOpen: true };
    expect(outcome(await same(call))).toBe(16);
  });
});

describe("Connect over HTTP/2", () => {
  const bomb = gzipSync(Buffer.alloc(4 * READ_MAX));
  test.each<Row>([
    c("a call", [json()], "ok"),
    c("binary", [binary()], "ok", proto),
    c("with a charset", [json()], "ok", { "content-type": "application/json;charset=utf8" }),
    c("a content type in capitals", [json()], "ok", { "content-type": "Application/JSON" }),
    c("a charset for binary", [binary()], 415, { "content-type": "application/proto; charset=utf-8" }),
    c("another charset", [json()], 415, { "content-type": "application/json; charset=latin1" }),
    c("another content type", [json()], 415, { "content-type": "text/plain" }),
    c("no content type", [json()], 415, { "content-type": undefined }),
    c("a content type of streams", [envelope(json())], 415, { "content-type": "application/connect+json" }),
    c("the version of the protocol", [json()], "ok", { "connect-protocol-version": "1" }),
    c("an unknown version of the protocol", [json()], "ok", { "connect-protocol-version": "7" }),
    c("headers and trailers, with binary ones", [json({ queue: "headers" })], "ok"),
    c("echoed metadata", [json()], "ok", { "x-echo": "a, b" }),
    c("a content type of the implementation's own", [json({ queue: "content-type" })], "ok"),
    ...CODES.map((n) => c(`error ${n}`, [json({ queue: "error", groupId: n })], expect.stringMatching(/^[45]\d\d \w/))),
    c("an error to a binary call", [binary({ queue: "error", groupId: "5" })], "404 not_found", proto),
    c("a refusal", [json({ queue: "refusal", groupId: "5" })], "429 resource_exhausted"),
    c("a fault", [json({ queue: "fault" })], "500 internal"),
    c("broken field rules", [json({ queue: "no spaces", priority: 10 })], "400 invalid_argument"),
    c("no key", [json()], "401 unauthenticated", { authorization: undefined }),
    c("a wrong key", [json()], "401 unauthenticated", { authorization: "Bearer other" }),
    c("no body", NO_CHUNKS, "400 invalid_argument"),
    c("no body for binary", NO_CHUNKS, "400 invalid_argument", proto),
    c("an empty object", [Buffer.from("{}")], "400 invalid_argument"),
    c("a byte order mark", [Buffer.concat([Buffer.from("\ufeff"), json()])], "ok"),
    c("malformed JSON", [Buffer.from("{")], "400 invalid_argument"),
    c("text after the JSON", [Buffer.concat([json(), Buffer.from("x")])], "400 invalid_argument"),
    c(
      "JSON that is not UTF-8",
      [Buffer.concat([Buffer.from('{"queue":"'), Buffer.of(255), Buffer.from('"}')])],
      "400 invalid_argument",
    ),
    c("an unknown field", [Buffer.from('{"queue":"q","payload":"e30=","nobody":1}')], "ok"),
    c("a field of another type", [Buffer.from('{"queue":7}')], "400 invalid_argument"),
    c("a malformed binary message", [Uint8Array.of(0x0a, 0x7f, 0x61)], "400 invalid_argument", proto),
    c("a malformed binary message and gzip", [Uint8Array.of(0x0f)], "400 invalid_argument", {
      ...proto,
      "accept-encoding": "gzip",
    }),
    c("a compressed body", [gzipSync(json())], "ok", { "content-encoding": "gzip" }),
    c("an empty compressed body", NO_CHUNKS, "400 invalid_argument", { "content-encoding": "gzip" }),
    c("damaged gzip", [Buffer.from("not gzip")], "400 invalid_argument", { "content-encoding": "gzip" }),
    c("a gzip bomb", [bomb], "429 resource_exhausted", { "content-encoding": "gzip" }),
    c("an unknown encoding", [json()], "501 unimplemented", { "content-encoding": "br" }),
    c("identity", [json()], "ok", { "content-encoding": "identity", "accept-encoding": "identity" }),
    c("a large answer", [json({ queue: "big", groupId: "5000" })], "ok"),
    c("a large answer, compressed", [json({ queue: "big", groupId: "5000" })], "ok", { "accept-encoding": "br, gzip" }),
    c("a large answer to a compressed call", [gzipSync(json({ queue: "big", groupId: "5000" }))], "ok", {
      "content-encoding": "gzip",
    }),
    c("a body at the limit", [binary({ payload: Buffer.alloc(READ_MAX - 8, 0x31) })], "ok", proto),
    c("a timeout", [json()], "ok", { "connect-timeout-ms": "5000" }),
    ...["", "x", "-1", "1.5", "99999999999"].map((t) =>
      c(`timeout "${t}"`, [json()], "400 invalid_argument", { "connect-timeout-ms": t }),
    ),
    c("a timeout above the longest", [json()], "400 invalid_argument", { "connect-timeout-ms": "9999999999" }),
    c("a timeout that has passed", [json({ queue: "stuck" })], "504 deadline_exceeded", { "connect-timeout-ms": "0" }),
    c("a timeout that passes", [json({ queue: "stuck" })], "504 deadline_exceeded", { "connect-timeout-ms": "30" }),
    c("a timeout that the implementation hears of", [json({ queue: "wait" })], "504 deadline_exceeded", {
      "connect-timeout-ms": "30",
    }),
    c("a query", [json()], "ok", { ":path": `${PUBLISH}?a=b` }),
    c("GET", NO_CHUNKS, 405, { ":method": "GET" }),
    c("HEAD", NO_CHUNKS, 405, { ":method": "HEAD" }),
    c("OPTIONS", NO_CHUNKS, 405, { ":method": "OPTIONS" }),
    c("a preflight", NO_CHUNKS, 204, {
      ":method": "OPTIONS",
      origin: "https://console.example.com",
      "access-control-request-method": "POST",
    }),
    c("from a page", [json()], "ok", { origin: "https://console.example.com" }),
    c("gRPC-Web", [envelope(binary())], "ok", { "content-type": "application/grpc-web+proto" }),
  ])("%s", async (_name, call, expected) => {
    expect(outcome(await same(call))).toEqual(expected);
  });

  test("a body above the limit is refused while it is sent", async () => {
    const chunks = Array.from({ length: 6 }, () => Buffer.alloc(64 * 1_024, 0x20));
    expect(outcome(await same({ headers: connectJson, chunks }))).toBe("429 resource_exhausted");
  });

  test("a declared length above the limit is refused before the body", async () => {
    const headers = { ...connectJson, "content-length": String(READ_MAX + 1) };
    expect(outcome(await same({ headers, chunks: [], isLeftOpen: true }))).toBe("429 resource_exhausted");
  });

  test("a wrong key is refused before the client has sent anything", async () => {
    const call = { headers: { ...connectJson, authorization: "Bearer other" }, chunks: [], isLeftOpen: true };
    expect(outcome(await same(call))).toBe("401 unauthenticated");
  });
});

/** The same bytes on both ways, each on a connection of its own. */
async function sameBytes(...chunks: readonly (string | Uint8Array)[]): Promise<Seen[]> {
  const [short, reference] = await Promise.all([twins.short, twins.reference].map((twin) => callHttp1(twin, chunks)));
  expect(short).toEqual(reference);
  return short as Seen[];
}

interface Http1Call {
  readonly method?: string;
  readonly path?: string;
  readonly fields?: readonly string[];
  readonly body?: string | Uint8Array;
  readonly isLast?: boolean;
}

/** A request of HTTP/1.1. The last of a connection asks to close it. */
function http1({ method = "POST", path = PUBLISH, fields = JSON_FIELDS, body, isLast = true }: Http1Call): Buffer {
  const lines = [`${method} ${path} HTTP/1.1`, ...fields];
  if (!fields.some((field) => field.startsWith("Host:"))) lines.push("Host: localhost:1");
  if (body !== undefined) lines.push(`Content-Length: ${body.length}`);
  if (isLast) lines.push("Connection: close");
  return Buffer.concat([Buffer.from(`${lines.join("\r\n")}\r\n\r\n`), Buffer.from(body ?? "")]);
}

const AUTH = `Authorization: Bearer ${KEY}`;
const JSON_FIELDS = [AUTH, "Content-Type: application/json"];
const PROTO_FIELDS = [AUTH, "Content-Type: application/proto"];
const statusOf = (seen: readonly Seen[]) => seen.map(({ status }) => Number(/ (\d{3}) /.exec(`${status}`)?.[1] ?? 0));

describe("Connect over HTTP/1.1", () => {
  test.each<readonly [name: string, call: Http1Call, status: number]>([
    ["a call", { body: json() }, 200],
    ["binary", { fields: PROTO_FIELDS, body: binary() }, 200],
    ["headers and trailers", { body: json({ queue: "headers" }) }, 200],
    ["an error", { body: json({ queue: "error", groupId: "5" }) }, 404],
    ["a fault", { body: json({ queue: "fault" }) }, 500],
    ["no body", { fields: [...JSON_FIELDS, "Content-Length: 0"] }, 400],
    ["no length", {}, 400],
    ["malformed binary", { fields: PROTO_FIELDS, body: "\x0f" }, 400],
    ["no key", { fields: ["Content-Type: application/json"], body: json() }, 401],
    ["two keys", { fields: [...JSON_FIELDS, "Authorization: Bearer other"], body: json() }, 401],
    ["a length above the limit", { fields: [...JSON_FIELDS, `Content-Length: ${READ_MAX + 1}`] }, 429],
    ["gzip", { fields: [...JSON_FIELDS, "Content-Encoding: gzip"], body: gzipSync(json()) }, 200],
    ["brotli", { fields: [...JSON_FIELDS, "Content-Encoding: br"], body: json() }, 501],
    [
      "a large answer, compressed",
      {
        fields: [...JSON_FIELDS, "Accept-Encoding: gzip"],
        body: json({ queue: "big", groupId: "5000" }),
      },
      200,
    ],
    [
      "a timeout that passes",
      {
        fields: [...JSON_FIELDS, "Connect-Timeout-Ms: 30"],
        body: json({ queue: "stuck" }),
      },
      504,
    ],
    ["a wrong timeout", { fields: [...JSON_FIELDS, "Connect-Timeout-Ms: x"], body: json() }, 400],
    ["a body with a GET", { method: "GET", body: json() }, 405],
    ["HEAD", { method: "HEAD" }, 405],
    ["OPTIONS", { method: "OPTIONS" }, 405],
    ["DELETE", { method: "DELETE" }, 405],
    ["gRPC over HTTP/1.1", { fields: [AUTH, "Content-Type: application/grpc"], body: envelope(binary()) }, 200],
    ["an absolute target", { path: `http://elsewhere.example${PUBLISH}`, body: json() }, 404],
    ["a target with a query", { path: `${PUBLISH}?x=1`, body: json() }, 200],
    ["a Host that is none", { fields: [...JSON_FIELDS, "Host: a b"], body: json() }, 400],
    ["a Host with a user", { fields: [...JSON_FIELDS, "Host: me@localhost"], body: json() }, 200],
    ["an expectation", { fields: [...JSON_FIELDS, "Expect: 100-continue"], body: json() }, 100],
    ["a request id", { fields: [...JSON_FIELDS, "X-Request-Id: r-1"], body: json() }, 200],
  ])("%s", async (_name, call, status) => {
    expect(statusOf(await sameBytes(http1(call)))[0]).toBe(status);
  });

  test("requests in one packet are answered in order", async () => {
    const calls = ["a", "error", "headers", "b"].map((queue) =>
      http1({ body: json({ queue }), isLast: queue === "b" }),
    );
    expect(statusOf(await sameBytes(Buffer.concat(calls)))).toEqual([200, 500, 200, 200]);
  });

  test("a connection goes on after a call whose body was not read", async () => {
    const refused = http1({ fields: ["Content-Type: application/json"], body: json(), isLast: false });
    expect(statusOf(await sameBytes(refused, http1({ body: json() })))).toEqual([401, 200]);
  });

  test("a body in chunks is read", async () => {
    const head = http1({ fields: [...JSON_FIELDS, "Transfer-Encoding: chunked"] });
    const body = Buffer.from(json()).toString();
    const parts = [body.slice(0, 5), body.slice(5)].map((part) => `${part.length.toString(16)}\r\n${part}\r\n`);
    expect(statusOf(await sameBytes(head, ...parts, "0\r\n\r\n"))).toEqual([200]);
  });

  test("a body byte by byte is read", async () => {
    const request = http1({ body: json() });
    expect(statusOf(await sameBytes(...[...request].map((byte) => Uint8Array.of(byte))))).toEqual([200]);
  });
});

describe("REST", () => {
  const path = "/v1/scheduling/queue/publish";
  test.each<readonly [name: string, call: Http1Call, status: number]>([
    ["a call", { body: '{"queue":"q","payload":{"a":1}}' }, 200],
    ["a call with warnings", { body: '{"queue":"q","payload":{},"nobody":1}' }, 200],
    ["headers and trailers", { body: '{"queue":"headers","payload":1}' }, 200],
    ["an error with metadata", { body: '{"queue":"error","payload":1,"group_id":"5"}' }, 404],
    ["every detail of a refusal", { body: '{"queue":"refusal","payload":1,"group_id":"5"}' }, 413],
    ["a fault", { body: '{"queue":"fault","payload":1}' }, 500],
    ["broken field rules", { body: '{"queue":"no spaces","payload":1,"priority":10}' }, 400],
    ["malformed JSON", { body: "{" }, 400],
    ["no key", { fields: ["Content-Type: application/json"], body: "{}" }, 401],
    ["another content type", { fields: [AUTH, "Content-Type: image/png"], body: "{}" }, 415],
    ["a body above the limit", { fields: [...JSON_FIELDS, `Content-Length: ${READ_MAX + 1}`] }, 413],
    [
      "a timeout that passes",
      {
        fields: [...JSON_FIELDS, "Connect-Timeout-Ms: 30"],
        body: '{"queue":"stuck","payload":1}',
      },
      504,
    ],
    ["a wrong timeout", { fields: [...JSON_FIELDS, "Connect-Timeout-Ms: x"], body: '{"queue":"q","payload":1}' }, 400],
    ["a method without an implementation", { method: "GET", path: "/v1/scheduling/queue/get/q" }, 501],
    ["a method that is not allowed", { method: "PUT" }, 405],
  ])("%s", async (_name, call, status) => {
    expect(statusOf(await sameBytes(http1({ path, ...call })))).toEqual([status]);
  });
});
