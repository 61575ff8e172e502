import type { JsonObject } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { eventually, otherProject, unique } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { type ServiceFace, serviceFaces } from "./service-faces.ts";

let carillon: TestCarillon;
let endpoints: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

const FAR = 36_000_000;
const refusal = (...fields: string[]) => expect.objectContaining({ reason: "FIELD_INVALID", fields });
const msOf = (instant: string) => Date.parse(instant);

describe.each(serviceFaces(TaskService, () => carillon))("over $name", (face: ServiceFace) => {
  const schedule = (tenant: string, fields: JsonObject = {}) =>
    face.call("scheduleTask", {
      url: "https://api.acme.com/once",
      delay_seconds: FAR,
      labels: { tenant },
      ...fields,
    });
  const list = async (tenant: string, more: JsonObject = {}) =>
    (await face.call("listTasks", { labels: [`tenant=${tenant}`], ...more })).items;
  const of = (tenant: string) => ({ labels: [`tenant=${tenant}`] });
  const states = async (tenant: string) => (await list(tenant)).map(({ state }: { state: string }) => state);

  test("tasks are canceled by a filter, step by step, after a dry run that says how many", async () => {
    const [mine, other] = [unique("t"), unique("t")];
    for (let n = 0; n < 5; n++) await schedule(mine);
    await schedule(other);
    const [newest] = await list(mine);
    await face.call("cancelTask", { task_id: newest.task_id });
    const filter = of(mine);
    expect(await face.call("cancelTasks", { filter, dry_run: true })).toEqual({ matched: 4, changed: 0 });
    expect(await states(mine)).toEqual(["canceled", ...Array(4).fill("scheduled")]);

    const first = await face.call("cancelTasks", { filter, limit: 3 });
    expect(first).toMatchObject({ matched: 3, changed: 3 });
    expect(await states(mine)).toEqual([...Array(4).fill("canceled"), "scheduled"]);
    const cursor = first.next_cursor;
    expect(await face.call("cancelTasks", { filter, cursor, dry_run: true })).toEqual({ matched: 1, changed: 0 });
    await schedule(mine);
    expect(await face.call("cancelTasks", { filter, cursor, limit: 3 })).toEqual({ matched: 1, changed: 1 });
    expect(await states(mine)).toEqual(["scheduled", ...Array(5).fill("canceled")]);
    const [, canceled] = await list(mine);
    expect(canceled.last_run).toMatchObject({ state: "canceled", error: "the task was canceled" });
    expect(await states(other)).toEqual(["scheduled"]);
    await expect(face.call("cancelTasks", { filter: of(other), cursor })).rejects.toEqual(refusal("cursor"));
  });

  test("a repeat with an idempotency key changes nothing more", async () => {
    const tenant = unique("t");
    for (let n = 0; n < 2; n++) await schedule(tenant);
    const request = { filter: of(tenant), shift_seconds: 60, limit: 1, idempotency_key: unique("k") };
    const answer = await face.call("rescheduleTasks", request);
    expect(answer).toMatchObject({ changed: 1 });
    const moved = await list(tenant);
    expect(await face.call("rescheduleTasks", request)).toEqual(answer);
    expect(await list(tenant)).toEqual(moved);
  });

  test("a task under way is canceled without a retry, and one that is over is not met", async () => {
    const [hook, tenant] = [endpoints.open(), unique("t")];
    const gate = Promise.withResolvers<void>();
    hook.respond(async () => {
      await gate.promise;
      return { status: 500 };
    });
    const { task_id } = await schedule(tenant, { url: hook.url, delay_seconds: 0 });
    await hook.next();
    expect(await face.call("cancelTasks", { filter: { ...of(tenant), state: "running" } })).toMatchObject({
      changed: 1,
    });
    gate.resolve();
    await eventually(
      () => face.call("getTask", { task_id }),
      ({ last_run }) => last_run.state === "canceled",
    );
    expect(await face.call("cancelTasks", { filter: of(tenant) })).toEqual({ matched: 0, changed: 0 });
  });

  test("scheduled tasks are moved to one time, or each by the same time, where that is not too far", async () => {
    const tenant = unique("t");
    const filter = of(tenant);
    for (const delay_seconds of [FAR, 2 * FAR, 315_000_000])
      await schedule(tenant, { delay_seconds, grace_seconds: 60 });
    const [far, second, first] = await list(tenant);
    const until = new Date(msOf(second.run_at)).toISOString();
    expect(await face.call("rescheduleTasks", { filter, shift_seconds: 1_000_000, dry_run: true })).toEqual({
      matched: 3,
      changed: 0,
    });
    expect(await face.call("rescheduleTasks", { filter, shift_seconds: 1_000_000 })).toEqual({
      matched: 3,
      changed: 2,
    });
    const byShift = await list(tenant);
    expect(byShift.map(({ run_at }: { run_at: string }) => msOf(run_at))).toEqual([
      msOf(far.run_at),
      msOf(second.run_at) + 1_000_000_000,
      msOf(first.run_at) + 1_000_000_000,
    ]);
    expect(byShift[2].last_run).toMatchObject({ run_id: first.last_run.run_id, scheduled_at: byShift[2].run_at });

    const run_at = new Date(msOf(first.run_at)).toISOString();
    expect(await face.call("rescheduleTasks", { filter: { ...filter, until }, run_at })).toEqual({
      matched: 1,
      changed: 1,
    });
    expect((await list(tenant))[2]).toMatchObject({ run_at, last_run: { scheduled_at: run_at } });
    const { changed } = await face.call("rescheduleTasks", { filter, delay_seconds: FAR });
    expect(changed).toBe(3);
    expect(new Set((await list(tenant)).map((task: { run_at: string }) => task.run_at)).size).toBe(1);

    // Back to where their grace is over.
    expect(await face.call("rescheduleTasks", { filter, shift_seconds: -FAR - 3_600 })).toMatchObject({ changed: 3 });
    await eventually(
      () => states(tenant),
      (all) => all.every((state: string) => state === "expired"),
    );
    expect(await face.call("rescheduleTasks", { filter, delay_seconds: 60 })).toEqual({ matched: 0, changed: 0 });
  });

  test("tasks that wait run now, and those that are over once more", async () => {
    const [hook, tenant] = [endpoints.open(), unique("t")];
    const filter = of(tenant);
    for (let n = 0; n < 3; n++) await schedule(tenant, { url: hook.url, grace_seconds: 0 });
    expect(await face.call("runTasks", { filter, dry_run: true })).toEqual({ matched: 3, changed: 0 });
    expect(hook.count()).toBe(0);
    expect(await face.call("runTasks", { filter })).toEqual({ matched: 3, changed: 3 });
    const allAre = (wanted: string) =>
      eventually(
        () => states(tenant),
        (all) => all.every((state: string) => state === wanted),
      );
    await allAre("succeeded");
    expect(hook.count()).toBe(3);
    const runs = (await face.call("listRuns", { kind: "task" })).items;
    expect(runs.slice(0, 3)).toMatchObject(Array(3).fill({ trigger: "manual", attempt: 1 }));
    expect(await face.call("runTasks", { filter })).toEqual({ matched: 0, changed: 0 });

    hook.respond((_, index) => ({ status: index < 6 ? 500 : 200 }));
    expect(await face.call("runTasks", { filter: { ...filter, state: "succeeded" } })).toMatchObject({ changed: 3 });
    await allAre("retrying");
    expect(hook.count()).toBe(6);
    expect(await face.call("runTasks", { filter: { ...filter, state: "retrying" } })).toMatchObject({ changed: 3 });
    await allAre("succeeded");
    expect(hook.count()).toBe(9);
    const [task] = await list(tenant);
    expect((await face.call("listRuns", { task_id: task.task_id })).items).toMatchObject([
      { attempt: 2 },
      { attempt: 1 },
    ]);
  });

  test.each([
    ["cancelTasks", {}, "filter"],
    ["cancelTasks", { filter: {} }, "filter"],
    ["runTasks", { filter: {} }, "filter"],
    ["cancelTasks", { filter: { state: "failed" } }, "filter.state"],
    ["rescheduleTasks", { filter: { state: "retrying" }, delay_seconds: 1 }, "filter.state"],
    ["runTasks", { filter: { state: "running" } }, "filter.state"],
    ["cancelTasks", { filter: { labels: ["x"] } }, "filter.labels[0]"],
    ["cancelTasks", { filter: { state: "scheduled" }, limit: 1_001 }, "limit"],
    ["rescheduleTasks", { filter: { state: "scheduled" } }, "run_at"],
    ["rescheduleTasks", { filter: { state: "scheduled" }, dry_run: true }, "run_at"],
    ["rescheduleTasks", { filter: { state: "scheduled" }, delay_seconds: 1, shift_seconds: 1 }, "shift_seconds"],
  ] as [string, JsonObject, string][])("%s with %j is refused", async (method, request, field) => {
    await expect(face.call(method, request)).rejects.toEqual(refusal(field));
  });

  test("tasks of another project are not met", async () => {
    const tenant = unique("t");
    const caller = await otherProject(carillon);
    await schedule(tenant);
    for (const [method, more] of [
      ["cancelTasks", {}],
      ["runTasks", {}],
      ["rescheduleTasks", { shift_seconds: 1 }],
    ] as const) {
      expect(await face.call(method, { filter: of(tenant), ...more }, caller)).toEqual({ matched: 0, changed: 0 });
    }
  });

  test("a filter that asks for two values of one label meets nothing", async () => {
    const tenant = unique("t");
    await schedule(tenant);
    const filter = { labels: [`tenant=${tenant}`, "tenant=other"] };
    expect(await face.call("cancelTasks", { filter })).toEqual({ matched: 0, changed: 0 });
    expect(await states(tenant)).toEqual(["scheduled"]);
  });
});
