import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { startReceiver } from "../support/receiver.ts";
import { ACME, consume, createQueue, FAR_AWAY, ok, refused, unique, warning } from "./calls.ts";
import { serviceFaces } from "./service-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon();
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(serviceFaces(CronService, () => carillon))("over $name", (face) => {
  const create = (fields: object) => face.call("createCronJob", { cron_expr: FAR_AWAY, ...fields });
  const broken = (field: string) => ({ reason: "FIELD_INVALID", fields: [field] });

  test("a job with a queue shows it in place of a url, and is named after it", async () => {
    const queue = await createQueue(carillon);
    const message = { group_id: "g", priority: 3, ttl_seconds: 60 };
    const job = await create({ queue, ...message });
    expect(job).toMatchObject({ queue, ...message, name: queue, url: "", task_type: "queue", state: "active" });
    const { cron_id } = job;
    expect(await face.call("getCronJob", { cron_id })).toMatchObject({ queue, ...message, url: "" });
    const plain = await create({ queue, task_type: "queue", name: "n" });
    expect(plain).toMatchObject({ queue, name: "n" });
    for (const field of Object.keys(message)) expect(plain[field]).toBeUndefined();
  });

  test("a job with a url shows no queue", async () => {
    const job = await create({ url: ACME, task_type: "http_url" });
    expect(job).toMatchObject({ url: ACME, task_type: "http_url" });
    for (const field of ["queue", "group_id", "priority", "ttl_seconds"]) expect(job[field]).toBeUndefined();
  });

  test.each([
    [{}, "url"],
    [{ url: ACME, queue: "orders" }, "queue"],
    [{ queue: "no spaces" }, "queue"],
    [{ queue: ".." }, "queue"],
    [{ url: ACME, task_type: "queue" }, "task_type"],
    [{ queue: "orders", task_type: "http_url" }, "task_type"],
    [{ url: ACME, group_id: "g" }, "group_id"],
    [{ url: ACME, priority: 1 }, "priority"],
    [{ url: ACME, ttl_seconds: 1 }, "ttl_seconds"],
    [{ queue: "orders", priority: 10 }, "priority"],
    [{ queue: "orders", ttl_seconds: 0 }, "ttl_seconds"],
    [{ queue: "orders", group_id: "x".repeat(129) }, "group_id"],
    [{ queue: "orders", headers: { Authorization: "Bearer 1" } }, 'headers["Authorization"]'],
  ])("%j is refused for %s", async (fields, field) => {
    await expect(create(fields)).rejects.toMatchObject(broken(field));
  });

  test("an update puts one target in the place of the other", async () => {
    const queue = await createQueue(carillon);
    const { cron_id } = await create({ url: ACME });
    const update = (fields: object) => face.call("updateCronJob", { cron_id, ...fields });
    expect(await update({ queue, priority: 2 })).toMatchObject({ queue, priority: 2, url: "", task_type: "queue" });
    expect(await update({ task_type: "queue", group_id: "g" })).toMatchObject({ queue, group_id: "g", priority: 2 });
    await expect(update({ task_type: "http_url" })).rejects.toMatchObject(broken("task_type"));
    await expect(update({ queue: "" })).rejects.toMatchObject(broken("queue"));
    await expect(update({ queue, url: ACME })).rejects.toMatchObject(broken("queue"));
    await expect(update({ url: ACME, priority: 1 })).rejects.toMatchObject(broken("priority"));
    await expect(update({ headers: { "x-token": "1" } })).rejects.toMatchObject(broken('headers["x-token"]'));
    const back = await update({ url: ACME, queue: "" });
    expect(back).toMatchObject({ url: ACME, task_type: "http_url" });
    for (const field of ["queue", "group_id", "priority"]) expect(back[field]).toBeUndefined();
    await expect(update({ url: "" })).rejects.toMatchObject(broken("url"));
    await expect(update({ group_id: "g" })).rejects.toMatchObject(broken("group_id"));
    await update({ headers: { "x-token": "1" } });
    await expect(update({ queue })).rejects.toMatchObject(broken('headers["x-token"]'));
    expect(await update({ queue, headers: { "x-tenant": "1" } })).toMatchObject({ queue });
  });

  test("a trigger publishes, and the run shows the message", async () => {
    const queue = await createQueue(carillon);
    const { cron_id } = await create({ queue });
    const run = await face.call("triggerCronJob", { cron_id });
    expect(run).toMatchObject({ state: "succeeded", disposition: "ran", attempt: 0 });
    const { run_id, message_id } = run;
    expect(await face.call("getCronRun", { cron_id, run_id })).toMatchObject({ message_id, attempts: [] });
    const [message] = await consume(carillon, queue);
    expect(message).toMatchObject({
      message_id,
      payload: {},
      headers: { "carillon-cron-id": cron_id, "carillon-cron-run-id": run_id, "carillon-trigger": "manual" },
    });
  });
});

test("what REST calls an ordering key is the group", async () => {
  const queue = await createQueue(carillon, { type: "fifo" });
  const created = ok(await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, queue, ordering_key: "g" }));
  expect(created).toMatchObject({ queue, group_id: "g", task: "", task_url: "" });
});

test("null puts no target in the place of one, and clears what messages have", async () => {
  const queue = await createQueue(carillon);
  const { cron_id } = ok(await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, queue, group_id: "g" }));
  refused(
    await carillon.rest("PATCH", `/cron/update/${cron_id}`, { queue: null }),
    400,
    "INVALID_ARGUMENT",
    "FIELD_INVALID",
  );
  const update = await carillon.rest("PATCH", `/cron/update/${cron_id}`, { url: null, group_id: null });
  expect(ok(update)).toMatchObject({ queue });
  expect(ok(update)).not.toHaveProperty("group_id");
});

test("an unknown queue is created with a warning, and refused where the operator does not want that", async () => {
  const queue = unique("q");
  const created = await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, queue });
  expect(ok(created)).toMatchObject({ queue });
  expect(warning(created)).toContain(queue);
  ok(await carillon.rest("GET", `/queue/get/${queue}`));

  await using strict = await startTestCarillon({ CARILLON_ROLE: "api", CARILLON_AUTO_CREATE_QUEUES: "off" });
  const missing = await strict.rest("POST", "/cron/create", { schedule: FAR_AWAY, queue });
  refused(missing, 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
});

test("a priority that the queue does not count is warned of", async () => {
  const queue = await createQueue(carillon);
  const created = await carillon.rest("POST", "/cron/create", { schedule: FAR_AWAY, queue, priority: 5 });
  expect(ok(created)).toMatchObject({ priority: 5 });
  expect(warning(created)).toContain("enable_priority");
});

test("a fire wakes a consumer that waits", async () => {
  const queue = await createQueue(carillon);
  const fields = { cron_expr: "@every 1h", queue, payload: [1.1, null] };
  const { cron_id } = ok(await carillon.rest("POST", "/cron/create", fields));
  const waiting = consume(carillon, queue, { wait_seconds: 20 });
  await carillon.database.advanceClock(3_601);
  const [message] = await waiting;
  expect(message).toMatchObject({ payload: [1.1, null], headers: { "carillon-cron-id": cron_id } });
});

test("a push of a fire's message says of the fire what its message says, and of itself what pushes say", async () => {
  await using receiver = await startReceiver();
  const queue = await createQueue(carillon);
  const subscribed = await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: receiver.url });
  const { subscription_id } = ok(subscribed);
  const fields = { cron_expr: FAR_AWAY, queue, payload: { a: 1 }, headers: { "x-tenant": "acme" } };
  const { cron_id } = ok(await carillon.rest("POST", "/cron/create", fields));
  const { run_id, message_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  const { headers, body } = await receiver.next();
  expect(body.toString()).toBe('{"a":1}');
  expect(headers).toMatchObject({
    "x-tenant": "acme",
    "webhook-id": message_id,
    "carillon-message-id": message_id,
    "carillon-subscription-id": subscription_id,
    "carillon-cron-id": cron_id,
    "carillon-cron-run-id": run_id,
    "carillon-trigger": "manual",
    "carillon-attempt": "1",
  });
  expect(headers["carillon-run-id"]).not.toBe(run_id);
  expect(headers["carillon-scheduled-at"]).toBe(headers["carillon-effective-at"]);
});

test("an edit of a dead letter keeps what it says of its fire", async () => {
  const queue = await createQueue(carillon, { max_retries: 0 });
  const { cron_id } = ok(await carillon.rest("POST", "/cron/create", { cron_expr: FAR_AWAY, queue }));
  ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  const [{ message_id, receipt, headers }] = await consume(carillon, queue);
  ok(await carillon.rest("POST", "/queue/nack", { queue, message_id, receipt, requeue: false }));
  const edit = (changed: object) =>
    carillon.rest("PATCH", `/queue/dlq/update/${queue}/${message_id}`, { headers: changed });
  ok(await edit({ ...headers, "x-tenant": "acme" }));
  ok(await edit({ "x-tenant": "shop" }));
  const { message } = ok(await carillon.rest("GET", `/queue/dlq/get/${queue}/${message_id}`));
  expect(message.headers).toEqual({ ...headers, "x-tenant": "shop" });
  const forged = await edit({ "carillon-cron-id": "cron_1" });
  refused(forged, 400, "INVALID_ARGUMENT", "FIELD_INVALID");
});

test("publishers cannot say what only a fire says", async () => {
  const queue = await createQueue(carillon);
  const forged = { queue, payload: 1, headers: { "carillon-cron-id": "cron_1" } };
  refused(await carillon.rest("POST", "/queue/publish", forged), 400, "INVALID_ARGUMENT", "FIELD_INVALID");
});
