import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Wakeups } from "../../src/db/wakeups.ts";
import { leaseMessages } from "../../src/store/leases.ts";
import { putPushSubscription } from "../../src/store/push-subscriptions.ts";
import { endOrphanedPushes } from "../../src/store/pushes.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import type { NamedQueueRow } from "../../src/store/queues.ts";
import { ackMessage } from "../../src/store/settlements.ts";
import { createEgress, type Egress } from "../../src/webhook/post.ts";
import { Pusher } from "../../src/worker/pusher.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";
import { startReceiver } from "../support/receiver.ts";

let t: TestDatabase;
let wakeups: Wakeups;
let egress: Egress;
let project: string;
let faults: unknown[];

beforeAll(async () => {
  t = await testDatabase();
  wakeups = new Wakeups(t.url);
  egress = createEgress({ policy: { allowHttp: true, allowLoopback: true, allow: [] } });
});
afterAll(async () => {
  await egress[Symbol.asyncDispose]();
  await wakeups[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});
beforeEach(async () => {
  project = randomUUID();
  faults = [];
  // One database for all: what an earlier test left subscribed would be pushed here too.
  await t.db.deleteFrom("push_subscriptions").execute();
  await endOrphanedPushes(t.db, 1_000);
});

function newPusher(): Pusher {
  return new Pusher({
    db: t.db,
    wakeups,
    tally: new QueueTally(t.db),
    egress,
    concurrency: 8,
    onFault: (fault) => faults.push(fault),
  });
}

/** Ticks until nothing is left to take, and waits for what was taken. */
async function pushAll(pusher: Pusher): Promise<void> {
  while ((await pusher.tick(new AbortController().signal)) > 0) await pusher.stop(10_000);
  expect(faults).toEqual([]);
}

async function subscribe(queue: NamedQueueRow, url: string, settings: object = {}): Promise<string> {
  return putPushSubscription(t.db, {
    project_id: queue.project_id,
    queue_id: queue.queue_id,
    url,
    mode: "compete",
    secret: null,
    previous_secret: null,
    previous_valid_until: null,
    max_retries: null,
    visibility_timeout_seconds: null,
    dead_letter_queue_id: null,
    ...settings,
  });
}

const pushRuns = (queue: NamedQueueRow) =>
  t.db
    .selectFrom("runs")
    .select(["state", "attempt", "error", "response_status", "subscription_id"])
    .where("project_id", "=", queue.project_id)
    .orderBy("run_id")
    .execute();

describe("a push", () => {
  test("delivers each message's bytes once, acks it, and records run and attempt", async () => {
    await using receiver = await startReceiver();
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ['{"n":  1}', "[2]"], { contentType: "application/json" });
    await pushAll(newPusher());
    expect(receiver.requests.map((request) => request.body.toString()).sort()).toEqual(["[2]", '{"n":  1}']);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 0, acked: 2 });
    expect(await pushRuns(queue)).toMatchObject([
      { state: "succeeded", attempt: 1, response_status: 200 },
      { state: "succeeded", attempt: 1, response_status: 200 },
    ]);
  });

  test("that fails is made again later with the same webhook-id, and then becomes a dead letter", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ status: 500 });
    const queue = await makeQueue(t.db, project, { max_retries: 1 });
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    expect(receiver.requests).toHaveLength(1);
    expect(await pushRuns(queue)).toMatchObject([{ state: "retrying", attempt: 1, error: "HTTP 500" }]);
    await t.advanceClock(10);
    await pushAll(newPusher());
    expect(new Set(receiver.requests.map((request) => request.headers["webhook-id"])).size).toBe(1);
    expect(await pushRuns(queue)).toMatchObject([{ state: "failed", attempt: 2 }]);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, dead: 1 });
  });

  test("heeds Retry-After", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ status: 503, headers: { "retry-after": "120" } });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    await t.advanceClock(60);
    await pushAll(newPusher());
    expect(receiver.requests).toHaveLength(1);
    await t.advanceClock(61);
    await pushAll(newPusher());
    expect(receiver.requests).toHaveLength(2);
  });

  test("goes to one of the competing subscriptions and to every fan-out one, each until it has it", async () => {
    await using a = await startReceiver();
    await using b = await startReceiver();
    await using everywhere = await startReceiver();
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, a.url);
    await subscribe(queue, b.url);
    await subscribe(queue, everywhere.url, { mode: "fanout" });
    everywhere.respond({ status: 500 });
    await publish(t.db, queue, ["1", "2", "3", "4", "5", "6"]);
    await pushAll(newPusher());
    expect(a.count + b.count).toBe(6);
    expect(everywhere.count).toBe(6);

    everywhere.respond({ status: 200 });
    await t.advanceClock(10);
    await pushAll(newPusher());
    expect(a.count + b.count).toBe(6);
    expect(everywhere.count).toBe(12);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, delayed: 0, dead: 0 });
  });

  test("of a paused subscription or a paused queue is not made", async () => {
    await using receiver = await startReceiver();
    const paused = await makeQueue(t.db, project, { name: "a", paused: true });
    const queue = await makeQueue(t.db, project, { name: "b" });
    await subscribe(paused, receiver.url);
    await subscribe(queue, receiver.url, { paused: true });
    for (const each of [paused, queue]) await publish(t.db, each, ["1"]);
    await pushAll(newPusher());
    expect(receiver.count).toBe(0);
  });

  test("keeps the order of a FIFO group over failures", async () => {
    await using receiver = await startReceiver();
    let failures = 2;
    receiver.respond(() => ({ status: failures-- > 0 ? 500 : 200 }));
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1", "2", "3"], { groupId: "g" });
    for (let i = 0; i < 3; i++) {
      await pushAll(newPusher());
      await t.advanceClock(400);
    }
    expect(receiver.requests.map((request) => request.body.toString())).toEqual(["1", "1", "1", "2", "3"]);
  });

  test("that shutdown cuts off counts no failure", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project, { max_retries: 0 });
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1"]);
    const pusher = newPusher();
    await pusher.tick(new AbortController().signal);
    await receiver.next();
    await pusher.stop(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 1, dead: 0 });
  });

  test("that lost its message to a consumer is ended", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ status: 500 });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url);
    const [messageId = ""] = await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    expect(await endOrphanedPushes(t.db, 10)).toBe(0);
    await t.advanceClock(10);
    await leaseMessages(t.db, queue, { limit: 1, visibilitySeconds: 30, requestId: "" });
    await ackMessage(t.db, queue, { messageId, receipt: undefined });
    await endOrphanedPushes(t.db, 10);
    expect(await pushRuns(queue)).toMatchObject([{ state: "canceled" }]);
  });
});
