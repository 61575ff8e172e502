import { once } from "node:events";
import { createServer } from "node:net";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { connect } from "../../src/db/connect.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { TEST_SECRETS_KEY } from "../support/signing.ts";
import { call, run, startDev, startServe } from "./harness.ts";

let database: TestDatabase;
let env: Record<string, string>;
beforeAll(async () => {
  database = await testDatabase();
  env = { CARILLON_DATABASE_URL: database.url, CARILLON_SECRETS_KEY: TEST_SECRETS_KEY };
});
afterAll(() => database[Symbol.asyncDispose]());

async function newKey(project: string): Promise<{ key: string; key_id: string }> {
  const { stdout, stderr } = await run(["keys", "create", "--project", project, "--name", "test", "--json"], env);
  expect(stderr).toBe("");
  return JSON.parse(stdout);
}

describe("settings", () => {
  test("all that cannot be used is reported at once, without a stack, with code 1", async () => {
    const { code, stdout, stderr } = await run(["serve"], {
      CARILLON_PORT: "seventy",
      CARILLON_LOG_LEVEL: "loud",
      CARILLON_ALLOW_TARGETS: "10.0.0.0/99",
    });
    expect(code).toBe(1);
    expect(stdout).toBe("");
    expect(stderr.trimEnd().split("\n")).toEqual([
      "carillon: these settings cannot be used:",
      '  CARILLON_PORT is "seventy": it must be a whole number from 0 to 65535',
      expect.stringContaining('  CARILLON_ALLOW_TARGETS is "10.0.0.0/99": allow-list entry "10.0.0.0/99"'),
      expect.stringContaining('  CARILLON_LOG_LEVEL is "loud"'),
      expect.stringContaining("  CARILLON_DATABASE_URL is not set"),
      expect.stringContaining("  CARILLON_SECRETS_KEY is not set"),
      "See carillon config for all settings.",
    ]);
  });

  test("a virtual clock is refused in words, as an option too", async () => {
    const { code, stderr } = await run(["serve", "--virtual-clock"], env);
    expect(code).toBe(1);
    expect(stderr).toContain("  CARILLON_VIRTUAL_CLOCK is on: carillon serve lives in real time");
  });

  test("a port that is taken is one clear line", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as { port: number };
    const { code, stderr } = await run(["serve"], { ...env, CARILLON_PORT: `${port}` });
    other.close();
    expect(code).toBe(1);
    expect(stderr).toMatch(/^carillon: port \d+ on 127\.0\.0\.1 is in use.*CARILLON_PORT.*\n$/);
  });

  test("a certificate that cannot be read is one clear line", async () => {
    const { code, stderr } = await run(["serve"], {
      ...env,
      CARILLON_TLS_CERT_FILE: "/nonexistent",
      CARILLON_TLS_KEY_FILE: "/nonexistent",
    });
    expect(code).toBe(1);
    expect(stderr).toMatch(/^carillon: CARILLON_TLS_(CERT|KEY)_FILE: ENOENT.*\n$/);
  });
});

describe("keys", () => {
  test("a new key opens its own project at once; a revoked one is refused within 5 seconds", async () => {
    await using server = await startServe(env);
    const mine = await newKey("mine");
    const theirs = await newKey("theirs");
    expect((await call(server, mine.key, "/queue/publish", { queue: "q", payload: 1 })).status).toBe(200);
    expect((await call(server, theirs.key, "/queue/list")).json).toEqual({ items: [] });
    expect((await call(server, theirs.key, "/queue/get/q")).status).toBe(404);

    const listed = await run(["keys", "list", "--project", "mine"], env);
    expect(listed.stdout).toContain(mine.key_id);
    expect(listed.stdout).not.toContain(mine.key);

    expect((await run(["keys", "revoke", mine.key_id], env)).code).toBe(0);
    await expect.poll(async () => (await call(server, mine.key, "/queue/list")).status, { interval: 100 }).toBe(401);
    expect((await call(server, theirs.key, "/queue/list")).status).toBe(200);
    expect(server.output()).not.toContain(mine.key);
  });

  test("revoking what does not exist fails in one line", async () => {
    for (const id of ["key_00000000000000000000000000", "nonsense"]) {
      const { code, stderr } = await run(["keys", "revoke", id], env);
      expect(code).toBe(1);
      expect(stderr).toMatch(/^carillon: there is no key .*\n$/);
    }
  });

  test("the development key opens nothing in production", async () => {
    await using server = await startServe({ ...env, CARILLON_API_KEY: "dev" });
    expect((await call(server, "dev", "/queue/list")).status).toBe(401);
    expect(server.output()).toContain("use carillon keys create");
  });
});

describe("shutdown", () => {
  test("SIGTERM ends endless streams of every protocol with unavailable, and the process with code 0", async () => {
    await using server = await startServe({ ...env, CARILLON_SHUTDOWN_GRACE_SECONDS: "10" });
    const { key } = await newKey("streams");
    const options = { baseUrl: server.url, httpVersion: "2" } as const;
    const transports = [
      createGrpcTransport({ baseUrl: server.url }),
      createGrpcWebTransport(options),
      createConnectTransport(options),
      createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
    ];
    const headers = { authorization: `Bearer ${key}` };
    await call(server, key, "/queue/create", { name: "endless" });
    await call(server, key, "/queue/publish_batch", {
      queue: "endless",
      messages: transports.map(() => ({ payload: 1 })),
    });
    const opened: Promise<void>[] = [];
    const ends = transports.map(async (transport) => {
      const first = Promise.withResolvers<void>();
      opened.push(first.promise);
      try {
        const request = { queue: "endless", maxUnacked: 1 };
        for await (const _ of createClient(QueueService, transport).consumeStream(request, { headers }))
          first.resolve();
        return "ended";
      } catch (error) {
        first.resolve();
        return Code[ConnectError.from(error).code];
      }
    });
    await Promise.all(opened);
    const startedAt = performance.now();
    server.child.kill("SIGTERM");
    expect(await Promise.all(ends)).toEqual(["Unavailable", "Unavailable", "Unavailable", "Unavailable"]);
    expect((await server.ended).code).toBe(0);
    expect(performance.now() - startedAt).toBeLessThan(5_000);
  });

  test("a delivery that hangs is cut off at the end of the grace", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    await using server = await startDev({ ...env, CARILLON_API_KEY: "k", CARILLON_SHUTDOWN_GRACE_SECONDS: "4" });
    await call(server, "k", "/task/schedule", { task_url: receiver.url, payload: 1, run_at: new Date().toISOString() });
    await receiver.next();
    const startedAt = performance.now();
    server.child.kill("SIGTERM");
    expect((await server.ended).code).toBe(0);
    expect(performance.now() - startedAt).toBeLessThan(5_500);
  });

  test("a second signal ends the process at once, but one that comes with the first counts as the first", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    await using server = await startDev({ ...env, CARILLON_API_KEY: "k", CARILLON_SHUTDOWN_GRACE_SECONDS: "60" });
    await call(server, "k", "/task/schedule", { task_url: receiver.url, payload: 1, run_at: new Date().toISOString() });
    await receiver.next();
    server.child.kill("SIGINT");
    await server.see(/draining/);
    server.child.kill("SIGINT");
    // The first repeat is passed over; so is every other that comes within half a second.
    const repeat = setInterval(() => server.child.kill("SIGINT"), 100);
    const startedAt = performance.now();
    expect((await server.ended).code).toBe(130);
    expect(performance.now() - startedAt).toBeGreaterThan(200);
    clearInterval(repeat);
  });
});

test("ten migrations at once bring an empty database up to date once", async () => {
  const admin = connect({ url: database.url, poolSize: 1 });
  await sql`create database migrate_at_once`.execute(admin);
  try {
    const url = database.url.replace(/\/t_[0-9a-f]+/, "/migrate_at_once");
    const ends = await Promise.all(Array.from({ length: 10 }, () => run(["migrate"], { CARILLON_DATABASE_URL: url })));
    expect(ends.map(({ code, stderr }) => `${code}${stderr}`)).toEqual(Array(10).fill("0"));
    expect(ends.filter(({ stdout }) => stdout.startsWith("applied 0001-initial"))).toHaveLength(1);
    expect(ends.filter(({ stdout }) => stdout === "the schema is up to date\n")).toHaveLength(9);
  } finally {
    await sql`drop database migrate_at_once with (force)`.execute(admin);
    await admin.destroy();
  }
});

test("a database that cannot be reached is one line for a command", async () => {
  const { code, stderr } = await run(["keys", "list"], { CARILLON_DATABASE_URL: "postgres://u:hunter2@127.0.0.1:1/d" });
  expect(code).toBe(1);
  expect(stderr).toMatch(/^carillon: the database cannot be reached: .*\n$/);
  expect(stderr).not.toContain("hunter2");
});

test("doctor fails, with code 1, when the database cannot be reached", async () => {
  const { code, stdout } = await run(["doctor"], { CARILLON_DATABASE_URL: "postgres://u@127.0.0.1:1/d" });
  expect(code).toBe(1);
  expect(stdout).toMatch(/^fail {2}database {4}the database cannot be reached/m);
});

test("doctor tells that a server without fsync is not safe from power loss", async () => {
  const { stdout } = await run(["doctor"], { ...env, CARILLON_PORT: "0" });
  expect(stdout).toMatch(/^warn {2}durability {2}crash-safe only.*fsync off/m);
});

test("a worker node answers health and no calls", async () => {
  const { key } = await newKey("workers");
  await using server = await startServe({ ...env, CARILLON_ROLE: "worker" });
  expect((await fetch(`${server.url}/readyz`)).status).toBe(200);
  expect((await call(server, key, "/queue/list")).status).toBe(404);
});

test("strict switches of a project are followed", async () => {
  await using server = await startServe(env);
  const { key } = await newKey("strict");
  const body = { queue: "q", payload: 1, unheard_of: 1 };
  expect((await run(["projects", "strict", "strict", "--fields", "on"], env)).code).toBe(0);
  expect((await call(server, key, "/queue/publish", body)).status).toBe(400);
});
