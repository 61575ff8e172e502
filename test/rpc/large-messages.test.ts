import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { Wakeups } from "../../src/db/wakeups.ts";
import { HandOuts } from "../../src/rpc/hand-outs.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import type { NamedQueueRow } from "../../src/store/queues.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";

const MIB = 1_048_576;

let t: TestDatabase;
let wakeups: Wakeups;
let queue: NamedQueueRow;
beforeAll(async () => {
  t = await testDatabase();
  wakeups = new Wakeups(t.url);
});
afterAll(async () => {
  await wakeups[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});
beforeEach(async (context) => {
  // Nobody waits for the end of a lease.
  queue = await makeQueue(t.db, context.task.id, { visibility_timeout_seconds: 3_600 });
});

/** A node that takes payloads of so many bytes, and how many messages a consumer gets from it that asks for 100. */
function node(maxPayloadBytes: number): () => Promise<number | undefined> {
  const handOuts = new HandOuts(t.db, wakeups, new QueueTally(t.db), maxPayloadBytes);
  const { signal } = new AbortController();
  return async () => {
    const rows = await handOuts.take(queue.project_id, queue.name, { limit: 100 }, 0, signal);
    return rows?.length;
  };
}

const fill = (count: number, bytes: number) =>
  publish(t.db, queue, Array<string>(count).fill(`"${"x".repeat(bytes - 2)}"`));

test("a node hands out no more at once than may be 100 MiB while it knows nothing of a queue's messages", async () => {
  await fill(120, 100);
  expect(await node(MIB)()).toBe(100);
  expect(await node(10 * MIB)()).toBe(10);
});

test("a node hands out what is about 32 MiB by the size of a queue's newest messages", {
  timeout: 60_000,
}, async () => {
  await fill(50, 100);
  const take = node(10 * MIB);
  expect(await take()).toBe(10);
  expect(await take()).toBe(40);
  await fill(4, 8 * MIB);
  expect(await take()).toBe(4);
  await fill(6, 8 * MIB);
  expect([await take(), await take()]).toEqual([4, 2]);
});
