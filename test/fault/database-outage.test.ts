import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { connect } from "../../src/db/connect.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import type { Db } from "../../src/db/schema.ts";
import { usedDataDir } from "../db/embedded-harness.ts";
import { startTestCarillon } from "../support/carillon.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { type Receiver, startReceiver } from "../support/receiver.ts";
import { call, must, type Outcome, until } from "./calls.ts";
import { breakConnections, isOwnServer, listening, storedPayloads } from "./database-tools.ts";
import { queueClient } from "./streams.ts";

/** The longest that a call may take, outage or not: waiting for a connection ends after 5 s, and retries within. */
const CALL_MS = 12_000;
/** How soon everything works again after the database does. */
const RECOVERY_MS = 10_000;

/** Publishes without a pause, from several clients, until it is stopped, and keeps what the clients know. */
function publishLoad(url: string, clients: number) {
  const acked = new Map<number, string>();
  const unknown = new Set<number>();
  const refused: Outcome[] = [];
  const whys = new Set<string>();
  let slowestMs = 0;
  let next = 0;
  const stop = new AbortController();
  const done = Promise.all(
    Array.from({ length: clients }, async () => {
      while (!stop.signal.aborted) {
        const n = next++;
        const outcome = await publish(url, n);
        slowestMs = Math.max(slowestMs, outcome.ms);
        if (outcome.kind === "ok") acked.set(n, outcome.body.message_id);
        else if (outcome.kind === "refused") refused.push(outcome);
        else {
          unknown.add(n);
          whys.add(outcome.why);
        }
        await delay(10);
      }
    }),
  );
  return {
    acked,
    unknown,
    refused,
    whys,
    slowest: () => slowestMs,
    async stop() {
      stop.abort();
      await done;
    },
  };
}

function publish(url: string, n: number): Promise<Outcome> {
  return call(url, "POST", "/queue/publish", { queue: "orders", payload: { n } }, { key: `k${n}`, timeoutMs: 30_000 });
}

/** Retries what is unknown with the same keys, then holds the queue against what the clients know. */
async function reconcile(url: string, db: Db, load: ReturnType<typeof publishLoad>): Promise<void> {
  for (const n of load.unknown) {
    const outcome = await publish(url, n);
    if (outcome.kind !== "ok") throw new Error(JSON.stringify(outcome));
    load.acked.set(n, outcome.body.message_id);
  }
  const stored = (await storedPayloads(db)) as { readonly n: number }[];
  expect(stored.map(({ n }) => n).sort((a, b) => a - b)).toEqual([...load.acked.keys()].sort((a, b) => a - b));
}

async function everySecond(url: string, receiver: Receiver): Promise<void> {
  await must(url, "POST", "/cron/create", { cron_expr: "@every 1s", url: receiver.url, timeout_seconds: 5 });
  await receiver.next();
}

test("when every database connection breaks, again and again, callers are told to retry and nothing else is noticed", async () => {
  await using database: TestDatabase = await testDatabase();
  await using receiver = await startReceiver();
  await using carillon = await startTestCarillon({ CARILLON_LOG_LEVEL: "fatal" }, database);
  await must(carillon.url, "POST", "/queue/create", { queue: "orders" });
  await everySecond(carillon.url, receiver);

  const load = publishLoad(carillon.url, 12);
  let broken = 0;
  for (let round = 0; round < 10; round++) {
    await delay(300);
    // The test's own pool is called carillon as well; its connections are idle and come back too.
    broken += await breakConnections(database.db, "all");
  }
  await delay(500);
  await load.stop();

  expect(broken).toBeGreaterThan(50);
  expect(load.unknown.size).toBeGreaterThan(0);
  expect(load.refused).toEqual([]);
  expect([...load.whys]).toEqual(["DATABASE_UNAVAILABLE"]);
  expect(load.slowest()).toBeLessThan(CALL_MS);
  await until("LISTEN is back", RECOVERY_MS, async () => ((await listening(database.db)) === 1 ? true : undefined));
  const before = receiver.count;
  await until("the cron job goes on", RECOVERY_MS, () => (receiver.count >= before + 2 ? true : undefined));
  await reconcile(carillon.url, database.db, load);
});

test("a database server that is away for seconds needs no restart of Carillon", async () => {
  const dataDir = await usedDataDir();
  let server = await startEmbeddedPostgres({ dataDir });
  await using _lastServer = { [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
  const { url } = server;
  const db = connect({ url, poolSize: 2 });
  const database: TestDatabase = {
    db,
    url,
    advanceClock: () => Promise.reject(new Error("this database has the real clock")),
    now: async () => new Date(),
    [Symbol.asyncDispose]: () => db.destroy(),
  };
  await using receiver = await startReceiver();
  await using carillon = await startTestCarillon({ CARILLON_LOG_LEVEL: "fatal" }, database);
  await must(carillon.url, "POST", "/queue/create", { queue: "orders" });
  await everySecond(carillon.url, receiver);
  const load = publishLoad(carillon.url, 12);
  const polling = call(carillon.url, "POST", "/queue/consume", { queue: "orders-none", wait_seconds: 15 });
  await until("calls are answered", 30_000, () => (load.acked.size > 50 ? true : undefined));

  const downAt = performance.now();
  await server[Symbol.asyncDispose]();
  const unknownBefore = load.unknown.size;
  await delay(3_000);
  expect(load.unknown.size).toBeGreaterThan(unknownBefore);
  const ready = await fetch(`${carillon.url}/readyz`, { signal: AbortSignal.timeout(10_000) });
  expect(ready.status).toBe(503);
  const alive = await fetch(`${carillon.url}/healthz`, { signal: AbortSignal.timeout(10_000) });
  expect(alive.status).toBe(200);

  server = await startEmbeddedPostgres({ dataDir });
  expect(server.url).toBe(url);
  const backAt = performance.now();
  const ackedBefore = load.acked.size;
  await until("publishes are acknowledged again", RECOVERY_MS, () =>
    load.acked.size > ackedBefore ? true : undefined,
  );
  const firstMs = performance.now() - backAt;
  const downMs = performance.now() - downAt;
  await until("LISTEN is back", RECOVERY_MS, async () => ((await listening(db)) === 1 ? true : undefined));
  const posts = receiver.count;
  await until("the cron job goes on", RECOVERY_MS, () => (receiver.count >= posts + 2 ? true : undefined));
  await load.stop();
  await polling;
  console.log(`database restart: first acknowledgement after ${firstMs.toFixed(0)} ms, ${load.unknown.size} unknown`);

  expect(firstMs).toBeLessThan(5_000);
  expect(load.refused).toEqual([]);
  expect([...load.whys]).toEqual(["DATABASE_UNAVAILABLE"]);
  expect(load.slowest()).toBeLessThan(CALL_MS);
  await reconcile(carillon.url, db, load);

  // Every second is accounted for, as fires at most 10 s late are made up for, unless the server took longer to be back.
  const { rows } = await sql<{ fires: number; seconds: number }>`
    select count(distinct fire_at)::int as fires,
      (extract(epoch from max(fire_at) - min(fire_at)) + 1)::int as seconds from runs`.execute(db);
  const missed = (rows[0]?.seconds ?? 0) - (rows[0]?.fires ?? 0);
  expect(missed).toBeLessThanOrEqual(downMs < 9_000 ? 0 : Math.ceil(downMs / 1_000) + 2);
  expect(rows[0]?.fires).toBeGreaterThan(0);
});

test.skipIf(!isOwnServer)("a database that answers nothing lets no call outlive its deadline", async () => {
  await using database = await testDatabase();
  await using carillon = await startTestCarillon(
    { CARILLON_LOG_LEVEL: "fatal", CARILLON_ROLE: "api", CARILLON_DATABASE_POOL_SIZE: "2" },
    database,
  );
  const { url } = carillon;
  // Both connections are open when they freeze. Publishes of one queue share a statement, so each has its own.
  const queues = ["a", "b", "c", "d"];
  await Promise.all(queues.map((queue) => must(url, "POST", "/queue/publish", { queue, payload: {} })));
  const { rows } = await sql<{ pid: number }>`
    select pid from pg_stat_activity
    where datname = current_database() and application_name = 'carillon' and pid <> pg_backend_pid()`.execute(
    database.db,
  );
  expect(rows.length).toBeGreaterThanOrEqual(2);

  for (const { pid } of rows) process.kill(pid, "SIGSTOP");
  try {
    const client = queueClient(url, "grpc");
    const startedAt = performance.now();
    const codes = await Promise.all(
      queues.map((queue) =>
        client.publish({ queue, payload: Buffer.from("1") }, { timeoutMs: 2_000 }).then(
          () => "ok",
          (error) => Code[ConnectError.from(error).code],
        ),
      ),
    );
    expect(new Set(codes)).toEqual(new Set(["DeadlineExceeded"]));
    expect(performance.now() - startedAt).toBeLessThan(CALL_MS);
    // Both connections are still taken. Who waits for one hears of it.
    const outcome = await call(url, "GET", "/queue/stats/a", undefined, { timeoutMs: 30_000 });
    expect(outcome).toMatchObject({ kind: "unknown", why: "DATABASE_UNAVAILABLE" });
    expect(outcome.ms).toBeLessThan(CALL_MS);
  } finally {
    for (const { pid } of rows) process.kill(pid, "SIGCONT");
  }
  await until("calls succeed again", RECOVERY_MS, async () =>
    (await call(url, "GET", "/queue/stats/a")).kind === "ok" ? true : undefined,
  );
});
