import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { startTestCarillon } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { eachOf, must, until } from "./calls.ts";
import { startNode } from "./node.ts";
import { INSPECTABLE, memoryOf } from "./node-memory.ts";
import { sized } from "./scale.ts";
import { openGrpcStream, openRestStream } from "./streams.ts";

const MESSAGES = 20;
const CYCLES = sized(10_000, 400);
/** Cycles before the first measurement: connections and caches that are made once are there then, and code is compiled. */
const WARM_UP = 100;
/** Connections of a node to its database, which stay. */
const POOL_SIZE = 20;
const TIME_LIMIT_MS = sized(1_800_000, 300_000);

test.each([
  ["REST", openRestStream],
  ["gRPC", openGrpcStream],
])("%s: what a stream's vanished client had in hand is with another consumer about a second later", async (_, open) => {
  await using database = await testDatabase();
  await using one = await startTestCarillon({}, database);
  await using two = await startTestCarillon({}, database);
  for (let n = 0; n < MESSAGES; n++) {
    await must(one.url, "POST", "/queue/publish", { queue: "orders", payload: { n } });
  }
  const stream = open(one.url, "orders");
  await stream.flowing;
  await until("every message is in the client's hands", 5_000, async () =>
    (await must(two.url, "GET", "/queue/stats/orders")).in_flight === MESSAGES ? true : undefined,
  );

  const vanishedAt = performance.now();
  stream.vanish();
  const back: { payload: { n: number } }[] = [];
  while (back.length < MESSAGES && performance.now() - vanishedAt < 10_000) {
    const { messages } = await must(two.url, "POST", "/queue/consume", {
      queue: "orders",
      max_messages: 100,
      wait_seconds: 1,
    });
    back.push(...messages);
  }
  expect(performance.now() - vanishedAt).toBeLessThan(2_000);
  expect(back.map(({ payload }) => payload.n).sort((a, b) => a - b)).toEqual(
    Array.from({ length: MESSAGES }, (_, n) => n),
  );
});

test("streams whose clients vanish leave nothing behind and are no fault", { timeout: TIME_LIMIT_MS }, async () => {
  await using database = await testDatabase();
  const node = await startNode({
    ...INSPECTABLE,
    CARILLON_DATABASE_URL: database.url,
    CARILLON_LOG_LEVEL: "error",
  });
  const { url } = node;
  for (let n = 0; n < MESSAGES; n++) await must(url, "POST", "/queue/publish", { queue: "orders", payload: { n } });

  const cycle = async (n: number): Promise<void> => {
    const open = n % 2 === 0 ? openRestStream : openGrpcStream;
    const stream = open(url, "orders", 1);
    // Some go while their first message is on its way, the others right after it.
    if (n % 4 < 2) await stream.flowing;
    else stream.flowing.catch(() => {});
    stream.vanish();
  };
  const cycles = (count: number): Promise<void> => eachOf(Array(count).keys(), 10, cycle);
  const left = async () => {
    const { held, sockets, signals, resources } = await memoryOf(node);
    const { TCPSocketWrap: handles = 0, Timeout: timers = 0 } = resources;
    return { held, sockets, signals, handles, timers };
  };

  await cycles(WARM_UP);
  await until("no stream is open", 30_000, async () => ((await left()).handles < POOL_SIZE + 10 ? true : undefined));
  const before = await left();
  await cycles(CYCLES);
  // A leak of every cycle, or of one protocol's, is far more than this.
  const most = { held: 4 * 1_048_576, sockets: 20, signals: 40, handles: 10, timers: 10 };
  const grown = async (): Promise<string[]> => {
    const now = await left();
    return (Object.keys(most) as (keyof typeof most)[])
      .filter((kind) => now[kind] > before[kind] + most[kind])
      .map((kind) => `${kind}: ${before[kind]} before, ${now[kind]} after ${CYCLES} cycles`);
  };
  let last = await grown();
  for (let tries = 0; tries < 20 && last.length > 0; tries++) {
    await delay(500);
    last = await grown();
  }
  expect(last).toEqual([]);
  expect(node.lines.filter((line) => line.startsWith("{"))).toEqual([]);

  // The default lease is 30 s, so what is back sooner was given back.
  await until("no stream holds a message any more", 3_000, async () => {
    const { available, in_flight } = await must(url, "GET", "/queue/stats/orders");
    return available === MESSAGES && in_flight === 0 ? true : undefined;
  });
});
