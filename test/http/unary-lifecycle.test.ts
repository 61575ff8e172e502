import { afterEach, describe, expect, test } from "vitest";
import { selfSigned } from "../support/certificate.ts";
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
  type Seen,
  startTwins,
  type Twin,
  type TwinOptions,
} from "./twins.ts";

const SOON = { timeout: 10_000 };
const auth = { authorization: `Bearer ${KEY}` };
const grpc = { "content-type": "application/grpc", te: "trailers", ...auth };
const connectJson = { "content-type": "application/json", ...auth };
const FACES: readonly (readonly [name: string, call: (queue: string) => Http2Call])[] = [
  ["gRPC", (queue) => ({ headers: grpc, chunks: [envelope(binary({ queue }))] })],
  ["Connect", (queue) => ({ headers: connectJson, chunks: [json({ queue })] })],
  [
    "REST",
    (queue) => ({
      headers: { ":path": "/v1/scheduling/queue/publish", ...connectJson },
      chunks: [Buffer.from(`{"queue":"${queue}","payload":1}`)],
    }),
  ],
];

let running: Awaited<ReturnType<typeof startTwins>> | undefined;
afterEach(async () => {
  await running?.[Symbol.asyncDispose]();
  running = undefined;
});

/** What `act` gives for a server of each kind. */
async function both<T>(
  options: TwinOptions,
  act: (twin: Twin) => Promise<T>,
): Promise<readonly [short: T, reference: T]> {
  running = await startTwins(options);
  return Promise.all([act(running.short), act(running.reference)]);
}

/** One call on a connection of its own. */
async function call(twin: Twin, made: Http2Call, cancelAt?: Promise<void>): Promise<Seen> {
  const session = http2Session(twin);
  try {
    return await callHttp2(session, made, cancelAt);
  } finally {
    session.destroy();
  }
}

describe.each(FACES)("%s", (name, made) => {
  test("a client that cancels a call ends the implementation's work, which hears why", async () => {
    const [short, reference] = await both({}, async (twin) => {
      await call(twin, made("wait"), twin.waiting());
      await expect.poll(() => twin.seen.length, SOON).toBe(1);
      await expect.poll(() => twin.lines.length, SOON).toBe(1);
      return { seen: twin.seen, code: twin.lines[0]?.["code"], faults: twin.faults };
    });
    expect(short).toEqual(reference);
    expect(short).toMatchObject({ code: "canceled", faults: [] });
  });

  test("a call that runs when the server drains is ended with what the server says", async () => {
    const [short, reference] = await both({}, async (twin) => {
      const waits = twin.waiting();
      const answer = call(twin, made("wait"));
      await waits;
      await twin.stop(5_000);
      return { answer: await answer, seen: twin.seen };
    });
    expect(short).toEqual(reference);
    expect(JSON.stringify(short)).toContain("shutting");
  });

  test("the implementation sees the same context", async () => {
    const [short, reference] = await both({}, async (twin) => {
      const { headers, chunks } = made("context");
      const more = { "x-one": "1", "user-agent": "test", "grpc-timeout": "5S", "connect-timeout-ms": "5000" };
      await call(twin, { headers: { ...headers, ...more }, chunks });
      await expect.poll(() => twin.seen.length, SOON).toBe(2);
      return twin.seen;
    });
    expect(short).toEqual(reference);
    expect(short[0]).toMatchObject({ hasTimeout: true, isAborted: false });
  });

  test.each(["q", "refusal", "fault", "no spaces"])("the log has the same line of a call to %j", async (queue) => {
    const [short, reference] = await both({}, async (twin) => {
      const { headers, chunks } = made(queue);
      await call(twin, { headers: { ...headers, "x-request-id": "r-1" }, chunks });
      await expect.poll(() => twin.lines.length, SOON).toBe(1);
      return twin.lines.map(({ ms, time, ...line }) => ({ ...line, hasTime: typeof ms === "number" }));
    });
    expect(short).toEqual(reference);
    expect(short[0]).toMatchObject({ method: "scheduling.v1.QueueService/Publish", request_id: "r-1", hasTime: true });
  });

  test("a call without a key, and one that cannot be read, are logged once", async () => {
    const [short, reference] = await both({}, async (twin) => {
      const { headers } = made("q");
      const unread = name === "gRPC" ? envelope(Uint8Array.of(0x0f)) : Buffer.from("{");
      await call(twin, { headers: { ...headers, authorization: "Bearer other" }, chunks: [] });
      await call(twin, { headers, chunks: [unread] });
      await expect.poll(() => twin.lines.length, SOON).toBe(2);
      return twin.lines.map(({ code, method }) => ({ code, method }));
    });
    expect(short).toEqual(reference);
    expect(short[0]?.code).toBe("unauthenticated");
  });

  test("calls over TLS are answered", async () => {
    const [short, reference] = await both({ tls: selfSigned(["127.0.0.1"]) }, (twin) => call(twin, made("headers")));
    expect(short).toEqual(reference);
    expect(short.status).toBe(200);
  });
});

test("an HTTP/1.1 client that hangs up ends the implementation's work", async () => {
  const [short, reference] = await both({}, async (twin) => {
    const body = json({ queue: "wait" });
    const head = [`POST ${PUBLISH} HTTP/1.1`, "Host: localhost", `Authorization: Bearer ${KEY}`];
    const fields = ["Content-Type: application/json", `Content-Length: ${body.length}`, "", ""];
    const waits = twin.waiting();
    await callHttp1(twin, [[...head, ...fields].join("\r\n"), body], waits);
    await expect.poll(() => twin.seen.length, SOON).toBe(1);
    return { seen: twin.seen, faults: twin.faults };
  });
  expect(short).toEqual(reference);
  expect(short.seen).toMatchObject([{ reason: "AbortError" }]);
});

test.each([undefined, "2", "1"])(
  "where the version of the protocol is required, %s is treated alike",
  async (version) => {
    const [short, reference] = await both({ connect: { requireConnectProtocolHeader: true } }, (twin) =>
      call(twin, { headers: { ...connectJson, "connect-protocol-version": version }, chunks: [json()] }),
    );
    expect(short).toEqual(reference);
    expect(short.status).toBe(version === "1" ? 200 : 400);
  },
);

test.each([
  ["gRPC", { grpc: false }, 415],
  ["Connect", { connect: false }, 415],
] as const)("a router without %s serves no unary call of it", async (name, connect, status) => {
  const made = FACES.find(([face]) => face === name)?.[1] as (queue: string) => Http2Call;
  const [short, reference] = await both({ connect }, (twin) => call(twin, made("q")));
  expect(short).toEqual(reference);
  expect(short.status).toBe(status);
});

test("an HTTP/2 request that never ends is reset", async () => {
  const [short, reference] = await both({ requestTimeoutMs: 1_000 }, (twin) =>
    call(twin, { headers: connectJson, chunks: [Buffer.from("{")], isLeftOpen: true }),
  );
  expect(short).toEqual(reference);
  expect(short).toMatchObject({ status: "none", reset: 8 });
});

test("a call that runs for longer than a request may arrive goes on", async () => {
  const [short, reference] = await both({ requestTimeoutMs: 1_000 }, (twin) => {
    const headers = { ...grpc, "grpc-timeout": "2S" };
    return call(twin, { headers, chunks: [envelope(binary({ queue: "wait" }))] });
  });
  expect(short).toEqual(reference);
  expect(short.trailers).toMatchObject({ "grpc-status": "4" });
});

test("an interceptor may answer by itself, change the request and add headers", async () => {
  const connect: TwinOptions["connect"] = {
    interceptors: [
      (next) => async (request) => {
        const answer = await next({ ...request, message: { ...request.message, queue: "changed" } as never });
        answer.header.set("x-later", "1");
        answer.trailer.set("x-late", "2");
        return answer;
      },
      (next) => async (request) => {
        const answer = await next({ ...request, header: new Headers({ "x-echo": "own" }) });
        return { ...answer, header: new Headers({ ...Object.fromEntries(answer.header), "x-new": "3" }) } as never;
      },
    ],
  };
  const [short, reference] = await both({ connect }, (twin) =>
    Promise.all(FACES.map(([, made]) => call(twin, made("q")))),
  );
  expect(short).toEqual(reference);
  expect(short[0]).toMatchObject({ headers: { "x-new": "3", "x-later": "1", "x-echo": "own" } });
  expect(short[0]?.body).toContain("changed/");
});

test("a header that cannot be sent is a fault", async () => {
  const connect: TwinOptions["connect"] = {
    interceptors: [
      (next) => async (request) => {
        const answer = await next(request);
        answer.header.set("x-bell", "\x07");
        return answer;
      },
    ],
  };
  const [short, reference] = await both({ connect }, async (twin) => {
    const body = json();
    const head = [`POST ${PUBLISH} HTTP/1.1`, "Host: localhost", `Authorization: Bearer ${KEY}`, "Connection: close"];
    const fields = ["Content-Type: application/json", `Content-Length: ${body.length}`, "", ""];
    const answers = await callHttp1(twin, [[...head, ...fields].join("\r\n"), body]);
    return { answers, faults: twin.faults.length };
  });
  // The reference's answer promises the body that it cannot send.
  expect(short.answers).toMatchObject([{ status: expect.stringContaining("500"), body: "" }]);
  expect(short.answers[0]?.headers["content-length"]).not.toEqual(reference.answers[0]?.headers["content-length"]);
  expect(short.faults).toBe(reference.faults);
});
