import { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { queryObjects } from "node:v8";
import { expect, test } from "vitest";
import { loadConfig } from "../../src/config.ts";
import { createLogger } from "../../src/log.ts";
import { startCarillon } from "../../src/main.ts";
import { startTestCarillon, TEST_KEY } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { must, until } from "./calls.ts";
import { openGrpcStream, openRestStream } from "./streams.ts";

const MESSAGES = 20;
const CYCLES = 200;
/** Least number of cycles that leave the process as they found it, so that what is made once is not counted. */
const WARM_UP = 20;

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

test("streams whose clients vanish leave nothing behind and are no fault", async () => {
  await using database = await testDatabase();
  const config = loadConfig(
    { CARILLON_PORT: "0", CARILLON_DATABASE_URL: database.url, CARILLON_API_KEY: TEST_KEY },
    { mode: "development" },
  );
  const faults: string[] = [];
  const stream = { write: (line: string) => void faults.push(line) };
  await using carillon = await startCarillon(config, createLogger({ level: "error", pretty: false, stream }));
  const url = `http://127.0.0.1:${carillon.address.port}`;
  for (let n = 0; n < MESSAGES; n++) await must(url, "POST", "/queue/publish", { queue: "orders", payload: { n } });

  const cycle = async (n: number): Promise<void> => {
    const open = n % 2 === 0 ? openRestStream : openGrpcStream;
    const stream = open(url, "orders", 1);
    // Some go while their first message is on its way, the others right after it.
    if (n % 4 < 2) await stream.flowing;
    else stream.flowing.catch(() => {});
    stream.vanish();
  };
  const cycles = async (count: number): Promise<void> => {
    for (let n = 0; n < count; n += 10) await Promise.all(Array.from({ length: 10 }, (_, i) => cycle(n + i)));
  };
  const count = (kind: string) => process.getActiveResourcesInfo().filter((name) => name === kind).length;
  const left = () => ({
    handles: count("TCPSocketWrap"),
    timers: count("Timeout"),
    // These two collect garbage first.
    sockets: queryObjects(Socket, { format: "count" }),
    signals: queryObjects(AbortSignal, { format: "count" }),
  });

  await cycles(WARM_UP);
  await delay(2_000);
  const before = left();
  await cycles(CYCLES);
  // A leak of every cycle, or of one protocol's, is far more than this.
  const most = { handles: 10, timers: 10, sockets: 20, signals: 40 };
  const grown = () => {
    const now = left();
    return (Object.keys(most) as (keyof typeof most)[])
      .filter((kind) => now[kind] > before[kind] + most[kind])
      .map((kind) => `${kind}: ${before[kind]} before, ${now[kind]} after ${CYCLES} cycles`);
  };
  for (let tries = 0; tries < 10 && grown().length > 0; tries++) await delay(1_000);
  expect(grown()).toEqual([]);
  expect(faults).toEqual([]);

  // The default lease is 30 s, so what is back sooner was given back.
  await until("no stream holds a message any more", 3_000, async () => {
    const { available, in_flight } = await must(url, "GET", "/queue/stats/orders");
    return available === MESSAGES && in_flight === 0 ? true : undefined;
  });
});
