import { Code, ConnectError, createClient, createRouterTransport, type HandlerContext } from "@connectrpc/connect";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BadRequestSchema, ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { connect } from "../../src/db/connect.ts";
import { Refusal } from "../../src/errors.ts";
import { createLogger } from "../../src/log.ts";
import { principalKey } from "../../src/rpc/context.ts";
import { accessLog } from "../../src/rpc/interceptors/access-log.ts";
import { deadline } from "../../src/rpc/interceptors/deadline.ts";
import { refusals } from "../../src/rpc/interceptors/refusals.ts";
import { validate } from "../../src/rpc/interceptors/validate.ts";
import { toConnectError } from "../../src/rpc/refusal.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await testDatabase();
});
afterAll(() => database[Symbol.asyncDispose]());

/** A service whose GetQueue and ConsumeStream do what the test says, behind all interceptors, with what was logged. */
function serve(handler: (ctx: HandlerContext) => Promise<object>, options: { defaultMs?: number } = {}) {
  const lines: Record<string, unknown>[] = [];
  const faults: unknown[] = [];
  const access = accessLog(createLogger({ level: "info", pretty: false, stream: lineStream(lines) }));
  const transport = createRouterTransport(
    (router) => {
      router.service(QueueService, {
        getQueue: (_, ctx) => handler(ctx),
        publishBatch: () => ({}),
        async *consumeStream(_, ctx) {
          yield { messages: [] };
          await handler(ctx);
        },
      });
    },
    {
      router: {
        requestGate: access.gate(async (ctx) => {
          ctx.values.set(principalKey, { projectId: "project-1", strictFields: false, strictPathBody: false });
        }),
        interceptors: [
          access.interceptor,
          refusals((fault) => faults.push(fault)),
          deadline(options.defaultMs),
          validate([QueueService]),
        ],
      },
    },
  );
  return { client: createClient(QueueService, transport), lines, faults };
}

function lineStream(lines: Record<string, unknown>[]) {
  return { write: (line: string) => void lines.push(JSON.parse(line)) };
}

async function errorOf(promise: Promise<unknown>): Promise<ConnectError> {
  return promise.then(
    () => {
      throw new Error("the call succeeded");
    },
    (error: unknown) => ConnectError.from(error),
  );
}

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}

/** Calls that throw in a unary handler, and in a stream that has begun. */
const ways = [
  ["a unary call", ({ client }: ReturnType<typeof serve>) => client.getQueue({ queue: "q" })],
  ["a stream", ({ client }: ReturnType<typeof serve>) => drain(client.consumeStream({ queue: "q" }))],
] as const;

describe.each(ways)("what is thrown in %s", (_, call) => {
  test("a refusal keeps its code, message, reason and metadata", async () => {
    const service = serve(async () => {
      throw new Refusal("BODY_TOO_LARGE", { limit: "5" });
    });
    const error = await errorOf(call(service));
    expect(error.code).toBe(Code.ResourceExhausted);
    expect(error.rawMessage).toBe("the request is larger than 5 bytes");
    expect(error.findDetails(ErrorInfoSchema)[0]).toMatchObject({ reason: "BODY_TOO_LARGE", metadata: { limit: "5" } });
    expect(service.faults).toEqual([]);
  });

  test("a fault becomes internal, tells nothing, and is handed to the log", async () => {
    const fault = new TypeError("secret detail");
    const service = serve(async () => {
      throw fault;
    });
    const error = await errorOf(call(service));
    expect(error.code).toBe(Code.Internal);
    expect(error.rawMessage).toBe("internal error");
    expect(JSON.stringify(error.details)).not.toContain("secret");
    expect(service.faults).toEqual([fault]);
  });

  test("an unreachable database is unavailable", async () => {
    const service = serve(async () => {
      const db = connect({ url: "postgres://nobody@localhost/none?host=/nonexistent" });
      return (await sql`select 1`.execute(db)) as object;
    });
    const error = await errorOf(call(service));
    expect(error.code).toBe(Code.Unavailable);
    expect(error.findDetails(ErrorInfoSchema)[0]?.reason).toBe("DATABASE_UNAVAILABLE");
    expect(service.faults).toHaveLength(1);
  });

  test.each([
    ["57014", Code.DeadlineExceeded, "DATABASE_TIMEOUT"],
    ["40001", Code.Aborted, "WRITE_CONFLICT"],
    ["40P01", Code.Aborted, "WRITE_CONFLICT"],
  ])("SQLSTATE %s has a code of its own", async (state, code, reason) => {
    const service = serve(async () => {
      await sql.raw(`do $$ begin raise exception 'x' using errcode = '${state}'; end $$`).execute(database.db);
      return {};
    });
    const error = await errorOf(call(service));
    expect(error.code).toBe(code);
    expect(error.findDetails(ErrorInfoSchema)[0]?.reason).toBe(reason);
  });

  test("a row that breaks a constraint is a fault of ours", async () => {
    const service = serve(async () => {
      await sql`insert into projects (name) values ('p'), ('p')`.execute(database.db);
      return {};
    });
    expect((await errorOf(call(service))).code).toBe(Code.Internal);
  });
});

test("a stream that cannot be written, because its caller is gone, is no fault and lets the handler clean up", async () => {
  const faults: unknown[] = [];
  let hasCleanedUp = false;
  async function* messages() {
    try {
      yield { messages: [] };
      yield { messages: [] };
    } finally {
      hasCleanedUp = true;
    }
  }
  const request = { service: QueueService, method: QueueService.method.consumeStream, header: new Headers() };
  const answer = { stream: true, message: messages() };
  const call = refusals((fault) => faults.push(fault))(async () => answer as never);
  const response = (await call(request as never)) as unknown as { message: AsyncGenerator };
  await response.message.next();
  const error = await errorOf(response.message.throw(new Error("write after the stream was destroyed")));
  expect(error.code).toBe(Code.Canceled);
  expect(hasCleanedUp).toBe(true);
  expect(faults).toEqual([]);
});

describe("the deadline", () => {
  test("a unary call without one ends after the default", async () => {
    let aborted: unknown;
    const service = serve(
      async (ctx) => {
        ctx.signal.addEventListener("abort", () => {
          aborted ??= ctx.signal.reason;
        });
        return new Promise<never>(() => {});
      },
      { defaultMs: 50 },
    );
    expect((await errorOf(service.client.getQueue({ queue: "q" }))).code).toBe(Code.DeadlineExceeded);
    expect(aborted).toMatchObject({ code: Code.DeadlineExceeded });
  });

  test("a stream has none", async () => {
    const service = serve(() => new Promise((resolve) => setTimeout(resolve, 200, {})), { defaultMs: 20 });
    await drain(service.client.consumeStream({ queue: "q" }));
  });

  test("the caller's own is kept, though the handler does not listen", async () => {
    const service = serve(() => new Promise<never>(() => {}), { defaultMs: 60_000 });
    const error = await errorOf(service.client.getQueue({ queue: "q" }, { timeoutMs: 50 }));
    expect(error.code).toBe(Code.DeadlineExceeded);
  });
});

test("a call that ends keeps no timer, be it answered or refused", async () => {
  const service = serve(async () => ({}));
  const timers = () => process.getActiveResourcesInfo().filter((resource) => resource === "Timeout").length;
  const before = timers();
  for (let i = 0; i < 50; i++) {
    await service.client.getQueue({ queue: "q" });
    await errorOf(service.client.getQueue({ queue: "" }));
  }
  expect(timers() - before).toBeLessThan(25);
});

describe("validation", () => {
  const service = serve(async () => ({}));

  test("every broken rule is named at once, with dotted snake_case paths", async () => {
    const payload = new TextEncoder().encode("1");
    const error = await errorOf(
      service.client.publishBatch({
        queue: "no spaces",
        messages: [{ payload }, { payload, delaySeconds: -1 }, { payload, priority: 10, groupId: "x".repeat(200) }],
      }),
    );
    expect(error.code).toBe(Code.InvalidArgument);
    expect(error.findDetails(ErrorInfoSchema)[0]?.reason).toBe("FIELD_INVALID");
    expect(error.findDetails(BadRequestSchema)[0]?.fieldViolations.map(({ field }) => field)).toEqual([
      "queue",
      "messages[1].delay_seconds",
      "messages[2].priority",
      "messages[2].group_id",
    ]);
    expect(error.rawMessage).toMatch(/^queue: .+; messages\[1\]\.delay_seconds: .+; messages\[2\]\.priority: /);
  });

  test("a thousand violations make a short answer", async () => {
    const error = await errorOf(
      service.client.publishBatch({
        queue: "q",
        messages: Array.from({ length: 1_000 }, () => ({ payload: new Uint8Array([49]), priority: 10 })),
      }),
    );
    expect(error.rawMessage).toMatch(/; and 995 more$/);
    expect(error.findDetails(BadRequestSchema)[0]?.fieldViolations).toHaveLength(100);
  });

  test("the request of a stream is checked too", async () => {
    expect((await errorOf(drain(service.client.consumeStream({ queue: "" })))).code).toBe(Code.InvalidArgument);
  });
});

describe("the access log", () => {
  test("has one line for a call, with method, protocol, code, time, request id and project", async () => {
    const service = serve(async () => ({}));
    await service.client.getQueue({ queue: "q" }, { headers: { "x-request-id": "r-1" } });
    expect(service.lines).toHaveLength(1);
    expect(service.lines[0]).toMatchObject({
      level: "info",
      method: "scheduling.v1.QueueService/GetQueue",
      protocol: "connect",
      code: "ok",
      ms: expect.any(Number),
      request_id: "r-1",
      project_id: "project-1",
    });
  });

  test("has one line for a stream, at its end, with how it ended", async () => {
    const service = serve(async () => {
      throw toConnectError(new Refusal("SHUTTING_DOWN"));
    });
    await errorOf(drain(service.client.consumeStream({ queue: "q" })));
    expect(service.lines.map(({ code }) => code)).toEqual(["unavailable"]);
  });

  test("tells of callers that leave a stream", async () => {
    const service = serve((ctx) => new Promise((resolve) => ctx.signal.addEventListener("abort", () => resolve({}))));
    const stop = new AbortController();
    for await (const _ of service.client.consumeStream({ queue: "q" }, { signal: stop.signal })) break;
    stop.abort();
    await expect.poll(() => service.lines.map(({ code }) => code)).toEqual(["canceled"]);
  });
});

test("the log hides secrets, payloads, and the credentials and queries of URLs", () => {
  const lines: Record<string, unknown>[] = [];
  const log = createLogger({ level: "info", pretty: false, stream: lineStream(lines) });
  const cause = Object.assign(new Error("to postgres://u:CANARY@h/d"), { detail: "Key (name)=(CANARY)" });
  log.info({
    headers: { authorization: "Bearer CANARY", cookie: "CANARY" },
    req: { headers: { authorization: "CANARY" } },
    secret: "CANARY",
    target: { secret: "CANARY", payload: "CANARY" },
    url: "https://user:CANARY@example.com/p?token=CANARY",
    err: new Error("GET https://example.com/p?token=CANARY failed", { cause }),
  });
  expect(JSON.stringify(lines)).not.toContain("CANARY");
  expect(lines[0]).toMatchObject({ url: "https://***@example.com/p?***", err: { type: "Error", cause: {} } });
});
