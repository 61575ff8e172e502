import { getEventListeners } from "node:events";
import { timestampDate, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "kysely";
import { describe, expect, test } from "vitest";
import { OverlapPolicy, RunState } from "../../gen/scheduling/v1/run_pb.js";
import { Wakeups } from "../../src/db/wakeups.ts";
import { dueRuns } from "../../src/store/runs-due.ts";
import { leaseRuns } from "../../src/store/runs-leasing.ts";
import { verify } from "../../src/webhook/sign.ts";
import type { ReceivedRequest } from "../support/receiver.ts";
import { copyTask, createJob, PROJECT_SECRET, type RunWorld, runWorld } from "../support/runs.ts";

const NEVER = new AbortController().signal;

function isSigned(request: ReceivedRequest | undefined, secret: string): boolean {
  if (request === undefined) return false;
  const nowSeconds = Number(request.headers["webhook-timestamp"]);
  return verify(request.headers, request.body, secret, { nowSeconds });
}

async function trigger(world: RunWorld, cronId: string): Promise<string> {
  const { run } = await world.cron.triggerCronJob({ cronId, overlapPolicy: OverlapPolicy.ALLOW });
  return run?.runId ?? "";
}

/** Takes the run's lease and makes no attempt, as a node that is killed in between. */
async function leaseAndDie(world: RunWorld): Promise<void> {
  const due = (await dueRuns(world.db, { limit: 10, parkedLimit: 10 })).runs;
  expect((await leaseRuns(world.db, world.projectId, due)).length).toBe(1);
}

async function getRun(world: RunWorld, cronId: string, runId: string) {
  const { run } = await world.cron.getCronRun({ cronId, runId });
  if (run === undefined) throw new Error("no run");
  return run;
}

describe("an attempt", () => {
  test("sends the payload byte for byte, signed, with the job's headers and what run it is of", async () => {
    await using world = await runWorld();
    const payload = Buffer.from(`{ "b": 1,  "a": 12345678901234567890 }`);
    const { cronId } = await createJob(world, { payload, headers: { "X-Shop": "7" } });
    const runId = await trigger(world, cronId);
    await world.dispatch();

    const [request] = world.receiver.requests;
    expect(request?.method).toBe("POST");
    expect(request?.body.equals(payload)).toBe(true);
    expect(request?.headers).toMatchObject({
      "content-type": "application/json",
      "x-shop": "7",
      "webhook-id": runId,
      "carillon-run-id": runId,
      "carillon-cron-id": cronId,
      "carillon-attempt": "1",
      "carillon-trigger": "manual",
    });
    expect(isSigned(request, PROJECT_SECRET)).toBe(true);
    const run = await getRun(world, cronId, runId);
    expect(run).toMatchObject({ state: RunState.SUCCEEDED, attempt: 1, responseStatus: 200 });
    expect(run.nextAttemptAt).toBeUndefined();
    expect(run.attempts).toMatchObject([{ attempt: 1, responseStatus: 200 }]);
  });

  test("sends {} without a payload, and is signed with the job's own secret", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { secret: "sixteen characters" });
    await trigger(world, cronId);
    await world.dispatch();
    const [request] = world.receiver.requests;
    expect(request?.body.toString()).toBe("{}");
    expect(isSigned(request, "sixteen characters")).toBe(true);
  });

  test("that fails is made again after 5, 10 and 20 seconds under one webhook-id, then the run has failed", async () => {
    await using world = await runWorld();
    world.receiver.respond((_, index) => ({ status: 500 + index, body: `no ${index}` }));
    const { cronId } = await createJob(world);
    const runId = await trigger(world, cronId);

    await world.dispatch();
    for (const [index, seconds] of [5, 10, 20].entries()) {
      const waiting = await getRun(world, cronId, runId);
      expect(waiting).toMatchObject({ state: RunState.RETRYING, attempt: index + 1, error: `HTTP ${500 + index}` });
      await world.database.advanceClock(seconds - 1);
      await world.dispatch();
      expect(world.receiver.count).toBe(index + 1);
      await world.database.advanceClock(1);
      await world.dispatch();
    }
    const failed = await getRun(world, cronId, runId);
    expect(failed).toMatchObject({ state: RunState.FAILED, attempt: 4, responseStatus: 503, error: "HTTP 503" });
    expect(failed.attempts.map(({ responseBody }) => responseBody)).toEqual(["no 0", "no 1", "no 2", "no 3"]);
    expect(new Set(world.receiver.requests.map(({ headers }) => headers["webhook-id"]))).toEqual(new Set([runId]));
    await world.database.advanceClock(86_400);
    await world.dispatch();
    expect(world.receiver.count).toBe(4);
  });

  test("waits as long as Retry-After asks when that is longer", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 429, headers: { "retry-after": "120" } });
    const { cronId } = await createJob(world);
    const runId = await trigger(world, cronId);
    await world.dispatch();
    const run = await getRun(world, cronId, runId);
    const next = timestampDate(run.nextAttemptAt ?? expect.fail()).getTime();
    expect(Math.abs(next - (await world.database.now()).getTime() - 120_000)).toBeLessThan(2_000);
  });

  test("that is answered 410 is the last one", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 410 });
    const { cronId } = await createJob(world);
    const runId = await trigger(world, cronId);
    await world.dispatch();
    expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.FAILED, attempt: 1 });
  });

  test("ends at its time limit", async () => {
    await using world = await runWorld();
    world.receiver.respond({ hang: "before_headers" });
    const { cronId } = await createJob(world, { timeoutSeconds: 1, retries: 0 });
    const runId = await trigger(world, cronId);
    await world.dispatch();
    const run = await getRun(world, cronId, runId);
    expect(run).toMatchObject({ state: RunState.FAILED, attempts: [{ error: "timeout" }] });
    expect(run.responseStatus).toBeUndefined();
    expect(run.error).toMatch(/^timeout/);
  });
});

describe("the failure webhook", () => {
  test("is told of a failed run by a signed event, with retries of its own and without an end in itself", async () => {
    await using world = await runWorld();
    world.receiver.respond({ status: 500 });
    const { cronId } = await createJob(world, {
      name: "nightly",
      retries: 0,
      secret: "sixteen characters",
      onFailureWebhook: `${world.receiver.url}/failed`,
    });
    const runId = await trigger(world, cronId);
    await world.dispatch();

    const event = await world.receiver.next(({ path }) => path === "/failed");
    expect(isSigned(event, "sixteen characters")).toBe(true);
    expect(JSON.parse(event.body.toString())).toMatchObject({
      type: "cron.run.failed",
      timestamp: expect.any(String),
      data: { run_id: runId, cron_id: cronId, name: "nightly", error: "HTTP 500", response_status: 500, attempts: 1 },
    });
    // Seven more attempts over a day and more, then silence: a failed event is no reason for another event.
    for (let hour = 0; hour < 60; hour++) {
      await world.database.advanceClock(3_600);
      await world.dispatch();
    }
    const events = world.receiver.requests.filter(({ path }) => path === "/failed");
    expect(events.length).toBe(8);
    expect(new Set(events.map(({ headers }) => headers["webhook-id"])).size).toBe(1);
    const { items } = await world.tasks.listRuns({});
    expect(items.map((run) => run.runId)).toEqual([runId]);
  });

  test("is not told of a run that succeeds after a failed attempt", async () => {
    await using world = await runWorld();
    world.receiver.respond((_, index) => ({ status: index === 0 ? 500 : 200 }));
    const { cronId } = await createJob(world, { onFailureWebhook: `${world.receiver.url}/failed` });
    const runId = await trigger(world, cronId);
    await world.dispatch();
    await world.database.advanceClock(5);
    await world.dispatch();
    expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.SUCCEEDED, attempt: 2 });
    expect(world.receiver.requests.map(({ path }) => path)).toEqual(["/", "/"]);
  });
});

describe("a run whose node died", () => {
  test("is taken back when its lease ends, which counts as a failed attempt", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world);
    const runId = await trigger(world, cronId);
    await leaseAndDie(world);
    await world.reap();
    expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.RUNNING, attempt: 1 });

    await world.database.advanceClock(60);
    await world.reap();
    const lost = await getRun(world, cronId, runId);
    expect(lost).toMatchObject({ state: RunState.RETRYING, attempts: [{ attempt: 1, error: "lease_expired" }] });
    expect(lost.attempts[0]?.finishedAt).toBeUndefined();
    await world.database.advanceClock(5);
    await world.dispatch();
    expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.SUCCEEDED, attempt: 2 });
  });

  test("has failed when no retry is left", async () => {
    await using world = await runWorld();
    const { cronId } = await createJob(world, { retries: 0 });
    const runId = await trigger(world, cronId);
    await leaseAndDie(world);
    await world.database.advanceClock(60);
    await world.reap();
    const run = await getRun(world, cronId, runId);
    expect(run).toMatchObject({ state: RunState.FAILED });
    expect(run.error).toMatch(/^lease_expired/);
  });
});

test("an attempt whose run was canceled under it changes nothing when it ends", async () => {
  await using world = await runWorld();
  const answer = Promise.withResolvers<object>();
  world.receiver.respond(() => answer.promise);
  const { cronId } = await createJob(world);
  const first = await trigger(world, cronId);
  await world.dispatcher.tick(NEVER);
  await world.receiver.next();
  const { run } = await world.cron.triggerCronJob({ cronId, overlapPolicy: OverlapPolicy.CANCEL_PREVIOUS });
  expect(run).toMatchObject({ state: RunState.PENDING });
  const canceled = await getRun(world, cronId, first);
  expect(canceled).toMatchObject({ state: RunState.CANCELED });

  answer.resolve({ status: 200 });
  await world.dispatcher.settled();
  expect(await getRun(world, cronId, first)).toEqual(canceled);
  expect(world.errors).toEqual([]);
});

test("the attempt of a deleted job finishes and is not retried, and nobody is told", async () => {
  await using world = await runWorld();
  const answer = Promise.withResolvers<object>();
  world.receiver.respond(() => answer.promise);
  const { cronId } = await createJob(world, { onFailureWebhook: `${world.receiver.url}/failed` });
  const runId = await trigger(world, cronId);
  await world.dispatcher.tick(NEVER);
  await world.receiver.next();
  await world.cron.deleteCronJob({ cronId });
  answer.resolve({ status: 500 });
  await world.dispatcher.settled();
  expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.CANCELED, responseStatus: 500 });
  await world.database.advanceClock(3_600);
  await world.dispatch();
  expect(world.receiver.count).toBe(1);
});

test("what several nodes read as due at once is leased once", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  for (let index = 0; index < 20; index++) await trigger(world, cronId);
  for (let index = 0; index < 20; index++) {
    await world.tasks.scheduleTask({ url: world.receiver.url, runAt: timestampFromMs(0) });
  }
  // Opens the connections first, so that the leasing itself runs side by side.
  await Promise.all(Array.from({ length: 5 }, () => sql`select pg_sleep(0.05)`.execute(world.db)));

  const { runs: due } = await dueRuns(world.db, { limit: 100, parkedLimit: 100 });
  expect(due.length).toBe(40);
  const leased = await Promise.all(Array.from({ length: 5 }, () => leaseRuns(world.db, world.projectId, due)));
  const attempts = leased.flat();
  expect(new Set(attempts.map(({ runId }) => runId)).size).toBe(attempts.length);
  expect(attempts.every(({ attempt }) => attempt === 1)).toBe(true);
  // A node that steps over another one's locks may leave a run for the next tick, never take it twice.
  const rest = await leaseRuns(world.db, world.projectId, due);
  expect(attempts.length + rest.length).toBe(40);
});

test("any number of dispatchers make each attempt once", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  for (let index = 0; index < 40; index++) await trigger(world, cronId);
  const nodes = [world.dispatcher, world.newDispatcher(), world.newDispatcher()];
  for (let round = 0; round < 20; round++) await Promise.all(nodes.map((node) => node.tick(NEVER)));
  await Promise.all(nodes.map((node) => node.settled()));
  expect(world.receiver.count).toBe(40);
  expect(new Set(world.receiver.requests.map(({ headers }) => headers["webhook-id"])).size).toBe(40);
  expect((await world.runs()).every(({ state }) => state === "succeeded")).toBe(true);
});

test("a dispatcher keeps no more attempts under way than it may", async () => {
  await using world = await runWorld();
  const answer = Promise.withResolvers<object>();
  world.receiver.respond(() => answer.promise);
  const { cronId } = await createJob(world);
  for (let index = 0; index < 5; index++) await trigger(world, cronId);
  await using node = world.newDispatcher({ concurrency: 2 });
  expect(await node.tick(NEVER)).toMatchObject({ done: 2 });
  const blocked = node.tick(NEVER);
  await world.receiver.next();
  await world.receiver.next();
  expect((await world.runs()).filter(({ state }) => state === "running").length).toBe(2);
  answer.resolve({});
  await blocked;
  while ((await node.tick(NEVER)).done > 0);
  await node.settled();
  expect((await world.runs()).every(({ state }) => state === "succeeded")).toBe(true);
});

test("a place is free as soon as the answer is there, for a bounded number of outcomes that are not recorded yet", async () => {
  await using world = await runWorld();
  const [answer, last] = [Promise.withResolvers<object>(), Promise.withResolvers<object>()];
  world.receiver.respond((_, index) => (index === 0 ? answer.promise : index === 3 ? last.promise : {}));
  for (let index = 0; index < 6; index++) {
    await world.tasks.scheduleTask({ url: world.receiver.url, runAt: timestampFromMs(0) });
  }
  await using node = world.newDispatcher({ concurrency: 1 });
  await node.tick(NEVER);
  await world.receiver.next();
  const isRunning = async () => (await world.runs()).filter(({ state }) => state === "running").length;
  let blocked: Promise<unknown> | undefined;
  await world.db.transaction().execute(async (trx) => {
    // Nothing can be recorded of the first one, nor of those that wait for it.
    await sql`select from runs where state = 'running' for update`.execute(trx);
    answer.resolve({});
    for (let index = 0; index < 3; index++) {
      expect(await node.tick(NEVER)).toMatchObject({ done: 1 });
      await world.receiver.next();
    }
    // The room that this tick waits for comes with one outcome too many.
    blocked = node.tick(NEVER);
    last.resolve({});
    // Time enough to lease another one, in the database's own turns.
    for (let turn = 0; turn < 200; turn++) expect(await isRunning()).toBe(4);
  });
  await blocked;
  while ((await node.tick(NEVER)).done > 0);
  await node.settled();
  expect((await world.runs()).every(({ state }) => state === "succeeded")).toBe(true);
});

test("what there was too little room for is looked for as soon as an attempt to any endpoint ends", async () => {
  await using world = await runWorld();
  await using wakeups = new Wakeups("postgres://127.0.0.1:1/nothing");
  await using node = world.newDispatcher({ wakeups, concurrency: 4 });
  const schedule = (path: string) =>
    world.tasks.scheduleTask({ url: `${world.receiver.url}/${path}`, runAt: timestampFromMs(0) });
  await schedule("known");
  await node.tick(NEVER);
  await node.settled();
  const answers = [Promise.withResolvers<object>(), Promise.withResolvers<object>()];
  world.receiver.respond((_, index) => answers[index - 1]?.promise ?? {});
  for (const path of ["a", "b", "c"]) await schedule(path);
  // Unknown endpoints have half of the room beside one that is known to be good.
  expect(await node.tick(NEVER)).toMatchObject({ done: 2 });
  expect(await node.tick(NEVER)).toMatchObject({ done: 0 });
  const woken = Promise.withResolvers<void>();
  wakeups.on("runs", woken.resolve);
  answers[0]?.resolve({});
  await woken.promise;
  expect(await node.tick(NEVER)).toMatchObject({ done: 1 });
  answers[1]?.resolve({});
  await node.settled();
});

test("what is due behind a backlog of thousands for another endpoint is sent after a few looks", async () => {
  await using world = await runWorld();
  const [busy, other] = [`${world.receiver.url}/busy`, `${world.receiver.url}/other`];
  await world.tasks.scheduleTask({ url: busy, runAt: timestampFromMs(0) });
  await copyTask(world, 5_000);
  for (let n = 0; n < 20; n++) await world.tasks.scheduleTask({ url: other, runAt: timestampFromMs(1) });
  await using node = world.newDispatcher({ concurrency: 16 });
  let sent = 0;
  world.receiver.respond(({ path }) => {
    if (path === "/other") sent += 1;
    return {};
  });
  // The backlog is 140 windows long or more; one look in eight passes over two thousand of it.
  let looks = 0;
  for (; looks < 200 && sent < 20; looks++) await node.tick(NEVER);
  await node.settled();
  expect(sent).toBe(20);
  expect(looks).toBeLessThan(70);
});

test("waiting for room leaves nothing behind, however often", async () => {
  await using world = await runWorld();
  const answers = [Promise.withResolvers<object>(), Promise.withResolvers<object>()];
  let asked = 0;
  world.receiver.respond(() => answers[asked++]?.promise ?? {});
  const { cronId } = await createJob(world);
  for (let index = 0; index < 6; index++) await trigger(world, cronId);
  await using node = world.newDispatcher({ concurrency: 2 });
  const loop = new AbortController();
  await node.tick(loop.signal);
  const next = node.tick(loop.signal);
  expect(getEventListeners(loop.signal, "abort")).toHaveLength(1);
  answers[0]?.resolve({});
  await next;
  for (let index = 0; index < 3; index++) await node.tick(loop.signal);
  expect(getEventListeners(loop.signal, "abort")).toEqual([]);
  answers[1]?.resolve({});
  await node.settled();
});

test("disposing waits for the attempt under way and starts nothing more", async () => {
  await using world = await runWorld();
  const answer = Promise.withResolvers<object>();
  world.receiver.respond(() => answer.promise);
  const { cronId } = await createJob(world);
  await trigger(world, cronId);
  const node = world.newDispatcher();
  await node.tick(NEVER);
  await world.receiver.next();
  const disposed = node[Symbol.asyncDispose]();
  await trigger(world, cronId);
  expect(await node.tick(NEVER)).toMatchObject({ done: 0 });
  answer.resolve({});
  await disposed;
  expect((await world.runs()).map(({ state }) => state)).toEqual(["succeeded", "pending"]);
});

test("an outcome is recorded when the database is back", async () => {
  await using world = await runWorld();
  const answer = Promise.withResolvers<object>();
  world.receiver.respond(() => answer.promise);
  const { cronId } = await createJob(world);
  const runId = await trigger(world, cronId);
  await world.dispatcher.tick(NEVER);
  await world.receiver.next();
  // A trigger that raises stands for a database that fails; a sequence counts through every rollback.
  await sql`create sequence tries`.execute(world.db);
  await sql
    .raw(`create function fail() returns trigger language plpgsql as
      $$ begin perform nextval('tries'); raise 'broken'; end $$`)
    .execute(world.db);
  await sql`create trigger broken before insert on run_attempts for each row execute function fail()`.execute(world.db);
  answer.resolve({});
  const tries = async () => (await sql<{ is_called: boolean }>`select is_called from tries`.execute(world.db)).rows[0];
  await expect.poll(tries).toEqual({ is_called: true });
  expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.RUNNING });
  await sql`drop trigger broken on run_attempts`.execute(world.db);
  await world.dispatcher.settled();
  expect(await getRun(world, cronId, runId)).toMatchObject({ state: RunState.SUCCEEDED });
});
