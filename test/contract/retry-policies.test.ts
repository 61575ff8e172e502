import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { eventually, FAR_AWAY, ok, unique } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { serviceFaces } from "./service-faces.ts";

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

const url = "https://api.example.com/hook";
const refusal = expect.objectContaining({ reason: "FIELD_INVALID" });

describe.each(serviceFaces(CronService, () => carillon))("the retry policy of a cron job over $name", (face) => {
  const create = (fields: object) => face.call("createCronJob", { cron_expr: FAR_AWAY, url, ...fields });

  test("is shown as it was given, with what was not said filled in", async () => {
    const formula = await create({ retry_policy: { base_seconds: 2 } });
    expect(formula.retry_policy).toMatchObject({ base_seconds: 2, factor: 2, cap_seconds: 3600, jitter: "full" });
    expect(formula.retries).toBe(3);
    const list = await create({ retry_policy: { waits_seconds: [0, 60], jitter: "none" } });
    expect(list.retry_policy).toMatchObject({ waits_seconds: [0, 60], jitter: "none" });
    expect(list.retries).toBe(2);
    expect((await create({ retries: 5, retry_policy: { waits_seconds: [1] } })).retries).toBe(5);
    expect((await create({})).retry_policy).toBeUndefined();
  });

  test("is replaced as a whole", async () => {
    const { cron_id } = await create({ retry_policy: { base_seconds: 2, factor: 4 } });
    const changed = await face.call("updateCronJob", { cron_id, retry_policy: { waits_seconds: [7] } });
    expect(changed.retry_policy).toMatchObject({ waits_seconds: [7], jitter: "partial" });
    expect(changed.retry_policy.base_seconds).toBeUndefined();
  });

  test("is refused outside its ranges, and as a list and a formula at once", async () => {
    for (const retry_policy of [
      { waits_seconds: [-1] },
      { waits_seconds: [604_801] },
      { waits_seconds: new Array(101).fill(1) },
      { base_seconds: 0 },
      { factor: 0.5 },
      { factor: 11 },
      { cap_seconds: 604_801 },
      { waits_seconds: [1], factor: 2 },
    ]) {
      await expect(create({ retry_policy }), JSON.stringify(retry_policy)).rejects.toEqual(refusal);
    }
  });
});

describe.each(serviceFaces(TaskService, () => carillon))("the retry policy of a task over $name", (face) => {
  test("is what its attempts follow", async () => {
    const endpoint = endpoints.open();
    endpoint.respond((_, index) => ({ status: index < 3 ? 500 : 200 }));
    const run_at = "2020-01-01T00:00:00Z";
    const retry_policy = { waits_seconds: [0, 0, 0], jitter: "none" };
    const task = await face.call("scheduleTask", { url: endpoint.url, run_at, retry_policy });
    expect(task.retry_policy).toMatchObject(retry_policy);
    const done = await eventually(
      () => face.call("getTask", { task_id: task.task_id }),
      ({ state }) => state !== "scheduled" && state !== "running" && state !== "retrying",
    );
    expect(done).toMatchObject({ state: "succeeded", last_run: { attempt: 4 } });
  });
});

test("null takes a policy away", async () => {
  const body = { cron_expr: FAR_AWAY, url, retry_policy: { base_seconds: 2 } };
  const { cron_id } = ok(await carillon.rest("POST", "/cron/create", body));
  const changed = ok(await carillon.rest("PATCH", `/cron/update/${cron_id}`, { retry_policy: null }));
  expect(changed.retry_policy).toBeUndefined();
});

describe.each(serviceFaces(QueueService, () => carillon))("the retry policy of a subscription over $name", (face) => {
  test("is shown, replaced, and what its pushes follow", async () => {
    const endpoint = endpoints.open();
    endpoint.respond((_, index) => ({ status: index < 2 ? 500 : 200 }));
    const queue = unique("q");
    const policy = { waits_seconds: [0], jitter: "none" };
    const made = await face.call("pushSubscribe", { queue, url: endpoint.url, retry_policy: policy });
    expect(made.retry_policy).toMatchObject(policy);
    ok(await carillon.rest("POST", "/queue/publish", { queue, payload: 1 }));
    for (let i = 0; i < 3; i++) await endpoint.next();
    const { subscription_id } = made;
    const changed = await face.call("updatePushSubscription", { subscription_id, retry_policy: { factor: 3 } });
    expect(changed.retry_policy).toMatchObject({ base_seconds: 5, factor: 3, cap_seconds: 3600, jitter: "full" });
    const update_mask = "retryPolicy";
    const cleared = { subscription_id, ...(face.name === "REST" ? { retry_policy: null } : { update_mask }) };
    expect((await face.call("updatePushSubscription", cleared)).retry_policy).toBeUndefined();
    const refused = face.call("updatePushSubscription", { subscription_id, retry_policy: { factor: 11 } });
    await expect(refused).rejects.toEqual(refusal);
  });
});

describe("a receiver", () => {
  test("that wants no more of a message makes it a dead letter at once", async () => {
    const endpoint = endpoints.open();
    endpoint.respond({ status: 500, headers: { "carillon-control": "abort" } });
    const queue = unique("q");
    ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: endpoint.url }));
    const { message_id } = ok(await carillon.rest("POST", "/queue/publish", { queue, payload: 1 }));
    const list = async () => ok(await carillon.rest("GET", `/queue/dlq/list/${queue}`)).items;
    const [dead] = await eventually(list, (items) => items.length > 0);
    expect(dead).toMatchObject({ message_id, attempts: 1 });
  });

  test("that answers carillon-control: abort has the last word over the policy", async () => {
    const endpoint = endpoints.open();
    endpoint.respond({ status: 500, headers: { "carillon-control": "abort" } });
    const body = { url: endpoint.url, run_at: "2020-01-01T00:00:00Z", retry_policy: { waits_seconds: [0] } };
    const { task_id } = ok(await carillon.rest("POST", "/task/schedule", body));
    const read = async () => ok(await carillon.rest("GET", `/task/get/${task_id}`));
    expect(await eventually(read, ({ state }) => state === "failed")).toMatchObject({ last_run: { attempt: 1 } });
  });

  test("that names an instant gets the next attempt then", async () => {
    const endpoint = endpoints.open();
    const at = Math.floor(Date.now() / 1_000) + 3_600;
    endpoint.respond({ status: 500, headers: { "carillon-control": `retry-at=${at}` } });
    const body = { url: endpoint.url, run_at: "2020-01-01T00:00:00Z", retry_policy: { waits_seconds: [0] } };
    const { task_id } = ok(await carillon.rest("POST", "/task/schedule", body));
    const read = async () => ok(await carillon.rest("GET", `/task/get/${task_id}`));
    const { last_run } = await eventually(read, ({ state }) => state === "retrying");
    expect(Math.abs(Date.parse(last_run.next_attempt_at) - at * 1_000)).toBeLessThan(2_000);
  });
});
