import type { ClientHttp2Session } from "node:http2";
import { brotliCompressSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
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
  startTwins,
} from "./twins.ts";

/** Seconds for each of the tests below, and the seed of what they send, which a failure prints. */
const { FUZZ_SECONDS = "3", FUZZ_SEED = "1" } = process.env;
const RUNS = {
  seed: Number(FUZZ_SEED),
  numRuns: 100 * Number(FUZZ_SECONDS),
  interruptAfterTimeLimit: 1_000 * Number(FUZZ_SECONDS),
  markInterruptAsFailure: false,
};
const TIMEOUT_MS = 30_000 + 1_000 * Number(FUZZ_SECONDS);

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

/** Mostly the first value, and now and then one of the others. */
function mostly<T>(usual: T, ...others: readonly T[]): fc.Arbitrary<T> {
  return fc.oneof({ weight: 4, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: fc.constantFrom(...others) });
}

const QUEUES = ["q", "headers", "refusal", "error", "fault", "content-type", "big", "no spaces", ""] as const;
const messages = fc.record({
  queue: fc.constantFrom(...QUEUES),
  groupId: fc.constantFrom("", "1", "5", "13", "16", "1500"),
  headers: fc.dictionary(fc.string({ maxLength: 4 }), fc.string({ maxLength: 4, unit: "grapheme" }), { maxKeys: 2 }),
  payload: fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.constant(Buffer.alloc(READ_MAX, 0x31))),
});

type Damage = (bytes: Uint8Array) => Uint8Array;
const NONE: Damage = (bytes) => bytes;

/** What may be done to the bytes of a message. */
const damages: fc.Arbitrary<Damage> = fc.oneof(
  { weight: 6, arbitrary: fc.constant(NONE) },
  { weight: 1, arbitrary: fc.nat(60).map((at) => (bytes: Uint8Array) => bytes.subarray(0, at)) },
  {
    weight: 1,
    arbitrary: fc.uint8Array({ maxLength: 8 }).map((more) => (bytes: Uint8Array) => Buffer.concat([bytes, more])),
  },
  {
    weight: 1,
    arbitrary: fc.tuple(fc.nat(60), fc.nat(255)).map(([at, byte]) => (bytes: Uint8Array) => {
      const damaged = Uint8Array.from(bytes);
      if (at < damaged.length) damaged[at] = byte;
      return damaged;
    }),
  },
);

const encodings = mostly<string | undefined>(undefined, "gzip", "br", "identity", "GZIP", "gzip, gzip", "");
const accepted = mostly<string | undefined>(
  undefined,
  "gzip",
  "br, gzip",
  "identity,deflate,gzip",
  "*",
  "",
  "gzip;q=0",
);
const timeouts = mostly<string | undefined>(
  undefined,
  "5000",
  "5S",
  "20000m",
  "",
  "x",
  "-1",
  "99999999H",
  "9999999999",
);
const keys = mostly<string | undefined>(`Bearer ${KEY}`, undefined, "Bearer other", KEY, "bearer  test-key", "Basic x");
const contentTypes = fc.constantFrom(
  "application/json",
  "application/proto",
  "application/grpc",
  "application/grpc+json",
  "application/grpc+proto",
  "application/grpc-web",
  "application/json; charset=utf-8",
  "APPLICATION/PROTO",
  "application/connect+json",
  "application/grpc;x",
  "text/plain",
  "",
);

interface Made {
  readonly headers: Record<string, string | undefined>;
  readonly body: Uint8Array;
  /**
   * Whether it must go out in one piece. Of several things that are wrong with a body, connect-node tells the one that
   * comes up first, which depends on how the bytes come in.
   */
  readonly isWhole: boolean;
}

/** A request whose content type, encodings, envelopes and bytes fit together, but for what went wrong. */
const requests: fc.Arbitrary<Made> = fc
  .record({
    message: messages,
    contentType: contentTypes,
    damage: damages,
    damageAfter: damages,
    encoding: encodings,
    isPacked: mostly(true, false),
    accepted,
    timeout: timeouts,
    key: keys,
    flags: mostly<number | undefined>(undefined, 0, 1, 2, 128, 255),
    length: mostly<number | undefined>(undefined, 0, 5, READ_MAX + 1, 0xffff_ffff),
    copies: mostly(1, 0, 2),
    more: fc.constantFrom<Record<string, string>>(
      {},
      { "x-echo": "a" },
      { "connect-protocol-version": "2" },
      { origin: "https://console.example.com" },
      { "x-request-id": "not fit for one!" },
      { "x-request-id": "r-1" },
      { cookie: "a=1; b=2" },
    ),
  })
  .map((made) => {
    const { contentType, encoding, flags, length } = made;
    const isGrpc = contentType.includes("grpc");
    const plain = made.damage(/json/i.test(contentType) ? json(made.message) : binary(made.message));
    const isPacked = made.isPacked && encoding !== undefined && encoding !== "identity" && encoding !== "";
    const data = !isPacked ? plain : encoding === "br" ? brotliCompressSync(plain) : gzipSync(plain);
    const framed = envelope(data, { flags: flags ?? (isPacked ? 1 : 0), length: length ?? data.length });
    const copies = Array.from({ length: made.copies }, () => (isGrpc ? framed : data));
    return {
      headers: {
        "content-type": contentType === "" ? undefined : contentType,
        authorization: made.key,
        [isGrpc ? "grpc-encoding" : "content-encoding"]: encoding,
        [isGrpc ? "grpc-accept-encoding" : "accept-encoding"]: made.accepted,
        [isGrpc ? "grpc-timeout" : "connect-timeout-ms"]: made.timeout,
        ...made.more,
      },
      body: made.damageAfter(Buffer.concat(copies)),
      isWhole: made.damageAfter !== NONE || made.copies > 1 || length !== undefined,
    };
  });

/** Cuts of a body, as fractions of it. */
const cuts = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 3 });

function cut(body: Uint8Array, at: readonly number[]): Uint8Array[] {
  const ends = [0, ...at.map((part) => Math.floor(part * body.length)).sort((a, b) => a - b), body.length];
  return ends.slice(1).map((end, i) => body.subarray(ends[i], end));
}

test(
  "over HTTP/2 no client can tell the short way from connect-node",
  async () => {
    const methods = mostly("POST", "GET", "PUT", "HEAD");
    const paths = mostly(PUBLISH, `${PUBLISH}?q=1`, `${PUBLISH}/`, "/v1/scheduling/queue/publish");
    await fc.assert(
      fc.asyncProperty(requests, cuts, methods, paths, async ({ headers, body, isWhole }, at, method, path) => {
        const call: Http2Call = {
          headers: { ":method": method, ":path": path, ...headers },
          chunks: method === "POST" || method === "PUT" ? cut(body, isWhole ? [] : at) : [],
        };
        const [short, reference] = await Promise.all(sessions.map((session) => callHttp2(session, call)));
        expect(short).toEqual(reference);
      }),
      RUNS,
    );
  },
  TIMEOUT_MS,
);

test(
  "over HTTP/1.1 no client can tell the short way from connect-node",
  async () => {
    const hosts = mostly("localhost", "LOCALHOST:80", "a b", "u@localhost", "[::1]:7");
    const paths = mostly(PUBLISH, `${PUBLISH}?q=1`, "/v1/scheduling/queue/publish");
    await fc.assert(
      fc.asyncProperty(
        requests,
        cuts,
        hosts,
        paths,
        fc.boolean(),
        async ({ headers, body }, at, host, path, isChunked) => {
          const fields = Object.entries({ host, ...headers, connection: "close" })
            .filter(([, value]) => value !== undefined)
            .map(([name, value]) => `${name}: ${value}`);
          const length = isChunked ? "transfer-encoding: chunked" : `content-length: ${body.length}`;
          const head = Buffer.from(`${[`POST ${path} HTTP/1.1`, ...fields, length].join("\r\n")}\r\n\r\n`);
          const parts = cut(body, at).filter((part) => part.length > 0);
          const framed = isChunked ? [...parts.map(chunk), Buffer.from("0\r\n\r\n")] : parts;
          const [short, reference] = await Promise.all(
            [twins.short, twins.reference].map((twin) => callHttp1(twin, [head, ...framed])),
          );
          expect(short).toEqual(reference);
        },
      ),
      RUNS,
    );
  },
  TIMEOUT_MS,
);

function chunk(part: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from("\r\n")]);
}
