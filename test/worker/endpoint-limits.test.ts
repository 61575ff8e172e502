import { timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { EndpointState } from "../../gen/scheduling/v1/endpoint_service_pb.js";
import { type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

async function scheduleTasks(world: RunWorld, count: number): Promise<void> {
  const runAt = timestampFromDate(await world.database.now());
  for (let n = 0; n < count; n++) await world.tasks.scheduleTask({ url: world.receiver.url, runAt });
}

/** The endpoint of the receiver, which is known from its first request on. */
async function openEndpoint(world: RunWorld): Promise<string> {
  await scheduleTasks(world, 1);
  await world.dispatch();
  const { items } = await world.endpoints.listEndpoints({ url: world.receiver.url });
  return items[0]?.endpointId ?? expect.fail();
}

test("the concurrency limit of an endpoint holds for all nodes together, and is used", async () => {
  await using world = await runWorld();
  const endpointId = await openEndpoint(world);
  await world.endpoints.updateEndpoint({ endpointId, maxConcurrency: 3 });
  await scheduleTasks(world, 20);
  await using other = world.newDispatcher();
  const nodes = [world.dispatcher, other];
  let underWay = 0;
  let most = 0;
  let answer = Promise.withResolvers<object>();
  world.receiver.respond(async () => {
    underWay += 1;
    most = Math.max(most, underWay);
    await answer.promise;
    underWay -= 1;
    return {};
  });
  for (let round = 0; round < 60 && world.receiver.count < 21; round++) {
    const before = world.receiver.count;
    for (let n = 0; n < 2; n++) await Promise.all(nodes.map((node) => node.tick(NEVER)));
    const running = (await world.runs()).filter(({ state }) => state === "running").length;
    expect(running).toBeLessThanOrEqual(3);
    await expect.poll(() => world.receiver.count).toBe(before + running);
    answer.resolve({});
    await Promise.all(nodes.map((node) => node.settled()));
    answer = Promise.withResolvers<object>();
  }
  expect(world.receiver.count).toBe(21);
  expect(most).toBe(3);
  expect(world.errors).toEqual([]);
});

test("the rate of an endpoint holds for all nodes together, in every second", async () => {
  await using world = await runWorld();
  const endpointId = await openEndpoint(world);
  await world.endpoints.updateEndpoint({ endpointId, maxRate: 5 });
  await scheduleTasks(world, 12);
  await using other = world.newDispatcher();
  const nodes = [world.dispatcher, other];
  for (let round = 0; round < 200 && world.receiver.count < 13; round++) {
    await world.database.advanceClock(0.05);
    await Promise.all(nodes.map((node) => node.tick(NEVER)));
    await Promise.all(nodes.map((node) => node.settled()));
  }
  expect(world.receiver.count).toBe(13);
  const attempts = await world.db.selectFrom("run_attempts").select("started_at").orderBy("started_at").execute();
  const times = attempts.slice(1).map(({ started_at: at }) => at.getTime());
  expect(times).toHaveLength(12);
  // The clock of the limit has whole milliseconds.
  for (let i = 5; i < times.length; i++) expect((times[i] ?? 0) - (times[i - 5] ?? 0)).toBeGreaterThanOrEqual(995);
});

test("an endpoint that answers 429 is left alone for as long as it asks, and gets more and more again after it", async () => {
  await using world = await runWorld();
  const endpointId = await openEndpoint(world);
  const endpoint = async () => (await world.endpoints.getEndpoint({ endpointId })).endpoint ?? expect.fail();
  world.receiver.respond({ status: 429, headers: { "retry-after": "30" } });
  await scheduleTasks(world, 1);
  await world.dispatch();
  const paused = await endpoint();
  expect(paused).toMatchObject({ state: EndpointState.CLOSED, throttled: 1 });
  const untilMs = timestampMs(paused.pausedUntil ?? expect.fail()) - (await world.database.now()).getTime();
  expect(untilMs).toBeGreaterThan(25_000);
  expect(untilMs).toBeLessThanOrEqual(30_000);

  world.receiver.respond({});
  await scheduleTasks(world, 5);
  await world.database.advanceClock(20);
  await world.dispatch();
  expect(world.receiver.count).toBe(2);
  await world.database.advanceClock(11);
  const slow = (await endpoint()).currentRate ?? expect.fail();
  await world.dispatch();
  expect(world.receiver.count).toBeGreaterThan(2);
  expect(world.receiver.count).toBeLessThan(8);
  await world.database.advanceClock(60);
  expect((await endpoint()).currentRate).toBeGreaterThan(1.9 * slow);
  for (let second = 0; second < 60 && world.receiver.count < 8; second++) {
    await world.database.advanceClock(1);
    await world.dispatch();
  }
  expect(world.receiver.count).toBe(8);
});

test("an open breaker lets one probe through at a time, whatever number of nodes have something due", async () => {
  await using world = await runWorld();
  const { receiver, database } = world;
  const endpointId = await openEndpoint(world);
  const stateOf = async () => (await world.endpoints.getEndpoint({ endpointId })).endpoint?.state;
  receiver.respond({ status: 500 });
  await scheduleTasks(world, 40);
  for (let round = 0; round < 10 && (await stateOf()) !== EndpointState.OPEN; round++) await world.dispatch();
  expect(await stateOf()).toBe(EndpointState.OPEN);
  let sent = receiver.count;
  expect(sent).toBeLessThan(41);

  await using second = world.newDispatcher();
  await using third = world.newDispatcher();
  const nodes = [world.dispatcher, second, third];
  const tickAll = async () => {
    for (let n = 0; n < 3; n++) await Promise.all(nodes.map((node) => node.tick(NEVER)));
  };
  await database.advanceClock(28);
  await tickAll();
  expect(receiver.count).toBe(sent);

  for (const state of [EndpointState.HALF_OPEN, EndpointState.HALF_OPEN, EndpointState.CLOSED]) {
    const answer = Promise.withResolvers<object>();
    receiver.respond(() => answer.promise);
    await database.advanceClock(31);
    await tickAll();
    sent += 1;
    await expect.poll(() => receiver.count).toBe(sent);
    // It is under way, and nothing goes beside it.
    await database.advanceClock(20);
    await tickAll();
    expect(receiver.count).toBe(sent);
    answer.resolve({});
    await Promise.all(nodes.map((node) => node.settled()));
    await world.flush();
    expect(await stateOf()).toBe(state);
    await tickAll();
    if (state !== EndpointState.CLOSED) expect(receiver.count).toBe(sent);
  }
  await Promise.all(nodes.map((node) => node.settled()));
  expect(world.errors).toEqual([]);
});
