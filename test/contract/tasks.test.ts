import type { JsonObject } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { eventually, ok, otherProject, unique } from "./calls.ts";
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

const HOUR = 3_600;
const refusal = (reason: string, ...fields: string[]) => expect.objectContaining({ reason, fields });
const inSeconds = async (seconds: number) =>
  new Date((await carillon.database.now()).getTime() + seconds * 1_000).toISOString();
const names = ({ items }: { items: { name: string }[] }) => items.map(({ name }) => name);

describe.each(serviceFaces(TaskService, () => carillon))("over $name", (face: ServiceFace) => {
  /** Schedules a task that no test lets come due, unless `fields` say otherwise. */
  const schedule = (fields: JsonObject = {}, headers?: { readonly authorization: string }) =>
    face.call("scheduleTask", { url: "https://api.acme.com/once", delay_seconds: 10_000 * HOUR, ...fields }, headers);

  describe("a task with a delay", () => {
    test("runs so many seconds from now by the server's clock", async () => {
      const before = Date.parse(await inSeconds(HOUR));
      const { run_at, task_id } = await schedule({ delay_seconds: HOUR });
      const after = Date.parse(await inSeconds(HOUR));
      expect(Date.parse(run_at)).toBeGreaterThanOrEqual(before);
      expect(Date.parse(run_at)).toBeLessThanOrEqual(after);
      const moved = await face.call("rescheduleTask", { task_id, delay_seconds: 2 * HOUR });
      expect(Date.parse(moved.run_at) - Date.parse(run_at)).toBeGreaterThanOrEqual(HOUR * 1_000 - 1);
      await face.call("cancelTask", { task_id });
    });

    test("is refused beside run_at, and one of both is needed", async () => {
      const run_at = await inSeconds(HOUR);
      const { task_id } = await schedule();
      const both = refusal("FIELD_INVALID", "delay_seconds");
      const none = refusal("FIELD_INVALID", "run_at");
      const url = "https://api.acme.com/once";
      await expect(face.call("scheduleTask", { url, run_at, delay_seconds: 1 })).rejects.toEqual(both);
      await expect(face.call("scheduleTask", { url })).rejects.toEqual(none);
      await expect(face.call("rescheduleTask", { task_id, run_at, delay_seconds: 1 })).rejects.toEqual(both);
      await expect(face.call("rescheduleTask", { task_id })).rejects.toEqual(none);
      await expect(schedule({ delay_seconds: -1 })).rejects.toEqual(both);
    });
  });

  describe("labels", () => {
    test("are shown, and tasks are listed by all that are given, newest first, by pages", async () => {
      const caller = await otherProject(carillon);
      const labels = { tenant: "acme", "app.kubernetes.io/part-of": "shop", empty: "", "x-y_z": "a=b, c" };
      for (const name of ["1", "2", "3"]) await schedule({ name, labels }, caller);
      const other = await schedule({ name: "other", labels: { tenant: "other", zone: "x" } }, caller);
      await schedule({ name: "plain" }, caller);
      const list = (request: JsonObject) => face.call("listTasks", request, caller);

      const first = await list({ labels: ["tenant=acme"], limit: 2 });
      expect(names(first)).toEqual(["3", "2"]);
      expect(first.items[0].labels).toEqual(labels);
      const second = await list({ labels: ["tenant=acme"], limit: 2, cursor: first.next_cursor });
      expect(names(second)).toEqual(["1"]);
      expect(second.next_cursor).toBeUndefined();
      expect(names(await list({ labels: ["x-y_z=a=b, c", "empty="], limit: 3 }))).toEqual(["3", "2", "1"]);
      expect(names(await list({ labels: ["tenant=acme", "tenant=other"] }))).toEqual([]);
      expect(names(await list({ labels: ["zone=x", "tenant=acme"] }))).toEqual([]);
      expect(names(await list({ labels: ["tenant=acm"] }))).toEqual([]);
      expect(names(await list({ labels: ["tenant=other"], state: "scheduled" }))).toEqual(["other"]);
      await face.call("cancelTask", { task_id: other.task_id }, caller);
      expect(names(await list({ labels: ["tenant=other"], state: "scheduled" }))).toEqual([]);
      expect(names(await face.call("listTasks", { labels: ["tenant=acme"] }))).toEqual([]);
      await expect(list({ labels: ["tenant=other"], cursor: first.next_cursor })).rejects.toEqual(
        refusal("FIELD_INVALID", "cursor"),
      );
    });

    test.each([
      ["with a name that is too long", { ["n".repeat(64)]: "v" }],
      ["with a name of other characters", { "a=b": "v" }],
      ["without a name", { "": "v" }],
      ["with a value that is too long", { n: "v".repeat(129) }],
      ["with a control character", { n: "a\nb" }],
      ["of more than 16 names", Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`n${n}`, "v"]))],
    ])("%s are refused", async (_, labels) => {
      await expect(schedule({ labels })).rejects.toMatchObject({
        reason: "FIELD_INVALID",
        fields: [expect.stringMatching(/^labels/)],
      });
    });

    test("of the longest names and values are taken, and found", async () => {
      const [name, value] = ["n".repeat(63), "\u{1f514}".repeat(128)];
      const { task_id } = await schedule({ labels: { [name]: value } });
      const { items } = await face.call("listTasks", { labels: [`${name}=${value}`] });
      expect(items[0].task_id).toBe(task_id);
    });

    test.each(["tenant", "=x", "a b=c"])("%j is no filter", async (label) => {
      await expect(face.call("listTasks", { labels: [label] })).rejects.toMatchObject({
        reason: "FIELD_INVALID",
        fields: [expect.stringMatching(/^labels/)],
      });
    });
  });

  test("tasks are listed by state and by when they are to run", async () => {
    const caller = await otherProject(carillon);
    for (const [name, delay_seconds] of [
      ["a", 5_000 * HOUR],
      ["b", 6_000 * HOUR],
      ["c", 7_000 * HOUR],
    ] as const) {
      await schedule({ name, delay_seconds }, caller);
    }
    const list = (request: JsonObject) => face.call("listTasks", request, caller);
    const [since, until] = [await inSeconds(5_500 * HOUR), await inSeconds(6_500 * HOUR)];
    expect(names(await list({ since }))).toEqual(["c", "b"]);
    expect(names(await list({ until }))).toEqual(["b", "a"]);
    expect(names(await list({ since, until, state: "scheduled" }))).toEqual(["b"]);
    expect(names(await list({ since, until, state: "failed" }))).toEqual([]);
    await expect(list({ since: until, until: since })).rejects.toEqual(refusal("FIELD_INVALID", "until"));
  });

  test("a task that cannot start within its grace expires, with an event", async () => {
    const caller = await otherProject(carillon);
    const told = endpoints.open();
    const failures = endpoints.open();
    ok(await carillon.rest("POST", "/webhook/create", { url: told.url, event_types: ["task.*"] }, caller));
    const late = { run_at: await inSeconds(-120), grace_seconds: 60, on_failure_webhook: failures.url };
    const name = unique("late");
    const request = { url: "https://api.acme.com/once", name, ...late };
    const { state, task_id, last_run } = await face.call("scheduleTask", request, caller);
    expect({ state, last_run }).toMatchObject({ state: "expired", last_run: { disposition: "expired" } });
    for (const endpoint of [told, failures]) {
      const event = JSON.parse((await endpoint.next()).body.toString());
      expect(event).toMatchObject({
        type: "task.expired",
        data: { task_id, name, state: "expired", scheduled_at: late.run_at, grace_seconds: 60 },
      });
    }
  });

  test("a task expires at its time though its endpoint gets nothing", async () => {
    const hook = endpoints.open();
    const first = await schedule({ url: hook.url, delay_seconds: 0 });
    await hook.next();
    const endpoint_id = await eventually(
      async () => (await face.call("getTask", { task_id: first.task_id })).last_run.endpoint_id,
      (id) => id !== undefined,
    );
    const disable = () => carillon.rest("POST", `/endpoint/disable/${endpoint_id}`, { reason: "test" });
    ok(await eventually(disable, ({ status }) => status === 200));
    const { task_id } = await schedule({ url: hook.url, delay_seconds: 0, grace_seconds: 60 });
    const read = () => face.call("getTask", { task_id });
    await eventually(read, ({ last_run }) => last_run.waiting_for === "endpoint");
    await carillon.database.advanceClock(62);
    await eventually(read, ({ state }) => state === "expired");
    expect(hook.count()).toBe(1);
  });
});
