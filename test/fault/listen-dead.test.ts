import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { startTestCarillon } from "../support/carillon.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { breakConnections, isOwnServer, listening, wakeUpPids } from "./database-tools.ts";

const MESSAGES = 15;
/** One poll (250 ms for consumers, 1 s for workers), and the rest of the way on a busy machine. */
const LATE_MS = 3_000;

/** Sends messages and a task across nodes under a fault of their wake-up connections. */
async function crossNodes(database: TestDatabase, fault: () => Promise<AsyncDisposable>): Promise<void> {
  await using receiver = await startReceiver();
  await using publisher = await startTestCarillon({ CARILLON_ROLE: "api" }, database);
  await using consumer = await startTestCarillon({ CARILLON_ROLE: "api" }, database);
  await using _worker = await startTestCarillon({ CARILLON_ROLE: "worker" }, database);
  await must(publisher.url, "POST", "/queue/create", { queue: "orders" });
  const allListen = async () => ((await listening(database.db)) === 3 ? true : undefined);
  await until("every node listens", 10_000, allListen);
  {
    await using _fault = await fault();
    const waits: number[] = [];
    for (let n = 0; n < MESSAGES; n++) {
      const waiting = must(consumer.url, "POST", "/queue/consume", { queue: "orders", wait_seconds: 10 });
      await delay(50);
      await must(publisher.url, "POST", "/queue/publish", { queue: "orders", payload: { n } });
      const publishedAt = performance.now();
      expect((await waiting).messages).toMatchObject([{ payload: { n } }]);
      waits.push(performance.now() - publishedAt);
    }
    expect(Math.max(...waits)).toBeLessThan(LATE_MS);

    const scheduledAt = performance.now();
    await must(publisher.url, "POST", "/task/schedule", { url: receiver.url, run_at: new Date().toISOString() });
    await receiver.next();
    expect(performance.now() - scheduledAt).toBeLessThan(LATE_MS);
  }
  await until("every node listens again", 15_000, allListen);
}

test("while wake-up connections break all the time, messages and due work cross nodes", async () => {
  await using database = await testDatabase();
  await crossNodes(database, async () => {
    let broken = 0;
    const stop = new AbortController();
    const breaking = (async () => {
      while (!stop.signal.aborted) {
        broken += await breakConnections(database.db, "wake-ups");
        await delay(30);
      }
    })();
    return {
      async [Symbol.asyncDispose]() {
        stop.abort();
        await breaking;
        expect(broken).toBeGreaterThan(10);
      },
    };
  });
});

test.skipIf(!isOwnServer)(
  "while wake-up connections are silent, messages and due work cross nodes by polling",
  async () => {
    await using database = await testDatabase();
    await crossNodes(database, async () => {
      const pids = await wakeUpPids(database.db);
      expect(pids).toHaveLength(3);
      for (const pid of pids) process.kill(pid, "SIGSTOP");
      return {
        async [Symbol.asyncDispose]() {
          for (const pid of pids) process.kill(pid, "SIGCONT");
        },
      };
    });
  },
);
