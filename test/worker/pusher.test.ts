import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Wakeups } from "../../src/db/wakeups.ts";
import { endpointOf } from "../../src/domain/endpoint.ts";
import { formatId } from "../../src/domain/ids.ts";
import { redriveDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { findEndpoint } from "../../src/store/endpoints.ts";
import { listBlockedGroups } from "../../src/store/groups.ts";
import { newHandOutMemory } from "../../src/store/hand-outs.ts";
import { leaseMessages } from "../../src/store/leases.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { fanOut } from "../../src/store/push-fanout.ts";
import { listGroupsOfSubscription } from "../../src/store/push-groups.ts";
import {
  deletePushSubscription,
  findPushSubscription,
  type NamedSubscriptionRow,
  putPushSubscription,
  updatePushSubscription,
} from "../../src/store/push-subscriptions.ts";
import { endOrphanedPushes } from "../../src/store/pushes.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import { deleteQueue, type NamedQueueRow } from "../../src/store/queues.ts";
import { ackMessage } from "../../src/store/settlements.ts";
import { createEgress, type Egress } from "../../src/webhook/post.ts";
import { EndpointWatch } from "../../src/worker/endpoint-watch.ts";
import { startLoop } from "../../src/worker/loop.ts";
import { messageReaperTick } from "../../src/worker/message-reaper.ts";
import { prunerTick } from "../../src/worker/pruner.ts";
import { Pusher } from "../../src/worker/pusher.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { deadLetters, makeQueue, publish } from "../support/queues.ts";
import { startReceiver } from "../support/receiver.ts";
import { openSealed } from "../support/signing.ts";
import { watching } from "../support/statements.ts";

let t: TestDatabase;
let wakeups: Wakeups;
let egress: Egress;
let watch: EndpointWatch;
let project: string;
let faults: unknown[];

beforeAll(async () => {
  t = await testDatabase();
  wakeups = new Wakeups(t.url);
  egress = createEgress({ open: openSealed, policy: { allowHttp: true, allowLoopback: true, allow: [] } });
});
afterAll(async () => {
  await egress[Symbol.asyncDispose]();
  await wakeups[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});
beforeEach(async () => {
  project = randomUUID();
  faults = [];
  watch = new EndpointWatch({ db: t.db, wakeups, onFault: (fault) => faults.push(fault) });
  // One database for all: what an earlier test left subscribed would be pushed here too.
  await t.db.deleteFrom("push_subscriptions").execute();
  await endOrphanedPushes(t.db, 1_000);
});

function newPusher(options: { concurrency?: number; maxBytes?: number } = {}): Pusher {
  return new Pusher({
    db: t.db,
    wakeups,
    tally: new QueueTally(t.db),
    egress,
    watch,
    concurrency: 8,
    onFault: (fault) => faults.push(fault),
    ...options,
  });
}

/** Ticks until nothing is left to take, and waits for what was taken and for what it says about its endpoints. */
async function pushAll(pusher: Pusher): Promise<void> {
  while ((await pusher.tick(new AbortController().signal)) > 0) await pusher.stop(10_000);
  await watch.flush();
  expect(faults).toEqual([]);
}

async function subscribe(queue: NamedQueueRow, url: string, settings: object = {}): Promise<string> {
  return putPushSubscription(t.db, {
    project_id: queue.project_id,
    queue_id: queue.queue_id,
    url,
    mode: "compete",
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

  test("is signed by the database's clock, which a Retry-After date is read by too", async () => {
    await t.advanceClock(86_400);
    await using receiver = await startReceiver();
    receiver.respond(async () => {
      const date = new Date((await t.now()).getTime() + 120_000).toUTCString();
      return { status: 503, headers: { "retry-after": date } };
    });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1"]);
    const before = Math.floor((await t.now()).getTime() / 1_000);
    await pushAll(newPusher());
    const timestamp = Number(receiver.requests[0]?.headers["webhook-timestamp"]);
    expect(timestamp).toBeGreaterThanOrEqual(before);
    expect(timestamp).toBeLessThanOrEqual((await t.now()).getTime() / 1_000);
    await t.advanceClock(60);
    await pushAll(newPusher());
    expect(receiver.count).toBe(1);
    await t.advanceClock(61);
    await pushAll(newPusher());
    expect(receiver.count).toBe(2);
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

describe("the lease of a push", () => {
  const take = async (pusher: Pusher) => {
    while ((await pusher.tick(new AbortController().signal)) > 0);
  };

  test.each(["compete", "fanout"])("holds for as long as the request may take (%s)", async (mode) => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url, { mode, timeout_seconds: 900 });
    await publish(t.db, queue, ["1"]);
    const [pusher, other] = [newPusher(), newPusher()];
    await take(pusher);
    await receiver.next();
    await t.advanceClock(899);
    await messageReaperTick(t.db, wakeups, new AbortController().signal);
    expect(await other.tick(new AbortController().signal)).toBe(0);
    await pusher.stop(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ acked: 0, dead: 0 });
  });

  test.each(["compete", "fanout"])("that would end under the request keeps it from being made (%s)", async (mode) => {
    await using receiver = await startReceiver();
    const queue = await makeQueue(t.db, project, { visibility_timeout_seconds: 30, max_retries: 0 });
    await subscribe(queue, receiver.url, { mode, batch_size: 10, batch_window_ms: 60_000 });
    await publish(t.db, queue, ["1"]);
    const late = newPusher();
    await take(late);
    // Of the lease of 100 s are left 25, and the request may take 30.
    await t.advanceClock(75);
    await late.stop(10_000);
    expect(receiver.count).toBe(0);
    const inTime = newPusher();
    await take(inTime);
    await inTime.stop(10_000);
    expect(faults).toEqual([]);
    expect(receiver.count).toBe(1);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 0, acked: 1 });
  });

  test("is time enough for a database that is away to come back", { timeout: 60_000 }, async () => {
    await using receiver = await startReceiver();
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url);
    await publish(t.db, queue, ["1"]);
    // What a server says that is shutting down.
    await sql`create sequence refusals`.execute(t.db);
    await sql`create function refuse() returns trigger language plpgsql as $$ begin
      perform nextval('refusals'); raise exception 'away' using errcode = '57P01'; end $$`.execute(t.db);
    await sql`create trigger away before update on runs for each row when (new.state = 'succeeded')
      execute function refuse()`.execute(t.db);
    const pusher = newPusher();
    await take(pusher);
    const refusals = async () =>
      (await sql<{ count: number }>`select last_value::int as count from refusals`.execute(t.db)).rows[0]?.count;
    await expect.poll(refusals, { timeout: 40_000, interval: 100 }).toBeGreaterThanOrEqual(5);
    await sql`drop function refuse() cascade`.execute(t.db);
    await pusher.stop(30_000);
    expect(faults).toEqual([]);
    expect(receiver.count).toBe(1);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, acked: 1 });
  });
});

describe("a push whose node dies under it", () => {
  /** Publishes a message, and has nodes take it that die: of their requests so many come. */
  const killing = async (nodes: number, requests: number, queueSettings: object, settings: object) => {
    const receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project, queueSettings);
    await subscribe(queue, receiver.url, settings);
    await publish(t.db, queue, ["1"], { groupId: "type" in queueSettings ? "g" : "" });
    const dead: Pusher[] = [];
    for (let node = 0; node < nodes; node++) {
      const pusher = newPusher();
      dead.push(pusher);
      while ((await pusher.tick(new AbortController().signal)) > 0);
      if (node < requests) await receiver.next();
      await t.advanceClock(60);
    }
    return {
      receiver,
      queue,
      async [Symbol.asyncDispose]() {
        await Promise.all(dead.map((pusher) => pusher.stop(0)));
        await receiver[Symbol.asyncDispose]();
      },
    };
  };

  test.each([
    ["fanout", {}, {}],
    ["compete", { max_retries: 1_000 }, {}],
    ["fanout", { type: "fifo" }, { group_failure_policy: "skip" }],
  ] as const)("has failed: after max_retries its message is a dead letter (%s %o)", async (mode, ofQueue, settings) => {
    await using world = await killing(3, 2, ofQueue, { mode, max_retries: 1, ...settings });
    const { receiver, queue } = world;
    expect(receiver.count).toBe(2);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 1 });
    const [dead] = await deadLetters(t.db, queue);
    expect(dead).toMatchObject({ dead_reason: "max_retries", error: "the lease ran out" });
    expect(await pushRuns(queue)).toMatchObject([{ state: "failed", attempt: 2, error: "the lease ran out" }]);
    const attempts = await t.db
      .selectFrom("run_attempts")
      .select("error")
      .where("project_id", "=", queue.project_id)
      .execute();
    expect(attempts.map(({ error }) => error)).toContain("lease_expired");
  });

  test.each(["compete", "fanout"])(
    "is remembered in the dead letter with as many failures and attempts as there were (%s)",
    async (mode) => {
      await using world = await killing(3, 2, { max_retries: 1_000 }, { mode, max_retries: 1 });
      const { queue } = world;
      const body = await t.db
        .selectFrom("message_bodies")
        .select("deaths")
        .where("queue_id", "=", queue.graveyard_id)
        .execute();
      expect(body).toMatchObject([{ deaths: [{ attempts: 2, failures: 2 }] }]);
      expect(await deadLetters(t.db, queue)).toMatchObject([{ receive_count: 2 }]);
    },
  );

  test.each(["compete", "fanout"])("parks its group with policy park (%s)", async (mode) => {
    const settings = { mode, max_retries: 1, group_failure_policy: "park" };
    await using world = await killing(3, 2, { type: "fifo", max_retries: 1 }, settings);
    const { receiver, queue } = world;
    const subscriptionId = (await pushRuns(queue))[0]?.subscription_id ?? expect.fail();
    const parked =
      mode === "fanout"
        ? await listGroupsOfSubscription(t.db, queue, subscriptionId, undefined, 1)
        : await listBlockedGroups(t.db, queue, undefined, 1);
    expect(parked).toMatchObject([{ reason: "parked", failure_count: 2 }]);
    await t.advanceClock(86_400);
    receiver.respond({});
    await pushAll(newPusher());
    expect(receiver.count).toBe(2);
    expect(await queueStats(t.db, queue)).toMatchObject({ dead: 0 });
  });

  test.each(["compete", "fanout"])("is made again whatever the number with policy block (%s)", async (mode) => {
    const settings = { mode, max_retries: 0, group_failure_policy: "block" };
    await using world = await killing(3, 3, { type: "fifo", max_retries: 0 }, settings);
    const { receiver, queue } = world;
    receiver.respond({});
    await pushAll(newPusher());
    expect(receiver.count).toBe(4);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 0, acked: 1 });
  });
});

describe("fan-out", () => {
  const hooksOf = async (queue: NamedQueueRow, count: number, settings: object = {}) => {
    const hooks = await Promise.all(Array.from({ length: count }, () => startReceiver()));
    const ids = [];
    for (const hook of hooks) ids.push(await subscribe(queue, hook.url, { mode: "fanout", ...settings }));
    return { hooks, ids };
  };
  const bodies = (hook: { readonly requests: readonly { readonly body: Buffer }[] }) =>
    hook.requests.map((request) => request.body.toString());

  test("gives each subscription its own retries: one that fails makes no other be sent again, nor wait", async () => {
    const queue = await makeQueue(t.db, project);
    const { hooks } = await hooksOf(queue, 2);
    const [good, bad] = hooks as [(typeof hooks)[0], (typeof hooks)[0]];
    bad.respond({ status: 500 });
    await publish(t.db, queue, ["1", "2"]);
    await pushAll(newPusher());
    expect(bodies(good).toSorted()).toEqual(["1", "2"]);
    expect(bad.count).toBe(2);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 2, acked: 0 });

    bad.respond({ status: 200 });
    await t.advanceClock(10);
    await pushAll(newPusher());
    expect(good.count).toBe(2);
    expect(bad.count).toBe(4);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 0, acked: 2 });
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });

  test("makes a dead letter of what one subscription could not be given, and leaves it to the others", async () => {
    const queue = await makeQueue(t.db, project, { max_retries: 5 });
    const { hooks, ids } = await hooksOf(queue, 3, { max_retries: 0 });
    hooks[0]?.respond({ status: 500 });
    hooks[1]?.respond({ status: 501 });
    await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    expect(hooks.map((hook) => hook.count)).toEqual([1, 1, 1]);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 1 });
    const [dead] = await deadLetters(t.db, queue);
    expect(dead?.error?.split("; ").toSorted()).toEqual(["HTTP 500", "HTTP 501"]);

    for (const hook of hooks) hook.respond({ status: 200 });
    await t.db.transaction().execute((trx) => redriveDeadLetters(trx, queue, queue, {}, 10));
    await pushAll(newPusher());
    expect(hooks.map((hook) => hook.count)).toEqual([2, 2, 1]);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 0 });
    expect(ids).toHaveLength(3);
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });

  test("keeps what comes for a paused subscription, and forgets it with a deleted one", async () => {
    const queue = await makeQueue(t.db, project);
    const { hooks, ids } = await hooksOf(queue, 3);
    const set = (id: string | undefined, changes: { paused: boolean }) =>
      updatePushSubscription(t.db, { project_id: queue.project_id, subscription_id: id ?? "" }, changes);
    await set(ids[0], { paused: true });
    await set(ids[1], { paused: true });
    await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    expect(hooks.map((hook) => hook.count)).toEqual([0, 0, 1]);
    await set(ids[0], { paused: false });
    await pushAll(newPusher());
    expect(hooks.map((hook) => hook.count)).toEqual([1, 0, 1]);
    expect(await queueStats(t.db, queue)).toMatchObject({ in_flight: 1 });
    const subscription = await findPushSubscription(t.db, queue.project_id, ids[1] ?? "");
    await t.db.transaction().execute((trx) => deletePushSubscription(trx, subscription as NamedSubscriptionRow));
    expect(await queueStats(t.db, queue)).toMatchObject({ in_flight: 0, acked: 1 });
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });

  /** Has a queue give so many messages to two subscriptions that get nothing. */
  const backlog = async (count: number) => {
    const queue = await makeQueue(t.db, project);
    const [first = "", second = ""] = await Promise.all(
      ["/a", "/b"].map((path) => subscribe(queue, `http://127.0.0.1:9${path}`, { mode: "fanout" })),
    );
    await publish(t.db, queue, new Array<string>(count).fill("1"));
    while ((await fanOut(t.db, queue, [], 500, newHandOutMemory())) > 0);
    const remove = async (id: string) => {
      const subscription = (await findPushSubscription(t.db, queue.project_id, id)) as NamedSubscriptionRow;
      await t.db.transaction().execute((trx) => deletePushSubscription(trx, subscription));
    };
    const left = async () => {
      const { rows } = await sql<{ count: number }>`
        select count(*)::int as count from push_deliveries where queue_id = ${queue.queue_id}`.execute(t.db);
      return rows[0]?.count;
    };
    return { queue, first, second, remove, left };
  };
  /** The most that one step of a deletion may take. */
  const STEP = 1_000;

  test("forgets the backlog of a deleted subscription in steps, and leaves that of others", async () => {
    const { queue, first, second, remove, left } = await backlog(1_300);
    expect(await left()).toBe(2_600);
    await remove(first);
    expect(await left()).toBe(2_600 - STEP);
    for (let before = await left(); (await prunerTick(t.db, new AbortController().signal)) > 0; before = await left()) {
      expect((before ?? 0) - ((await left()) ?? 0)).toBeLessThanOrEqual(STEP);
    }
    expect(await left()).toBe(1_300);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 1_300 });
    await remove(second);
    while ((await prunerTick(t.db, new AbortController().signal)) > 0);
    expect(await left()).toBe(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, acked: 1_300 });
    expect(await t.db.selectFrom("dropped_subscriptions").selectAll().execute()).toEqual([]);
  });

  test("forgets what a deleted queue's subscriptions had in steps", async () => {
    const { queue, left } = await backlog(600);
    await t.db.transaction().execute((trx) => deleteQueue(trx, queue));
    for (let before = await left(); (await prunerTick(t.db, new AbortController().signal)) > 0; before = await left()) {
      expect((before ?? 0) - ((await left()) ?? 0)).toBeLessThanOrEqual(STEP);
    }
    expect(await left()).toBe(0);
  });

  test("a purge forgets what subscriptions have in steps", async () => {
    const { queue, left } = await backlog(1);
    const more = 10_050;
    await sql`
      with more as (
        insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, published_at, expires_at)
        select project_id, queue_id, gen_random_uuid(), seq + n, group_id, rank, priority, visible_at, published_at, expires_at
        from messages, generate_series(1, ${more}) n where queue_id = ${queue.push_lane_id}
        returning *
      )
      insert into push_deliveries (project_id, subscription_id, message_id, queue_id, seq, due_at, expires_at)
      select more.project_id, subscription_id, message_id, ${queue.queue_id}, more.seq, carillon_now(), more.expires_at
      from more join push_subscriptions s on s.queue_id = ${queue.queue_id}`.execute(t.db);
    expect(await left()).toBe(2 * (more + 1));
    const steps: number[] = [];
    const db = watching(t.db, (statement) => {
      if (statement.includes("delete from push_deliveries")) steps.push(statement.match(/[0-9a-f-]{36}/g)?.length ?? 0);
    });
    await db.transaction().execute((trx) => purgeQueue(trx, queue));
    expect(Math.max(...steps)).toBeLessThanOrEqual(10_002);
    expect(steps).toHaveLength(4);
    expect(await left()).toBe(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0 });
  });

  test("takes nothing when every subscription has been deleted meanwhile", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["1"]);
    expect(await fanOut(t.db, queue, [], 10, newHandOutMemory())).toBe(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 1 });
  });

  test("of a FIFO queue keeps the order of a group at each subscription, whatever another does", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    const { hooks } = await hooksOf(queue, 2);
    const [good, bad] = hooks as [(typeof hooks)[0], (typeof hooks)[0]];
    bad.respond({ status: 500 });
    await publish(t.db, queue, ["1", "2", "3"], { groupId: "g" });
    await publish(t.db, queue, ["4"], { groupId: "h" });
    await pushAll(newPusher());
    expect(bodies(good).filter((body) => body !== "4")).toEqual(["1", "2", "3"]);
    expect(bodies(bad).toSorted()).toEqual(["1", "4"]);
    bad.respond({ status: 200 });
    await t.advanceClock(10);
    await pushAll(newPusher());
    expect(bodies(bad).filter((body) => body !== "4")).toEqual(["1", "1", "2", "3"]);
    expect(good.count).toBe(4);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0 });
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });

  test("is made again by another node when the lease of a push runs out, with one more failure", async () => {
    const queue = await makeQueue(t.db, project);
    const { hooks } = await hooksOf(queue, 1);
    hooks[0]?.respond({ hang: "before_headers" });
    await publish(t.db, queue, ["1"]);
    const dead = newPusher();
    while ((await dead.tick(new AbortController().signal)) > 0);
    await hooks[0]?.next();
    hooks[0]?.respond({ status: 200 });
    await t.advanceClock(60);
    await pushAll(newPusher());
    expect(hooks[0]?.count).toBe(2);
    expect(await queueStats(t.db, queue)).toMatchObject({ in_flight: 0, acked: 1 });
    // The outcome of the first comes late and changes nothing.
    await dead.stop(0);
    expect(await queueStats(t.db, queue)).toMatchObject({ in_flight: 0, acked: 1 });
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });

  test("a purge takes what subscriptions have", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    const { hooks } = await hooksOf(queue, 1);
    hooks[0]?.respond({ status: 500 });
    await publish(t.db, queue, ["1", "2"], { groupId: "g" });
    await pushAll(newPusher());
    await t.advanceClock(1);
    expect(await t.db.transaction().execute((trx) => purgeQueue(trx, queue))).toBe(2);
    hooks[0]?.respond({ status: 200 });
    await publish(t.db, queue, ["3"], { groupId: "g" });
    await t.advanceClock(60);
    await pushAll(newPusher());
    expect(bodies(hooks[0] as (typeof hooks)[0])).toEqual(["1", "3"]);
    for (const hook of hooks) await hook[Symbol.asyncDispose]();
  });
});

describe("a FIFO group whose message keeps failing", () => {
  const failing = async (policy: string, mode: string) => {
    const receiver = await startReceiver();
    receiver.respond((request) => ({ status: request.body.toString() === "1" ? 500 : 200 }));
    const queue = await makeQueue(t.db, project, { type: "fifo", max_retries: 1 });
    await subscribe(queue, receiver.url, { mode, group_failure_policy: policy });
    await publish(t.db, queue, ["1", "2"], { groupId: "g" });
    for (let i = 0; i < 2; i++) {
      await pushAll(newPusher());
      await t.advanceClock(400);
    }
    const bodies = () => receiver.requests.map((request) => request.body.toString());
    return { receiver, queue, bodies };
  };

  test.each(["compete", "fanout"])("waits with policy block, also beyond max_retries (%s)", async (mode) => {
    const { receiver, queue, bodies } = await failing("block", mode);
    expect(bodies()).toEqual(["1", "1"]);
    await pushAll(newPusher());
    expect(bodies()).toEqual(["1", "1", "1"]);
    expect(await queueStats(t.db, queue)).toMatchObject({ dead: 0 });
    receiver.respond({ status: 200 });
    await t.advanceClock(3_000);
    await pushAll(newPusher());
    expect(bodies()).toEqual(["1", "1", "1", "1", "2"]);
    await receiver[Symbol.asyncDispose]();
  });

  test.each(["compete", "fanout"])("goes on without it with policy skip (%s)", async (mode) => {
    const { receiver, queue, bodies } = await failing("skip", mode);
    expect(bodies()).toEqual(["1", "1", "2"]);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, dead: 1 });
    await receiver[Symbol.asyncDispose]();
  });

  test.each(["compete", "fanout"])("is parked with policy park, and an event says so (%s)", async (mode) => {
    const { receiver, queue, bodies } = await failing("park", mode);
    receiver.respond({ status: 200 });
    await t.advanceClock(86_400);
    await pushAll(newPusher());
    expect(bodies()).toEqual(["1", "1"]);
    expect(await queueStats(t.db, queue)).toMatchObject({ dead: 0 });
    await receiver[Symbol.asyncDispose]();
  });
});

describe("batches", () => {
  test("go out full, or when their window is over, and are acked by one answer", async () => {
    await using receiver = await startReceiver();
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url, { batch_size: 3, batch_window_ms: 50 });
    await publish(t.db, queue, ["1", "2", "3", "4"], { contentType: "application/json" });
    const pusher = newPusher();
    await pusher.tick(new AbortController().signal);
    await receiver.next((request) => JSON.parse(request.body.toString()).messages.length === 3);
    await receiver.next((request) => JSON.parse(request.body.toString()).messages.length === 1);
    await pusher.stop(10_000);
    expect(receiver.count).toBe(2);
    expect(receiver.requests[0]?.headers["carillon-batch-size"]).toBe("3");
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, in_flight: 0, acked: 4 });
    expect(await pushRuns(queue)).toHaveLength(4);
  });

  test("come again with the same webhook-id when they fail, and lose only what the answer does not name", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ status: 500 });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url, { batch_size: 3 });
    const [, second = ""] = await publish(t.db, queue, ["1", "2", "3"], { contentType: "application/json" });
    await pushAll(newPusher());
    const failed = { failed: [{ message_id: formatId("msg", second), error: "no such order" }, { message_id: "x" }] };
    receiver.respond({ status: 200, body: JSON.stringify(failed) });
    await t.advanceClock(10);
    await pushAll(newPusher());
    expect(receiver.count).toBe(2);
    expect(receiver.requests[0]?.headers["webhook-id"]).toMatch(/^batch_[0-9a-f]{32}$/);
    expect(receiver.requests[1]?.headers["webhook-id"]).toBe(receiver.requests[0]?.headers["webhook-id"]);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 0, delayed: 1, in_flight: 0, acked: 2 });
    const states = (await pushRuns(queue)).map(({ state, error }) => [state, error]);
    expect(states.toSorted()).toEqual([
      ["retrying", "no such order"],
      ["succeeded", null],
      ["succeeded", null],
    ]);
  });
});

describe("an endpoint", () => {
  test("that is disabled by its receiver is pushed nothing more until it is enabled, and what comes for it stays", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ status: 410 });
    const queue = await makeQueue(t.db, project);
    const url = `${receiver.url}/gone`;
    await subscribe(queue, url);
    await publish(t.db, queue, ["1"]);
    await pushAll(newPusher());
    await watch.flush();
    await publish(t.db, queue, ["2"]);
    await t.advanceClock(3_600);
    await pushAll(newPusher());
    expect(receiver.count).toBe(1);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 1, dead: 1 });
  });

  test("gets no more requests at a time than its max_concurrency, and what waits is not counted as failed", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project);
    const url = `${receiver.url}/limited`;
    await subscribe(queue, url);
    const { endpointId, address } = endpointOf(url);
    await t.db
      .insertInto("endpoints")
      .values({ project_id: queue.project_id, endpoint_id: endpointId, address, max_concurrency: 1 })
      .execute();
    await publish(t.db, queue, ["1", "2", "3"]);
    const pusher = newPusher();
    for (let i = 0; i < 5; i++) await pusher.tick(new AbortController().signal);
    await receiver.next();
    await pusher.stop(0);
    expect(receiver.count).toBe(1);
    expect(await queueStats(t.db, queue)).toMatchObject({ available: 3, dead: 0 });
  });

  test("has one request under way for each batch, whatever number of messages are in it", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project);
    const url = `${receiver.url}/batches`;
    await subscribe(queue, url, { batch_size: 3 });
    const { endpointId, address } = endpointOf(url);
    await t.db
      .insertInto("endpoints")
      .values({ project_id: queue.project_id, endpoint_id: endpointId, address, max_concurrency: 2 })
      .execute();
    await publish(t.db, queue, ["1", "2", "3", "4", "5", "6", "7", "8", "9"], { contentType: "application/json" });
    const pushers = [newPusher(), newPusher()];
    for (let i = 0; i < 3; i++) {
      for (const pusher of pushers) await pusher.tick(new AbortController().signal);
    }
    await receiver.next();
    await receiver.next();
    expect(await findEndpoint(t.db, queue.project_id, endpointId)).toMatchObject({ in_flight: 2 });
    await Promise.all(pushers.map((pusher) => pusher.stop(0)));
    expect(receiver.count).toBe(2);
  });
});

describe("the room under an endpoint's max_concurrency", () => {
  test("is free for others as soon as a push ends", async () => {
    await using receiver = await startReceiver();
    const answer = Promise.withResolvers<object>();
    receiver.respond(() => answer.promise);
    const queue = await makeQueue(t.db, project);
    const url = `${receiver.url}/limited`;
    await subscribe(queue, url);
    const { endpointId, address } = endpointOf(url);
    await t.db
      .insertInto("endpoints")
      .values({ project_id: queue.project_id, endpoint_id: endpointId, address, max_concurrency: 1 })
      .execute();
    await publish(t.db, queue, ["1", "2"]);
    const pusher = newPusher();
    await pusher.tick(new AbortController().signal);
    await receiver.next();
    // Whoever is refused looks again after a while, which is not to be the reason why anything goes on here.
    const later = sql<Date>`carillon_now() + interval '1 hour'`;
    await expect
      .poll(async () => {
        await pusher.tick(new AbortController().signal);
        const endpoints = await t.db
          .selectFrom("endpoints")
          .select(sql<boolean>`ready_at > carillon_now()`.as("waits"))
          .where("endpoint_id", "=", endpointId)
          .execute();
        return endpoints[0]?.waits;
      })
      .toBe(true);
    await t.db.updateTable("endpoints").set({ ready_at: later }).where("endpoint_id", "=", endpointId).execute();
    const runs = new Promise<void>((resolve) => wakeups.on("runs", resolve));
    answer.resolve({});
    await runs;
    await pusher.stop(10_000);
    await pushAll(pusher);
    expect(receiver.count).toBe(2);
  });
});

describe("subscriptions that hang", () => {
  const HANGING = 180;
  const GOOD = 20;
  const MESSAGES = 3;

  test.each(["compete", "fanout"])("by the hundred delay none that answers (%s)", { timeout: 60_000 }, async (mode) => {
    await using receiver = await startReceiver();
    const good = () => receiver.requests.filter(({ path }) => path.startsWith("/good"));
    receiver.respond(({ path }) => (path.startsWith("/good") ? {} : { hang: "before_headers" }));
    const urls = [
      ...Array.from({ length: HANGING }, (_, n) => `${receiver.url}/hanging/${n}`),
      ...Array.from({ length: GOOD }, (_, n) => `${receiver.url}/good/${n}`),
    ];
    const shared = mode === "fanout" ? await makeQueue(t.db, project) : undefined;
    const queues = new Set<NamedQueueRow>();
    for (const [n, url] of urls.entries()) {
      const queue = shared ?? (await makeQueue(t.db, project, { name: `queue-${n}` }));
      queues.add(queue);
      await subscribe(queue, url, { mode, timeout_seconds: 900 });
    }
    for (const queue of queues) {
      await publish(
        t.db,
        queue,
        Array.from({ length: MESSAGES }, (_, n) => `${n}`),
      );
    }
    const pusher = newPusher({ concurrency: 50 });
    const tick = async (signal: AbortSignal) => ({
      done: await pusher.tick(signal),
      nextDueInMs: pusher.msUntilRoom(),
    });
    const onError = (_name: string, error: unknown) => faults.push(error);
    const loop = startLoop(tick, { name: "pusher", idleMs: 1_000, wakeups, topic: "pushes", onError });
    await expect.poll(() => good().length, { timeout: 50_000 }).toBe(GOOD * MESSAGES);
    await expect.poll(() => new Set(receiver.requests.map(({ path }) => path)).size, { timeout: 50_000 }).toBe(200);
    await loop[Symbol.asyncDispose]();
    await pusher.stop(0);
    expect(faults).toEqual([]);
    expect(receiver.count).toBeLessThanOrEqual(2 * HANGING + GOOD * MESSAGES);
  });

  test("hold no more bytes than a node may, and leave the rest to those that answer", async () => {
    await using hanging = await startReceiver();
    await using good = await startReceiver();
    hanging.respond({ hang: "before_headers" });
    const proven = await makeQueue(t.db, project, { name: "proven" });
    await subscribe(proven, good.url);
    await publish(t.db, proven, ["1"]);
    const pusher = newPusher({ maxBytes: 3_000 });
    await pushAll(pusher);
    for (let n = 0; n < 6; n++) {
      const queue = await makeQueue(t.db, project, { name: `hanging-${n}` });
      await subscribe(queue, `${hanging.url}/${n}`);
      await publish(t.db, queue, ["x".repeat(1_000)]);
    }
    for (let i = 0; i < 3; i++) await pusher.tick(new AbortController().signal);
    for (let n = 0; n < 3; n++) await hanging.next();
    await publish(t.db, proven, ["2", "3"]);
    await pusher.tick(new AbortController().signal);
    for (let n = 0; n < 3; n++) await good.next();
    expect(hanging.count).toBe(3);
    await pusher.stop(0);
  });
});

describe("a subscription that hangs", () => {
  test("holds no more than max_concurrency requests", async () => {
    await using receiver = await startReceiver();
    receiver.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, receiver.url, { max_concurrency: 2 });
    await publish(t.db, queue, ["1", "2", "3", "4"]);
    const pusher = newPusher();
    for (let i = 0; i < 3; i++) await pusher.tick(new AbortController().signal);
    await receiver.next();
    await receiver.next();
    await pusher.stop(0);
    expect(receiver.count).toBe(2);
  });

  test("holds back neither others of its queue nor other queues", async () => {
    await using hanging = await startReceiver();
    await using good = await startReceiver();
    hanging.respond({ hang: "before_headers" });
    const queue = await makeQueue(t.db, project);
    await subscribe(queue, hanging.url);
    await publish(
      t.db,
      queue,
      Array.from({ length: 40 }, (_, i) => `${i}`),
    );
    const pusher = newPusher();
    for (let i = 0; i < 20; i++) await pusher.tick(new AbortController().signal);
    const other = await makeQueue(t.db, project, { name: "other" });
    await subscribe(other, good.url);
    await publish(t.db, other, ["1"]);
    await pusher.tick(new AbortController().signal);
    await good.next();
    expect(hanging.count).toBeLessThan(8);
    await pusher.stop(0);
  });
});
