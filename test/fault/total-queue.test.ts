import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { must, until } from "./calls.ts";
import { type Cluster, startCluster } from "./cluster.ts";
import { connectFace } from "./connect-face.ts";
import type { Face } from "./faces.ts";
import { Recorder } from "./history.ts";
import { clockSlip, drain, expectPromisesKept } from "./proof.ts";
import { rest } from "./rest-face.ts";
import { sized } from "./scale.ts";
import { seededRandom } from "./seed.ts";
import {
  pick,
  publish,
  pulling,
  pullingAndAckingAll,
  sessions,
  sleeping,
  streaming,
  type Workload,
  working,
} from "./workload.ts";

const MESSAGES = sized(200_000, 10_000);
/** How often each fault happens. */
const ROUNDS = sized(8, 1);
const PUBLISHERS = 6;
/** Most messages that wait, so that publishing goes on while faults happen. */
const BACKLOG = 3_000;
/** Longest pause between two calls of a publisher, in milliseconds. It bounds how many messages there are. */
const PAUSE_MS = 40;
const STALE_SETTLEMENTS = sized(1_000, 40);
const TIME_LIMIT_MS = sized(3_600_000, 600_000);
const NODES = 3;

const FAULTS: readonly [string, (cluster: Cluster) => Promise<void>][] = [
  ["kill -9 of node 0", (cluster) => cluster.killNode(0)],
  ["kill -9 of node 1", (cluster) => cluster.killNode(1)],
  // Longer than the pulls' leases, so that acks which it has taken in are stale when it wakes up.
  ["node 2 frozen", (cluster) => cluster.freezeNode(2, 6_500)],
  ["kill -9 of PostgreSQL", (cluster) => cluster.killPostgres()],
  ["a crash of PostgreSQL", (cluster) => cluster.crashPostgres()],
];

test("nothing is lost, made up, or handed out too early or too late, whoever is killed", {
  timeout: TIME_LIMIT_MS,
}, async () => {
  const random = seededRandom("total queue");
  await using cluster = await startCluster(NODES);
  await using slip = clockSlip();
  const [url = ""] = cluster.urls;
  await must(url, "POST", "/queue/create", { queue: "orders", max_retries: 1000 });

  const history = new Recorder();
  const stop = new AbortController();
  const work: Workload = { queue: "orders", history, random, urls: () => cluster.urls, signal: stop.signal };
  const grpc = connectFace("grpc");
  const connect = connectFace("connect");

  const consuming = [
    ...[grpc, connect, rest].map((face) => pulling(work, face, { maxMessages: 40, leaseSeconds: 5 }, working)),
    ...[grpc, rest].map((face) => pullingAndAckingAll(work, face, { maxMessages: 40, leaseSeconds: 5 })),
    ...[grpc, connect, rest].map((face) => streaming(work, face, { maxUnacked: 100, leaseSeconds: 8 }, working)),
    ...[grpc, grpc].map((face) => sessions(work, face, { maxUnacked: 100, leaseSeconds: 8 }, working)),
  ];
  // None of them ends by itself, but for a fault.
  const failing = Promise.all(consuming);
  const slept = sleeping(work, grpc, STALE_SETTLEMENTS, 4);
  const happened: string[] = [];
  const plan = Array.from({ length: ROUNDS }, () => shuffled(random, FAULTS)).flat();
  const faults = (async () => {
    for (const [name, happen] of plan) {
      const due = history.acked.size + MESSAGES / (plan.length + 1);
      await until(`${due} acks`, TIME_LIMIT_MS, () => (history.acked.size >= due ? true : undefined));
      await happen(cluster);
      happened.push(name);
    }
  })();
  const ending = Promise.all([faults, slept]);
  const publishing = publishAll(work, [grpc, connect, rest], ending);

  await Promise.race([Promise.all([ending, publishing]), failing]);
  await Promise.race([drain(work), failing]);
  stop.abort();
  await failing;
  cluster.expectAlive();

  await expectPromisesKept("total queue", history, slip);
  expect(happened).toHaveLength(ROUNDS * FAULTS.length);
  expect(await slept).toBeGreaterThanOrEqual(STALE_SETTLEMENTS);
  // The faults were felt.
  expect(history.unanswered).toBeGreaterThan(FAULTS.length);
  expect(history.redeliveries).toBeGreaterThan(STALE_SETTLEMENTS);
});

/**
 * Publishes over all the faces, one by one and in batches, with keys and without: all the messages, and then on until
 * everything has happened that is to happen under way.
 */
async function publishAll(work: Workload, faces: readonly Face[], ending: Promise<unknown>): Promise<void> {
  const { history, random } = work;
  let next = 0;
  let isEnding = false;
  void ending.then(() => {
    isEnding = true;
  });
  const publisher = async (): Promise<void> => {
    while (next < MESSAGES || !isEnding) {
      const count = random() < 0.6 ? 1 : 2 + Math.floor(random() * 30);
      const drafts = Array.from({ length: count }, () => ({
        n: next++,
        group: "",
        delayMs: random() < 0.02 ? 1_000 : 0,
      }));
      await publish(work, pick(random, faces), drafts, random() < 0.5 ? `k${drafts[0]?.n}` : "");
      await delay(random() * PAUSE_MS);
      await until("room in the queue", TIME_LIMIT_MS, () => (history.backlog < BACKLOG ? true : undefined));
    }
  };
  await Promise.all(Array.from({ length: PUBLISHERS }, publisher));
}

function shuffled<T>(random: () => number, items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, place: random() }))
    .sort((a, b) => a.place - b.place)
    .map(({ item }) => item);
}
