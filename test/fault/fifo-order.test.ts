import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { must, until } from "./calls.ts";
import { startCluster } from "./cluster.ts";
import { connectFace } from "./connect-face.ts";
import type { Face } from "./faces.ts";
import { Recorder } from "./history.ts";
import { clockSlip, drain, expectPromisesKept } from "./proof.ts";
import { rest } from "./rest-face.ts";
import { sized } from "./scale.ts";
import { seededRandom } from "./seed.ts";
import { pick, publish, pulling, sessions, sleeping, streaming, type Workload, working } from "./workload.ts";

const GROUPS = sized(200, 40);
const MESSAGES_PER_GROUP = sized(200, 40);
const MESSAGES = GROUPS * MESSAGES_PER_GROUP;
/** How often each node is killed. */
const ROUNDS = sized(4, 1);
/** Most messages that wait, so that publishing goes on while nodes are killed. */
const BACKLOG = GROUPS * 10;
/** Longest pause between two calls for a group, in milliseconds. It bounds how many messages there are. */
const PAUSE_MS = 100;
const STALE_SETTLEMENTS = sized(1_000, 40);
const TIME_LIMIT_MS = sized(3_600_000, 600_000);
const NODES = 2;

test("each group of a FIFO queue stays in order, one message at a time, whoever is killed, gives back or oversleeps", {
  timeout: TIME_LIMIT_MS,
}, async () => {
  const random = seededRandom("FIFO order");
  await using cluster = await startCluster(NODES);
  await using slip = clockSlip();
  await must(cluster.urls[0] ?? "", "POST", "/queue/create", { queue: "steps", type: "fifo", max_retries: 1000 });

  const history = new Recorder();
  const stop = new AbortController();
  const work: Workload = { queue: "steps", history, random, urls: () => cluster.urls, signal: stop.signal };
  const grpc = connectFace("grpc");
  const faces = [grpc, connectFace("connect"), rest];

  const consuming = [
    ...faces.map((face) => pulling(work, face, { maxMessages: 10, leaseSeconds: 3 }, working)),
    ...faces.map((face) => streaming(work, face, { maxUnacked: 20, leaseSeconds: 5 }, working)),
    sessions(work, grpc, { maxUnacked: 20, leaseSeconds: 5 }, working),
  ];
  // None of them ends by itself, but for a fault.
  const failing = Promise.all(consuming);
  const slept = sleeping(work, grpc, STALE_SETTLEMENTS, 4);
  let kills = 0;
  const killing = (async () => {
    for (let i = 0; i < ROUNDS * NODES; i++) {
      const due = history.acked.size + MESSAGES / (ROUNDS * NODES + 1);
      await until(`${due} acks`, TIME_LIMIT_MS, () => (history.acked.size >= due ? true : undefined));
      await cluster.killNode(i % NODES);
      kills++;
    }
  })();
  const ending = Promise.all([killing, slept]);
  const publishing = publishAll(work, faces, ending);

  await Promise.race([Promise.all([ending, publishing]), failing]);
  await Promise.race([drain(work), failing]);
  stop.abort();
  await failing;
  cluster.expectAlive();

  await expectPromisesKept("FIFO order", history, slip);
  expect(kills).toBe(ROUNDS * NODES);
  expect(await slept).toBeGreaterThanOrEqual(STALE_SETTLEMENTS);
  const nacks = history.settlements.filter(({ verb, outcome }) => verb === "nack" && outcome === "done");
  expect(nacks.length).toBeGreaterThan(MESSAGES / 100);
  // The kills were felt.
  expect(history.unanswered).toBeGreaterThan(NODES);
  expect(history.redeliveries).toBeGreaterThan(STALE_SETTLEMENTS);
});

/**
 * Publishes each group's messages one after the other, over changing nodes and faces: all of them, and then on until
 * everything has happened that is to happen under way.
 */
async function publishAll(work: Workload, faces: readonly Face[], ending: Promise<unknown>): Promise<void> {
  const { history, random } = work;
  let isEnding = false;
  void ending.then(() => {
    isEnding = true;
  });
  const publisher = async (group: number): Promise<void> => {
    for (let next = 0; next < MESSAGES_PER_GROUP || !isEnding; ) {
      const drafts = Array.from({ length: 1 + Math.floor(random() * 4) }, () => ({
        n: group + GROUPS * next++,
        group: `g${group}`,
        delayMs: 0,
      }));
      await publish(work, pick(random, faces), drafts, `k${drafts[0]?.n}`);
      await delay(random() * PAUSE_MS);
      await until("room in the queue", TIME_LIMIT_MS, () => (history.backlog < BACKLOG ? true : undefined));
    }
  };
  await Promise.all(Array.from({ length: GROUPS }, (_, group) => publisher(group)));
}
