import type { JsonObject } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { eventually, unique } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { type ServiceFace, serviceFaces } from "./service-faces.ts";

let database: TestDatabase;
let nodes: readonly [TestCarillon, TestCarillon];
let endpoints: Endpoints;
beforeAll(async () => {
  database = await testDatabase();
  nodes = [await startTestCarillon({}, database), await startTestCarillon({}, database)];
  endpoints = await openEndpoints();
});
afterAll(async () => {
  for (const node of nodes) await node[Symbol.asyncDispose]();
  await database[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

const refusal = (...fields: string[]) => expect.objectContaining({ reason: "FIELD_INVALID", fields });
const msOf = (instant: string) => Date.parse(instant);

describe.each(serviceFaces(TaskService, () => nodes[0]))("over $name", (face: ServiceFace) => {
  const other = serviceFaces(TaskService, () => nodes[1]).find(({ name }) => name === face.name) ?? expect.fail();
  const scheduleBy = (node: ServiceFace, fields: JsonObject) =>
    node.call("scheduleTask", { url: "https://api.acme.com/once", delay_seconds: 36_000_000, ...fields });
  const schedule = (fields: JsonObject) => scheduleBy(face, fields);
  const get = (task_id: string) => face.call("getTask", { task_id });

  describe("debounce", () => {
    test("a further call replaces all that the task is, and moves it", async () => {
      const [first, second] = [endpoints.open(), endpoints.open()];
      const key = unique("user");
      const one = await schedule({
        url: first.url,
        delay_seconds: 600,
        debounce: { key },
        name: "one",
        labels: { n: "1", kept: "y" },
        headers: { "x-n": "1", authorization: "one" },
        retries: 7,
        secret: "one",
      });
      expect(one).toMatchObject({ outcome: "created", debounce: { key } });
      const two = await schedule({
        url: second.url,
        delay_seconds: 900,
        debounce: { key },
        name: "two",
        labels: { n: "2", kept: "y" },
        headers: { authorization: "two" },
      });
      expect(two).toMatchObject({ task_id: one.task_id, outcome: "replaced", created_at: one.created_at });
      expect(msOf(two.run_at) - msOf(one.run_at)).toBeGreaterThanOrEqual(300_000);
      const { outcome, ...now } = two;
      expect(await get(one.task_id)).toEqual(now);
      expect(now).toMatchObject({ name: "two", url: second.url, labels: { n: "2", kept: "y" }, retries: 3 });
      expect(now.last_run).toMatchObject({ run_id: one.last_run.run_id, scheduled_at: two.run_at });
      const listed = async (label: string) =>
        (await face.call("listTasks", { labels: [label] })).items.filter(
          ({ task_id }: { task_id: string }) => task_id === one.task_id,
        );
      expect([await listed("n=1"), await listed("n=2")]).toMatchObject([[], [{ name: "two" }]]);

      await database.advanceClock(901);
      const sent = await second.next();
      expect(sent.headers).toMatchObject({ authorization: "two", "carillon-task-id": one.task_id });
      expect(sent.headers["x-n"]).toBeUndefined();
      expect(first.count()).toBe(0);
    });

    test("calls put a task off no longer than the newest of them allows", async () => {
      const key = unique("user");
      const one = await schedule({ delay_seconds: 600, debounce: { key, max_wait_seconds: 1_000 } });
      await database.advanceClock(500);
      const two = await schedule({ delay_seconds: 600, debounce: { key, max_wait_seconds: 1_000 } });
      expect(two.task_id).toBe(one.task_id);
      expect(msOf(two.run_at) - msOf(one.created_at)).toBe(1_000_000);
      const three = await schedule({ delay_seconds: 600, debounce: { key, max_wait_seconds: 5_000 } });
      expect(msOf(three.run_at) - msOf(one.created_at)).toBeGreaterThanOrEqual(1_100_000);
      const four = await schedule({ delay_seconds: 60_000, debounce: { key } });
      expect(msOf(four.run_at) - msOf(one.created_at)).toBeGreaterThan(60_000_000);
      await face.call("cancelTask", { task_id: one.task_id });
    });

    test("a longest wait that is over means now, and no expiry", async () => {
      const key = unique("user");
      const fields = { delay_seconds: 60_000, grace_seconds: 600 };
      const one = await schedule({ ...fields, debounce: { key } });
      await database.advanceClock(5_000);
      const two = await schedule({ ...fields, debounce: { key, max_wait_seconds: 10 } });
      expect(two).toMatchObject({ task_id: one.task_id, outcome: "replaced", state: "scheduled" });
      expect(msOf(two.run_at) - msOf(one.created_at)).toBeGreaterThanOrEqual(5_000_000);
    });

    test("a call makes a new task once the one of its key has started, was run by hand, or is canceled", async () => {
      const hook = endpoints.open();
      const key = unique("user");
      const call = (delay_seconds: number) => schedule({ url: hook.url, delay_seconds, debounce: { key } });
      const started = await call(0);
      await hook.next();
      const byHand = await call(600);
      expect(byHand).toMatchObject({ outcome: "created" });
      expect(byHand.task_id).not.toBe(started.task_id);
      await face.call("runTask", { task_id: byHand.task_id });
      const canceled = await call(600);
      expect(canceled).toMatchObject({ outcome: "created" });
      await hook.next();
      await face.call("cancelTask", { task_id: canceled.task_id });
      const last = await call(600);
      expect(last).toMatchObject({ outcome: "created" });

      // One that is run once more does not take the key of the one that waits.
      await eventually(
        () => get(started.task_id),
        ({ state }) => state === "succeeded",
      );
      await face.call("runTask", { task_id: started.task_id });
      await hook.next();
      expect(await call(600)).toMatchObject({ outcome: "replaced", task_id: last.task_id });
      expect((await get(started.task_id)).debounce).toBeUndefined();
      await face.call("cancelTask", { task_id: last.task_id });
    });

    test("50 calls at a time with one key, on two nodes, make one task that is what one of them said", async () => {
      const key = unique("user");
      const calls = Array.from({ length: 50 }, (_, n) =>
        scheduleBy(n % 2 === 0 ? face : other, { debounce: { key }, name: `${n}`, labels: { key, n: `${n}` } }),
      );
      const tasks = await Promise.all(calls);
      expect(new Set(tasks.map(({ task_id }) => task_id)).size).toBe(1);
      expect(tasks.filter(({ outcome }) => outcome === "created")).toHaveLength(1);
      const { items } = await face.call("listTasks", { labels: [`key=${key}`] });
      expect(items).toHaveLength(1);
      const [{ name, labels }] = items;
      expect(labels).toEqual({ key, n: name });
      expect((await face.call("listRuns", { task_id: items[0].task_id })).items).toHaveLength(1);
    });
  });

  describe("throttle", () => {
    test("the first call within a window wins, and the others are told so", async () => {
      const key = unique("user");
      const call = (name: string) => schedule({ name, throttle: { key, window_seconds: 60 } });
      const first = await call("first");
      expect(first).toMatchObject({ outcome: "created" });
      await database.advanceClock(50);
      expect(await call("second")).toMatchObject({ task_id: first.task_id, name: "first", outcome: "throttled" });
      await face.call("cancelTask", { task_id: first.task_id });
      expect(await call("third")).toMatchObject({ task_id: first.task_id, state: "canceled", outcome: "throttled" });
      await database.advanceClock(11);
      const next = await call("next");
      expect(next).toMatchObject({ name: "next", outcome: "created" });
      expect(next.task_id).not.toBe(first.task_id);
    });

    test("50 calls at a time with one key, on two nodes, make one task", async () => {
      const key = unique("user");
      const calls = Array.from({ length: 50 }, (_, n) =>
        scheduleBy(n % 2 === 0 ? face : other, { throttle: { key, window_seconds: 60 }, name: key, labels: { key } }),
      );
      const tasks = await Promise.all(calls);
      expect(new Set(tasks.map(({ task_id }) => task_id)).size).toBe(1);
      expect(tasks.filter(({ outcome }) => outcome === "created")).toHaveLength(1);
      expect((await face.call("listTasks", { labels: [`key=${key}`] })).items).toHaveLength(1);
    });
  });

  test.each([
    ["both", { debounce: { key: "k" }, throttle: { key: "k", window_seconds: 1 } }, "throttle"],
    ["a debounce without a key", { debounce: {} }, "debounce.key"],
    ["a key with a line break", { debounce: { key: "a\nb" } }, "debounce.key"],
    ["a longest wait of nothing", { debounce: { key: "k", max_wait_seconds: 0 } }, "debounce.max_wait_seconds"],
    ["a throttle without a window", { throttle: { key: "k" } }, "throttle.window_seconds"],
    ["a window of more than a week", { throttle: { key: "k", window_seconds: 604_801 } }, "throttle.window_seconds"],
  ])("%s is refused", async (_, fields, field) => {
    await expect(schedule(fields)).rejects.toEqual(refusal(field));
  });

  test("a call that is refused takes no key", async () => {
    const key = unique("user");
    for (const keyed of [{ throttle: { key, window_seconds: 60 } }, { debounce: { key } }]) {
      await expect(schedule({ url: "...", ...keyed })).rejects.toMatchObject({ reason: "TARGET_REFUSED" });
      expect(await schedule(keyed)).toMatchObject({ outcome: "created" });
    }
  });
});
