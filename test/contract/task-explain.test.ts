import type { JsonObject } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { eventually, ok, otherProject } from "./calls.ts";
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

describe.each(serviceFaces(TaskService, () => carillon))("over $name", (face: ServiceFace) => {
  const schedule = (url: string, fields: JsonObject = {}) =>
    face.call("scheduleTask", { url, delay_seconds: 0, ...fields });
  const explain = (task_id: string) => face.call("explainTask", { task_id });
  const until = (task_id: string, waiting_for: string) =>
    eventually(
      () => explain(task_id),
      (answer) => answer.waiting_for === waiting_for,
    );

  test("a task for later waits for its time", async () => {
    const task = await schedule("https://api.acme.com/once", { delay_seconds: 36_000_000, grace_seconds: 60 });
    const { explanation, ...answer } = await explain(task.task_id);
    expect(answer).toEqual({
      task_id: task.task_id,
      state: "scheduled",
      waiting_for: "time",
      until: task.run_at,
      expires_at: new Date(Date.parse(task.run_at) + 61_000).toISOString(),
      endpoint_waiting: 0,
      endpoint_in_flight: 0,
    });
    expect(explanation).toContain(task.run_at);
    await face.call("cancelTask", { task_id: task.task_id });
    expect(await explain(task.task_id)).toMatchObject({ state: "canceled", waiting_for: "over" });
  });

  test("a task under way waits for the end of its attempt, then for the next, and then for nothing", async () => {
    const hook = endpoints.open();
    const gate = Promise.withResolvers<void>();
    hook.respond(async (_, index) => {
      if (index > 0) return {};
      await gate.promise;
      return { status: 500 };
    });
    const { task_id } = await schedule(hook.url);
    await hook.next();
    expect(await explain(task_id)).toMatchObject({ state: "running", waiting_for: "attempt" });
    gate.resolve();
    const retry = await until(task_id, "retry");
    expect(retry).toMatchObject({ state: "retrying", until: expect.any(String) });
    expect(retry.explanation).toMatch(/attempt 1 failed \(HTTP 500\)/);
    await face.call("runTask", { task_id });
    expect(await until(task_id, "over")).toMatchObject({ state: "succeeded" });
  });

  test("a task waits for its endpoint: for another request to end, or for somebody to enable it", async () => {
    const hook = endpoints.open();
    const gate = Promise.withResolvers<void>();
    hook.respond(async (_, index) => {
      if (index === 1) await gate.promise;
      return {};
    });
    const { task_id: first } = await schedule(hook.url);
    const { endpoint_id } = await eventually(
      () => explain(first),
      (answer) => answer.endpoint_id !== undefined,
    );
    ok(await carillon.rest("PATCH", `/endpoint/update/${endpoint_id}`, { max_concurrency: 1 }));
    await schedule(hook.url);
    await eventually(
      async () => hook.count(),
      (count) => count === 2,
    );
    const { task_id } = await schedule(hook.url);
    expect(await until(task_id, "endpoint_full")).toMatchObject({ endpoint_id, endpoint_in_flight: 1 });
    ok(await carillon.rest("POST", `/endpoint/disable/${endpoint_id}`, { reason: "moving house" }));
    const disabled = await explain(task_id);
    expect(disabled).toMatchObject({ state: "scheduled", waiting_for: "endpoint_disabled", endpoint_id });
    expect(disabled.explanation).toContain("moving house");
    gate.resolve();
    ok(await carillon.rest("POST", `/endpoint/enable/${endpoint_id}`));
    await until(task_id, "over");
  });

  test("a task of nobody, or of another project, is not found", async () => {
    const { task_id } = await schedule("https://api.acme.com/once", { delay_seconds: 36_000_000 });
    const refused = expect.objectContaining({ reason: "TASK_NOT_FOUND" });
    await expect(explain("task_none")).rejects.toEqual(refused);
    await expect(face.call("explainTask", { task_id }, await otherProject(carillon))).rejects.toEqual(refused);
  });
});
