import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { verify } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { type ReceivedRequest, type Receiver, startReceiver } from "../support/receiver.ts";
import { consume, createQueue, eventually, ok, publish, unique } from "./calls.ts";
import { RETURNS } from "./documented-shapes.ts";
import { expectShape } from "./shape.ts";

let carillon: TestCarillon;
let receiver: Receiver;
beforeAll(async () => {
  carillon = await startTestCarillon();
  receiver = await startReceiver();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await receiver[Symbol.asyncDispose]();
});

/** A path that no other test uses, and the next request that comes there. */
function endpoint(): { url: string; next: (deadlineMs?: number) => Promise<ReceivedRequest> } {
  const path = `/${unique("hook")}`;
  return {
    url: `${receiver.url}${path}`,
    next: (deadlineMs = 20_000) => receiver.next((request) => request.path === path, deadlineMs),
  };
}

function verified(request: ReceivedRequest, secret: string): boolean {
  // The database's clock signs, which tests move.
  return verify(request.headers, request.body, secret, { nowSeconds: Number(request.headers["webhook-timestamp"]) });
}

describe("a cron job", () => {
  test("created with the documented parameters fires a real POST when its time comes", async () => {
    const hook = endpoint();
    const job = ok(
      await carillon.rest("POST", "/cron/create", {
        name: "daily report",
        schedule: "0 9 * * *",
        url: hook.url,
        payload: { report: "daily", big: 1 },
        timezone: "Asia/Shanghai",
        retries: 2,
        idempotency_key: unique("key"),
      }),
    );
    expectShape(job, RETURNS["scheduling.cron.create"]);
    expect(job).toMatchObject({ timezone: "Asia/Shanghai", retries: 2 });
    expect(job.next_run_at).toMatch(/T01:00:00\.000Z$/);

    const now = await carillon.database.now();
    await carillon.database.advanceClock((Date.parse(job.next_run_at) - now.getTime()) / 1_000 + 1);
    const request = await hook.next();
    expect(request.method).toBe("POST");
    expect(request.body.toString()).toBe('{"report":"daily","big":1}');
    expect(request.headers).toMatchObject({
      "content-type": "application/json",
      "carillon-cron-id": job.cron_id,
      "carillon-attempt": "1",
      "carillon-scheduled-at": job.next_run_at,
      "webhook-id": request.headers["carillon-run-id"],
      "webhook-signature": expect.stringMatching(/^v1,/),
    });

    const { last_run } = await eventually(
      async () => ok(await carillon.rest("GET", `/cron/get/${job.cron_id}`)),
      (got) => got.last_run?.state === "succeeded",
    );
    const run = ok(await carillon.rest("GET", `/cron/runs/get/${job.cron_id}/${last_run.run_id}`));
    expectShape(run, { ...RETURNS["scheduling.cron.runs.get"], finished_at: "time", response_status: "number" });
    expect(run).toMatchObject({ state: "succeeded", response_status: 200, trigger: "schedule" });
    await carillon.rest("DELETE", `/cron/delete/${job.cron_id}`);
  });

  test("that fails is tried again, and its run keeps status and error", async () => {
    const hook = endpoint();
    const path = new URL(hook.url).pathname;
    receiver.respond((request) => (request.path === path ? { status: 503 } : {}));
    const job = ok(
      await carillon.rest("POST", "/cron/create", { schedule: "0 0 0 1 1 * 2090", url: hook.url, retry: 1 }),
    );
    const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${job.cron_id}`, {}));
    expect((await hook.next()).headers["carillon-attempt"]).toBe("1");
    const read = async () => ok(await carillon.rest("GET", `/cron/runs/get/${job.cron_id}/${run_id}`));
    await eventually(read, ({ state }) => state === "retrying");
    await carillon.database.advanceClock(10);
    expect((await hook.next()).headers["carillon-attempt"]).toBe("2");
    const run = await eventually(read, ({ state }) => state === "failed");
    expectShape(run, { finished_at: "time", response_status: "number", error: "string" });
    expect(run).toMatchObject({ response_status: 503, error: "HTTP 503", attempt: 2 });
    expect(run.attempts).toHaveLength(2);
    receiver.respond({});
  });
});

test("a task fires once at its time, with its payload, headers and signature", async () => {
  const hook = endpoint();
  const now = await carillon.database.now();
  const runAt = new Date(Math.ceil(now.getTime() / 1_000) * 1_000 + 3_600_000).toISOString();
  const task = ok(
    await carillon.rest("POST", "/task/schedule", {
      task: hook.url,
      run_at: runAt,
      name: "reminder",
      payload: { to: "o_123" },
      headers: { "X-Tenant": "acme" },
      retry: 0,
      timeout_seconds: 5,
      secret: "a secret of mine",
      idempotency_key: unique("key"),
    }),
  );
  expectShape(task, RETURNS["scheduling.task.schedule"]);
  expect(task).toMatchObject({ state: "scheduled", run_at: runAt });

  await carillon.database.advanceClock(3_602);
  const request = await hook.next();
  expect(request.body.toString()).toBe('{"to":"o_123"}');
  expect(request.headers).toMatchObject({ "x-tenant": "acme", "carillon-task-id": task.task_id });
  expect(verified(request, "a secret of mine")).toBe(true);

  const read = async () => ok(await carillon.rest("GET", `/task/get/${task.task_id}`));
  await eventually(read, ({ state }) => state === "succeeded");
  await carillon.database.advanceClock(86_400);
  const runs = ok(await carillon.rest("GET", `/run/list?task_id=${task.task_id}`)).items;
  expect(runs).toHaveLength(1);
  expect(receiver.requests.filter(({ path }) => path === request.path)).toHaveLength(1);
});

test("a message is published, consumed, nacked into the dead letters, redriven and acked", async () => {
  const queue = await createQueue(carillon, { max_retries: 1, visibility_timeout_default: 60 });
  const message_id = await publish(carillon, queue, { payload: { order_id: "o_123" }, delay_seconds: 30 });
  expect(await consume(carillon, queue), "still delayed").toEqual([]);
  await carillon.database.advanceClock(31);

  const [first] = await consume(carillon, queue);
  expect(first).toMatchObject({ message_id, payload: { order_id: "o_123" }, attempts: 1 });
  expect(await consume(carillon, queue), "leased").toEqual([]);
  const nack = { queue, message_id };
  expect(ok(await carillon.rest("POST", "/queue/nack", nack))).toMatchObject({ nacked: true, requeued: true });
  expect(await consume(carillon, queue)).toMatchObject([{ message_id, attempts: 2 }]);
  expect(ok(await carillon.rest("POST", "/queue/nack", { ...nack, reason: "out of stock" }))).toMatchObject({
    nacked: true,
    requeued: false,
  });
  expect(ok(await carillon.rest("GET", `/queue/stats/${queue}`))).toMatchObject({ available: 0, in_flight: 0, dlq: 1 });
  const dead = ok(await carillon.rest("GET", `/queue/dlq/list/${queue}`)).items;
  expect(dead).toMatchObject([{ message_id, reason: "max_retries", error: "out of stock", source_queue: queue }]);

  const redriven = ok(await carillon.rest("POST", `/queue/dlq/redrive/${queue}`, { message_id }));
  expect(redriven).toEqual({ queue, redriven: 1 });
  const [again] = await consume(carillon, queue);
  expect(again).toMatchObject({ message_id, payload: { order_id: "o_123" } });
  const ack = { queue, message_id, receipt: again.receipt };
  expect(ok(await carillon.rest("POST", "/queue/ack", ack))).toMatchObject({ message_id, acked: true });
  expect(ok(await carillon.rest("GET", `/queue/stats/${queue}`))).toMatchObject({ available: 0, in_flight: 0, dlq: 0 });
});

test("a push subscription has messages POSTed to its URL and acks them by a 2xx", async () => {
  const hook = endpoint();
  const queue = await createQueue(carillon);
  const subscription = ok(
    await carillon.rest("POST", `/queue/push_subscribe/${queue}`, {
      url: hook.url,
      secret: "whsec_c2VjcmV0IG9mIHRoZSBzdWJzY3JpcHRpb24=",
      max_retries: 2,
      visibility_timeout: 30,
      idempotency_key: unique("key"),
    }),
  );
  expectShape(subscription, RETURNS["scheduling.queue.push_subscribe"]);
  const message_id = await publish(carillon, queue, { payload: { order_id: "o_123" } });
  const request = await hook.next();
  expect(request.method).toBe("POST");
  expect(request.body.toString()).toBe('{"order_id":"o_123"}');
  expect(request.headers).toMatchObject({
    "webhook-id": message_id,
    "carillon-queue": queue,
    "carillon-subscription-id": subscription.subscription_id,
  });
  expect(verified(request, "whsec_c2VjcmV0IG9mIHRoZSBzdWJzY3JpcHRpb24=")).toBe(true);
  await eventually(
    async () => ok(await carillon.rest("GET", `/queue/stats/${queue}`)),
    (stats) => stats.available === 0 && stats.in_flight === 0,
  );
});
