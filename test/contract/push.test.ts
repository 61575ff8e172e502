import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { verify } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import type { ReceivedRequest } from "../support/receiver.ts";
import { eventually, ok, otherProject, unique } from "./calls.ts";
import { type Endpoint, type Endpoints, openEndpoints } from "./endpoints.ts";
import { queueFaces } from "./queue-faces.ts";
import { expectAbsent } from "./shape.ts";

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

/** The database's clock signs, which tests move. */
const nowOf = (headers: ReceivedRequest["headers"]) => ({ nowSeconds: Number(headers["webhook-timestamp"]) });

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  /** A value of an enum of the contract, as this face spells it. */
  const named = (prefix: string, value: string) => (face.name === "REST" ? value : `${prefix}_${value.toUpperCase()}`);
  const wrapped = named("PUSH_BODY", "wrapped");
  const raw = named("PUSH_BODY", "raw");

  const subscribe = async (hook: Endpoint, settings: object = {}, queue: object = {}) => {
    const name = unique("q");
    await face.call("createQueue", { queue: name, ...queue });
    return face.call("pushSubscribe", { queue: name, url: hook.url, ...settings });
  };
  const publish = async (queue: string, fields: object = {}): Promise<string> =>
    (await face.call("publish", { queue, payload: { n: 1 }, ...fields })).message_id;

  test("a subscription has its settings, in the answers and after an update; what is cleared goes to its default", async () => {
    const settings = {
      headers: { "x-tenant": "acme", authorization: "Bearer abc" },
      timeout_seconds: 5,
      max_concurrency: 3,
      body: wrapped,
      batch_size: 10,
      batch_window_ms: 50,
      group_failure_policy: named("GROUP_FAILURE_POLICY", "park"),
    };
    const created = await subscribe(endpoints.open(), settings);
    const shown = { ...settings, headers: { "x-tenant": "acme", authorization: "***" } };
    expect(created).toMatchObject(shown);
    const { subscription_id } = created;
    expect(await face.call("updatePushSubscription", { subscription_id })).toEqual(created);
    const changed = await face.call("updatePushSubscription", { subscription_id, batch_size: 1, timeout_seconds: 6 });
    expect(changed).toMatchObject({ ...shown, batch_size: 1, timeout_seconds: 6 });

    const mask = "headers,timeoutSeconds,maxConcurrency,body,batchSize,batchWindowMs,groupFailurePolicy";
    const nothing = Object.fromEntries(Object.keys(settings).map((name) => [name, null]));
    const cleared = await face.call("updatePushSubscription", {
      subscription_id,
      ...(face.name === "REST" ? nothing : { update_mask: mask }),
    });
    expect(cleared).toMatchObject({
      headers: {},
      body: raw,
      batch_size: 1,
      batch_window_ms: 0,
      group_failure_policy: named("GROUP_FAILURE_POLICY", "block"),
    });
    expectAbsent(cleared, "timeout_seconds", "max_concurrency");
    expect(await face.call("getPushSubscription", { subscription_id })).toEqual(cleared);
  });

  test("batches have wrapped bodies where nothing is said, and a raw one is refused", async () => {
    const { queue, subscription_id, body, url } = await subscribe(endpoints.open(), { batch_size: 2 });
    expect(body).toBe(wrapped);
    const refused = { reason: "FIELD_INVALID", message: expect.stringContaining("body") };
    await expect(face.call("updatePushSubscription", { subscription_id, body: raw })).rejects.toMatchObject(refused);
    await expect(face.call("pushSubscribe", { queue, url, batch_size: 2, body: raw })).rejects.toMatchObject(refused);
  });

  test("settings outside their ranges and headers that are not the caller's are refused", async () => {
    const queue = unique("q");
    for (const [field, settings] of [
      ["timeout_seconds", { timeout_seconds: 0 }],
      ["timeout_seconds", { timeout_seconds: 901 }],
      ["max_concurrency", { max_concurrency: 0 }],
      ["max_concurrency", { max_concurrency: 1_001 }],
      ["batch_size", { batch_size: 101 }],
      ["batch_window_ms", { batch_window_ms: 10_001 }],
      ["headers", { headers: { "webhook-id": "1" } }],
      ["headers", { headers: { authorization: "***" } }],
    ] as const) {
      const refused = face.call("pushSubscribe", { queue, url: "https://api.example.com/", ...settings });
      await expect(refused, field).rejects.toMatchObject({ reason: "FIELD_INVALID" });
      await expect(refused, field).rejects.toThrow(field);
    }
  });

  test("custom headers go along, and a message's own go before them", async () => {
    const hook = endpoints.open();
    const { queue } = await subscribe(hook, { headers: { "x-of": "subscription", authorization: "Bearer abc" } });
    await publish(queue, { headers: { "x-of": "message" } });
    const { headers } = await hook.next();
    expect(headers).toMatchObject({ "x-of": "message", authorization: "Bearer abc" });
  });

  test("a wrapped body is an envelope, signed as it is sent, with JSON byte for byte and the rest as base64", async () => {
    const hook = endpoints.open();
    const { queue, subscription_id } = await subscribe(hook, { body: wrapped, secret: "a secret" });
    const message_id = await publish(queue, { headers: { "x-a": "1" }, group_id: "g" });
    const { headers, body } = await hook.next();
    expect(verify(headers, body, "a secret", nowOf(headers))).toBe(true);
    expect(headers).toMatchObject({ "webhook-id": message_id, "content-type": "application/json" });
    expect(body.toString()).toContain('"payload":{"n":1}');
    expect(JSON.parse(body.toString())).toEqual({
      message_id,
      queue,
      subscription_id,
      attempt: 1,
      published_at: headers["carillon-published-at"],
      group_id: "g",
      headers: { "x-a": "1" },
      content_type: "application/json",
      payload: { n: 1 },
    });
    // Over REST a payload that is not JSON is base64; the gRPC face writes the same text as JSON bytes.
    ok(await carillon.rest("POST", "/queue/publish", { queue, payload: "aGk=", content_type: "text/plain" }));
    expect(JSON.parse((await hook.next()).body.toString())).toMatchObject({ payload_base64: "aGk=" });
  });

  test("a push that takes longer than timeout_seconds has failed", async () => {
    const hook = endpoints.open();
    hook.respond({ hang: "before_headers" });
    const { queue, subscription_id } = await subscribe(hook, { timeout_seconds: 1, max_retries: 0 });
    await publish(queue);
    await eventually(
      () => face.call("getQueueStats", { queue }),
      ({ dlq }) => dlq === 1,
    );
    await face.call("updatePushSubscription", { subscription_id, timeout_seconds: null });
  });

  test("a paused subscription is pushed nothing until it is resumed; doing either again changes nothing", async () => {
    const hook = endpoints.open();
    const { queue, subscription_id } = await subscribe(hook);
    const paused = await face.call("pausePushSubscription", { subscription_id });
    expect(paused).toMatchObject({ subscription_id, paused: true });
    expect(await face.call("pausePushSubscription", { subscription_id })).toEqual(paused);
    const message_id = await publish(queue);
    const resumed = await face.call("resumePushSubscription", { subscription_id });
    expect(resumed).toMatchObject({ paused: false });
    expect(await face.call("resumePushSubscription", { subscription_id })).toEqual(resumed);
    expect((await hook.next()).headers["webhook-id"]).toBe(message_id);
    const absent = { subscription_id: "sub_00000000000000000000000000" };
    for (const call of ["pausePushSubscription", "resumePushSubscription"] as const) {
      await expect(face.call(call, absent)).rejects.toMatchObject({ reason: "SUBSCRIPTION_NOT_FOUND" });
    }
  });

  test("a test delivery is signed and recorded like a push, and its outcome is the answer", async () => {
    const hook = endpoints.open();
    hook.respond({ status: 201, body: "thanks" });
    const { subscription_id } = await subscribe(hook, { secret: "a secret", headers: { "x-tenant": "acme" } });
    await face.call("pausePushSubscription", { subscription_id });
    await carillon.database.advanceClock(600);
    const answer = await face.call("testPushSubscription", { subscription_id, payload: { hello: 1 } });
    expect(answer).toMatchObject({
      subscription_id,
      run_id: expect.stringMatching(/^run_/),
      delivered: true,
      response_status: 201,
      response_body: "thanks",
      duration_ms: expect.any(Number),
    });
    expectAbsent(answer, "error");
    const { headers, body } = await hook.next();
    expect(body.toString()).toBe('{"hello":1}');
    expect(headers).toMatchObject({ "carillon-test": "true", "x-tenant": "acme", "carillon-run-id": answer.run_id });
    expect(verify(headers, body, "a secret", nowOf(headers))).toBe(true);
    const { nowSeconds } = nowOf(headers);
    expect(Math.abs((await carillon.database.now()).getTime() / 1_000 - nowSeconds)).toBeLessThan(60);

    const { items } = ok(await carillon.rest("GET", "/run/list?kind=push&limit=500"));
    const run = items.find((each: { run_id: string }) => each.run_id === answer.run_id);
    expect(run).toMatchObject({ subscription_id, state: "succeeded", trigger: "test", attempt: 1 });
    expectAbsent(run, "message_id");
  });
});

describe.each(queueFaces(() => carillon))("a group of a FIFO queue, over $name", (face) => {
  const fifo = face.name === "REST" ? "fifo" : "QUEUE_TYPE_FIFO";
  const park = face.name === "REST" ? "park" : "GROUP_FAILURE_POLICY_PARK";
  const modes = face.name === "REST" ? ["compete", "fanout"] : ["PUSH_MODE_COMPETE", "PUSH_MODE_FANOUT"];

  /** A group whose first message has failed once, which is too often: parked. */
  const parkedGroup = async (mode: string) => {
    const hook = endpoints.open();
    hook.respond((request) => ({ status: request.body.toString() === "1" ? 500 : 200 }));
    const queue = unique("q");
    await face.call("createQueue", { queue, type: fifo, max_retries: 0 });
    const settings = { mode, group_failure_policy: park };
    const { subscription_id } = await face.call("pushSubscribe", { queue, url: hook.url, ...settings });
    const first = (await face.call("publish", { queue, payload: 1, group_id: "g" })).message_id;
    await face.call("publish", { queue, payload: 2, group_id: "g" });
    const where = { queue, ...(mode === modes[1] && { subscription_id }) };
    const blocked = async () => (await face.call("listBlockedGroups", where)).items;
    await eventually(blocked, ([group]) => group?.reason === "parked" && group.depth === 2);
    return { hook, queue, first, where, blocked };
  };
  const emptied = (queue: string) =>
    eventually(
      () => face.call("getQueueStats", { queue }),
      ({ available, delayed, in_flight }) => available + delayed + in_flight === 0,
    );
  const bodies = async (hook: Endpoint, count: number) => {
    const received: string[] = [];
    for (let i = 0; i < count; i++) received.push((await hook.next()).body.toString());
    return received;
  };

  test.each(modes)("is listed as parked, and tried again when it is resumed (%s)", async (mode) => {
    const { hook, queue, first, where, blocked } = await parkedGroup(mode);
    const [group] = await blocked();
    expect(group).toMatchObject({ group_id: "g", reason: "parked", message_id: first, failures: 1, depth: 2 });
    expectAbsent(group, "until");
    hook.respond({ status: 200 });
    const resumed = await face.call("resumeGroup", { ...where, group_id: "g" });
    expect(resumed).toMatchObject({ queue, group_id: "g", message_id: first, skipped: false });
    expect(await bodies(hook, 3)).toEqual(["1", "1", "2"]);
    await emptied(queue);
    expect(await blocked()).toEqual([]);
    const again = face.call("resumeGroup", { ...where, group_id: "g" });
    await expect(again).rejects.toMatchObject({ reason: "GROUP_NOT_WAITING" });
  });

  test.each(modes)("goes on without its first message when that is skipped (%s)", async (mode) => {
    const { hook, queue, first, where } = await parkedGroup(mode);
    expect(await face.call("resumeGroup", { ...where, group_id: "g", skip: true })).toMatchObject({ skipped: true });
    expect(await bodies(hook, 2)).toEqual(["1", "2"]);
    await emptied(queue);
    const { items } = await face.call("listDeadLetters", { queue });
    expect(items).toMatchObject([{ message_id: first, reason: "rejected" }]);
  });

  test("is parked with an event", async () => {
    const ops = endpoints.open();
    const event_types = ["push.group.parked"];
    const webhook = ok(await carillon.rest("POST", "/webhook/create", { url: ops.url, event_types }));
    const { queue, first } = await parkedGroup(modes[0] ?? "");
    const event = JSON.parse((await ops.next()).body.toString());
    expect(event).toMatchObject({ type: "push.group.parked", data: { queue, group_id: "g", message_id: first } });
    ok(await carillon.rest("DELETE", `/webhook/delete/${webhook.webhook_id}`));
  });

  test("of a subscription of another queue is not found", async () => {
    const { subscription_id } = await face.call("pushSubscribe", { queue: unique("q"), url: endpoints.open().url });
    const queue = unique("q");
    await face.call("createQueue", { queue, type: fifo });
    for (const call of ["listBlockedGroups", "resumeGroup"] as const) {
      const refused = face.call(call, { queue, subscription_id });
      await expect(refused).rejects.toMatchObject({ reason: "SUBSCRIPTION_NOT_FOUND" });
    }
  });
});

test("one POST carries a batch, and a 2xx acks what its answer does not name as failed", async () => {
  const hook = endpoints.open();
  const queue = unique("q");
  ok(await carillon.rest("POST", "/queue/create", { queue, max_retries: 0 }));
  const settings = { url: hook.url, batch_size: 10, batch_window_ms: 200 };
  const { subscription_id } = ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, settings));
  ok(await carillon.rest("POST", `/queue/push_subscription/pause/${subscription_id}`));
  const messages = Array.from({ length: 3 }, (_, n) => ({ payload: { n } }));
  const { message_ids } = ok(await carillon.rest("POST", "/queue/publish_batch", { queue, messages }));
  hook.respond({ body: JSON.stringify({ failed: [{ message_id: message_ids[1], error: "no" }] }) });
  ok(await carillon.rest("POST", `/queue/push_subscription/resume/${subscription_id}`));
  const { headers, body } = await hook.next();
  expect(headers).toMatchObject({ "carillon-batch-size": "3", "webhook-id": expect.stringMatching(/^batch_/) });
  const sent = JSON.parse(body.toString()).messages;
  expect(sent.map((message: { message_id: string }) => message.message_id)).toEqual(message_ids);
  expect(sent[0]).toMatchObject({ queue, attempt: 1, payload: { n: 0 } });
  await eventually(
    async () => ok(await carillon.rest("GET", `/queue/stats/${queue}`)),
    ({ dlq, available, delayed, in_flight }) => dlq === 1 && available + delayed + in_flight === 0,
  );
  const { items } = ok(await carillon.rest("GET", `/queue/dlq/list/${queue}`));
  expect(items).toMatchObject([{ message_id: message_ids[1], error: "no" }]);
});

test("a test delivery that fails says why", async () => {
  const authorization = await otherProject(carillon);
  const call = async (method: string, path: string, body: object) =>
    ok(await carillon.rest(method, path, body, authorization));
  const failing = endpoints.open();
  failing.respond({ status: 500, body: "x".repeat(3_000) });
  const { subscription_id } = await call("POST", "/queue/push_subscribe/orders", { url: failing.url });
  const answered = await call("POST", `/queue/push_subscription/test/${subscription_id}`, {});
  expect(answered).toMatchObject({ delivered: false, response_status: 500, error: "HTTP 500" });
  expect(answered.response_body).toHaveLength(1_024);

  failing.respond({ reset: "before_headers" });
  const silent = await call("POST", `/queue/push_subscription/test/${subscription_id}`, {});
  expect(silent).toMatchObject({ delivered: false, error: expect.stringMatching(/^[a-z_]+$/) });
  expectAbsent(silent, "response_status", "response_body");
});

test("a test delivery goes out to a disabled endpoint, which it does not enable", async () => {
  const authorization = await otherProject(carillon);
  const hook = endpoints.open();
  hook.respond({ status: 410 });
  const call = async (method: string, path: string, body?: object) =>
    ok(await carillon.rest(method, path, body, authorization));
  await call("POST", "/task/schedule", { url: hook.url, run_at: "2020-01-01T00:00:00Z" });
  const disabled = async () => (await call("GET", "/endpoint/list?state=disabled")).items.length;
  await eventually(disabled, (count) => count === 1);
  hook.respond({ status: 200 });
  const { subscription_id } = await call("POST", "/queue/push_subscribe/orders", { url: hook.url });
  expect(await call("POST", `/queue/push_subscription/test/${subscription_id}`, {})).toMatchObject({ delivered: true });
  expect(await disabled()).toBe(1);
});

test("a project has ten test deliveries a minute, and a repeat with the same key makes none", async () => {
  const authorization = await otherProject(carillon);
  const hook = endpoints.open();
  const { subscription_id } = ok(
    await carillon.rest("POST", "/queue/push_subscribe/orders", { url: hook.url }, authorization),
  );
  const deliver = (key = "") =>
    carillon.rest("POST", `/queue/push_subscription/test/${subscription_id}`, { idempotency_key: key }, authorization);
  const first = ok(await deliver("k"));
  expect(ok(await deliver("k"))).toEqual(first);
  expect(hook.count()).toBe(1);
  for (let made = 1; made < 10; made++) ok(await deliver());
  const refused = await deliver();
  expect(refused.status).toBe(429);
  expect(refused.body.error).toMatchObject({ reason: "TOO_MANY_TESTS" });
  await carillon.database.advanceClock(61);
  ok(await deliver());
  expect(hook.count()).toBe(11);
});
