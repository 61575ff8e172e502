import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { verify } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { projectSecret } from "../support/signing.ts";
import { createQueue, eventually, ok, publish, refused, refusedField, unique, warning } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { expectAbsent, expectShape } from "./shape.ts";

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

const subscribe = (queue: string, body: object) => carillon.rest("POST", `/queue/push_subscribe/${queue}`, body);
const get = async (path: string) => ok(await carillon.rest("GET", path));
const emptied = (queue: string) =>
  eventually(
    () => get(`/queue/stats/${queue}`),
    (stats) => stats.available + stats.delayed + stats.in_flight === 0,
  );

test("S39: forward_to is url, and the path names the queue", async () => {
  const { url } = endpoints.open();
  const queue = await createQueue(carillon);
  const answer = await subscribe(queue, { queue: "orders", forward_to: url });
  expect(ok(answer)).toMatchObject({ queue, url, forward_to: url });
  expect(warning(answer)).toBe("body.queue ignored, path names the queue");
  refusedField(await subscribe(queue, {}), "url");
});

describe("S40: subscriptions", () => {
  test("S40: subscribing the same URL again keeps the id and updates the rest", async () => {
    const { url } = endpoints.open();
    const queue = await createQueue(carillon);
    const first = ok(await subscribe(queue, { url, max_retries: 1 }));
    const again = ok(await subscribe(queue, { url, max_retries: 2, visibility_timeout: 60 }));
    expect(again).toMatchObject({ subscription_id: first.subscription_id, max_retries: 2, visibility_timeout: 60 });
    const other = ok(await subscribe(queue, { url: `${url}/other` }));
    expect(other.subscription_id).not.toBe(first.subscription_id);
    expect((await get(`/queue/push_subscription/list/${queue}`)).items).toEqual([again, other]);
  });

  test("S40: several URLs compete for the messages", async () => {
    const hooks = [endpoints.open(), endpoints.open()];
    const queue = await createQueue(carillon);
    for (const { url } of hooks) ok(await subscribe(queue, { url }));
    for (let n = 0; n < 20; n++) await publish(carillon, queue);
    await emptied(queue);
    const counts = hooks.map((hook) => hook.count());
    expect((counts[0] ?? 0) + (counts[1] ?? 0)).toBe(20);
    expect(Math.min(...counts)).toBeGreaterThan(0);
  });

  test("S40: with mode fanout each one gets every message", async () => {
    const hooks = [endpoints.open(), endpoints.open()];
    const queue = await createQueue(carillon);
    for (const { url } of hooks) expect(ok(await subscribe(queue, { url, mode: "fanout" })).mode).toBe("fanout");
    for (let n = 0; n < 5; n++) await publish(carillon, queue);
    await emptied(queue);
    expect(hooks.map((hook) => hook.count())).toEqual([5, 5]);
  });

  test("S40: a subscription's max_retries and dead letter queue go before the queue's", async () => {
    const hook = endpoints.open();
    hook.respond({ status: 500 });
    const [ofQueue, own] = [await createQueue(carillon), await createQueue(carillon)];
    const queue = await createQueue(carillon, { max_retries: 5, dead_letter_queue: ofQueue });
    ok(await subscribe(queue, { url: hook.url, max_retries: 1, dead_letter_queue: own }));
    const message_id = await publish(carillon, queue);
    await hook.next();
    await eventually(
      () => get(`/queue/stats/${queue}`),
      ({ delayed }) => delayed === 1,
    );
    await carillon.database.advanceClock(10);
    await hook.next();
    await eventually(
      () => get(`/queue/stats/${queue}`),
      ({ dlq }) => dlq === 1,
    );
    const held = (await get(`/queue/dlq/list/${own}?scope=self`)).items;
    expect(held).toMatchObject([{ message_id, source_queue: queue, reason: "max_retries", error: "HTTP 500" }]);
  });

  test("S27: failed pushes are failures", async () => {
    const hook = endpoints.open();
    hook.respond({ status: 500 });
    const queue = await createQueue(carillon, { max_retries: 0 });
    ok(await subscribe(queue, { url: hook.url }));
    const message_id = await publish(carillon, queue);
    await eventually(
      () => get(`/queue/stats/${queue}`),
      ({ dlq }) => dlq === 1,
    );
    expect((await get(`/queue/dlq/list/${queue}`)).items).toMatchObject([{ message_id, reason: "max_retries" }]);
    expect(hook.count()).toBe(1);
  });

  test("S40: get, update, pause and delete", async () => {
    const hook = endpoints.open();
    const queue = await createQueue(carillon);
    const created = ok(await subscribe(queue, { url: hook.url, max_retries: 3 }));
    const path = (call: string) => `/queue/push_subscription/${call}/${created.subscription_id}`;
    expect(await get(path("get"))).toEqual(created);
    const paused = ok(await carillon.rest("PATCH", path("update"), { paused: true, max_retries: null }));
    expect(paused).toMatchObject({ paused: true, url: hook.url });
    expectAbsent(paused, "max_retries");
    await publish(carillon, queue);
    ok(await carillon.rest("PATCH", path("update"), { paused: false }));
    await hook.next();
    await emptied(queue);
    const deleted = ok(await carillon.rest("DELETE", path("delete")));
    expect(deleted).toEqual({ subscription_id: created.subscription_id, deleted: true });
    refused(await carillon.rest("GET", path("get")), 404, "NOT_FOUND", "SUBSCRIPTION_NOT_FOUND");
    await publish(carillon, queue);
    expect(await get(`/queue/stats/${queue}`)).toMatchObject({ available: 1 });
    expect(hook.count()).toBe(1);
  });

  test("S40: rotate_secret signs with both secrets while they overlap", async () => {
    const hook = endpoints.open();
    const queue = await createQueue(carillon);
    const { subscription_id } = ok(await subscribe(queue, { url: hook.url, secret: "old secret" }));
    const path = `/queue/push_subscription/rotate_secret/${subscription_id}`;
    const rotated = ok(await carillon.rest("POST", path, { overlap_seconds: 3_600 }));
    expectShape(rotated, { subscription_id: "string", secret: "string", previous_valid_until: "time" });
    const signedBy = async (secret: string) => {
      // The secrets are read before a message is taken, so no other push may be under way.
      await emptied(queue);
      await publish(carillon, queue);
      const { headers, body } = await hook.next();
      // The database's clock signs, which tests move.
      return verify(headers, body, secret, { nowSeconds: Number(headers["webhook-timestamp"]) });
    };
    expect(await signedBy("old secret")).toBe(true);
    expect(await signedBy(rotated.secret)).toBe(true);
    await carillon.database.advanceClock(3_700);
    expect(await signedBy("old secret")).toBe(false);
    expect(await signedBy(rotated.secret)).toBe(true);
    const given = ok(await carillon.rest("POST", path, { secret: "a secret of mine" }));
    expectAbsent(given, "secret");
    expect(await signedBy("a secret of mine")).toBe(true);
  });
});

test("S42: pushes are always signed: by the project's secret where none is given; answers never show one", async () => {
  const ofProject = await projectSecret(carillon.database.db);
  for (const secret of [undefined, "whsec_c2VjcmV0"]) {
    const hook = endpoints.open();
    const queue = unique("q");
    const subscription = ok(await subscribe(queue, { url: hook.url, ...(secret !== undefined && { secret }) }));
    expectAbsent(subscription, "secret");
    await publish(carillon, queue);
    const { headers, body } = await hook.next();
    // The database's clock signs, which tests move.
    const nowSeconds = Number(headers["webhook-timestamp"]);
    expect(verify(headers, body, secret ?? ofProject, { nowSeconds })).toBe(true);
  }
});

test("S41: pushes over plain http and to private addresses need the operator's consent", async () => {
  const queue = await createQueue(carillon);
  for (const url of ["http://example.com/", "https://192.168.0.1/", "https://[fd00::1]/"]) {
    refusedField(await subscribe(queue, { url }), "url", "TARGET_REFUSED");
  }
});
