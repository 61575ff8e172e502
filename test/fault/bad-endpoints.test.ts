import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { type Receiver, startReceiver } from "../support/receiver.ts";
import { eachOf, must } from "./calls.ts";
import { type Node, startNode } from "./node.ts";
import { INSPECTABLE, memoryOf } from "./node-memory.ts";
import { sized } from "./scale.ts";

const ENDPOINTS = sized(200, 20);
const GOOD = sized(20, 2);
/** Tasks that are due for each bad endpoint at once. */
const BACKLOG = 50;
const PHASE_MS = sized(60_000, 12_000);
/** One task for each good endpoint in this time: far from what a node can do, so that it is not measured with. */
const EVERY_MS = sized(500, 200);
/** However loaded the machine is, a good endpoint that waits this long is being starved. */
const STARVED_MS = 5_000;
/** What good endpoints keep of their rate, and how much later they may get what is due. At full size the promise. */
const KEPT = sized(0.9, 0.5);
const LATER = sized(1.5, 5);

const MIB = 1_048_576;
/** The most that a node may hold more beside them, and have more of the system at its worst moment. */
const MOST_HELD = 64 * MIB;
const MOST_RSS = 384 * MIB;

/** What came of a phase, of the good endpoints. */
interface Phase {
  readonly sent: number;
  readonly arrived: number;
  /** Of what arrived before the phase was over. */
  readonly perSecond: number;
  readonly p99Ms: number;
  readonly longestMs: number;
}

test("bad receivers of every kind starve no good one, and cost a bounded amount of memory", async () => {
  await using database = await testDatabase();
  await using good = await startReceiver();
  const bad = await startBadReceivers();
  const node = await startNode({ ...INSPECTABLE, CARILLON_DATABASE_URL: database.url });

  await phase(node, good, "warm", 3_000);
  const alone = await phase(node, good, "alone", PHASE_MS);
  const before = await memoryOf(node);
  await eachOf(Array(ENDPOINTS - GOOD).keys(), 2, async (n) => {
    for (let i = 0; i < BACKLOG; i++) await schedule(node, `${bad.url}/${n}`, { retries: 10, timeout_seconds: 30 });
  });
  const beside = await phase(node, good, "beside", PHASE_MS);
  const peak = await peakOf(node);
  const after = await memoryOf(node);
  const requests = await bad.count();
  await disableAll(node, bad.url);
  // The share that this machine gives to a test changes over minutes: the promise is held against the slower of both.
  const again = await phase(node, good, "again", PHASE_MS);
  const [heldMiB, rssMiB] = [after.held - before.held, peak - before.rss].map((bytes) => Math.round(bytes / MIB));
  console.log(JSON.stringify({ endpoints: ENDPOINTS, good: GOOD, requests, heldMiB, rssMiB }));

  expect(requests).toBeGreaterThan(ENDPOINTS - GOOD);
  expect(beside.arrived).toBeGreaterThanOrEqual(beside.sent);
  expect(beside.longestMs).toBeLessThan(STARVED_MS);
  expect(beside.perSecond).toBeGreaterThanOrEqual(KEPT * Math.min(alone.perSecond, again.perSecond));
  expect(beside.p99Ms).toBeLessThanOrEqual(LATER * Math.max(alone.p99Ms, again.p99Ms));
  expect(after.held - before.held).toBeLessThan(MOST_HELD);
  expect(peak - before.rss).toBeLessThan(MOST_RSS);
}, 900_000);

async function schedule(node: Node, url: string, fields: object = {}): Promise<void> {
  await must(node.url, "POST", "/task/schedule", { url, run_at: 0, ...fields });
}

/** Sends to every good endpoint at a steady rate, and waits for what it sent. */
async function phase(node: Node, receiver: Receiver, name: string, ms: number): Promise<Phase> {
  const sentAt = new Map<string, number>();
  const calls: Promise<boolean>[] = [];
  const startedAt = performance.now();
  for (let turn = 0; turn < ms / EVERY_MS; turn++) {
    await delay(Math.max(0, startedAt + turn * EVERY_MS - performance.now()));
    for (let endpoint = 0; endpoint < GOOD; endpoint++) {
      const query = `${name}-${turn}-${endpoint}`;
      sentAt.set(query, Date.now());
      const scheduled = schedule(node, `${receiver.url}/${endpoint}?${query}`);
      calls.push(
        scheduled.then(
          () => true,
          () => false,
        ),
      );
    }
  }
  const arrivals = () => receiver.requests.filter(({ path }) => sentAt.has(path.split("?")[1] ?? ""));
  const seconds = (performance.now() - startedAt) / 1_000;
  const inTime = arrivals().length;
  const sent = (await Promise.all(calls)).filter(Boolean).length;
  for (const until = Date.now() + STARVED_MS; arrivals().length < sent && Date.now() < until; ) await delay(50);
  const waits = arrivals()
    .map(({ path, receivedAt }) => receivedAt - (sentAt.get(path.split("?")[1] ?? "") ?? 0))
    .sort((a, b) => a - b);
  const result = {
    sent,
    arrived: waits.length,
    perSecond: Math.round((10 * inTime) / seconds) / 10,
    p99Ms: waits[Math.floor(0.99 * waits.length)] ?? Number.POSITIVE_INFINITY,
    longestMs: waits.at(-1) ?? Number.POSITIVE_INFINITY,
  };
  console.log(`${name}: ${JSON.stringify(result)}`);
  return result;
}

/** Starts the bad receivers in a process of their own. */
async function startBadReceivers(): Promise<{ readonly url: string; count(): Promise<number> }> {
  const child: ChildProcess = fork(join(import.meta.dirname, "bad-receivers.ts"));
  onTestFinished(() => void child.kill("SIGKILL"));
  const [{ url }] = await once(child, "message");
  return {
    url,
    async count() {
      const answer = once(child, "message");
      child.send("count");
      return (await answer)[0].count;
    },
  };
}

/** Lets nothing more go to any endpoint below `url`. */
async function disableAll(node: Node, url: string): Promise<void> {
  const { items } = await must(node.url, "GET", "/endpoint/list?limit=500");
  const bad = items.filter((item: { url: string }) => item.url.startsWith(url));
  await eachOf(bad, 4, ({ endpoint_id }: { endpoint_id: string }) =>
    must(node.url, "POST", `/endpoint/disable/${endpoint_id}`, {}),
  );
}

/** The most memory that a node has had of the system since it started, in bytes. */
async function peakOf(node: Node): Promise<number> {
  const status = await readFile(`/proc/${node.pid}/status`, "utf8");
  return 1_024 * Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1]);
}
