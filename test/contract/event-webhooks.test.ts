import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { EventService } from "../../gen/scheduling/v1/event_service_pb.js";
import { MAX_EVENT_WEBHOOKS } from "../../src/store/event-webhooks.ts";
import { verify } from "../../src/webhook/sign.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import type { ReceivedRequest } from "../support/receiver.ts";
import { createCron, eventually, ok, otherProject, unique } from "./calls.ts";
import { type Endpoint, type Endpoints, openEndpoints } from "./endpoints.ts";
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

const URL = "https://api.example.com/events";
const ABSENT = "wh_00000000000000000000000000";
const refusal = (reason: string) => expect.objectContaining({ reason });

function isSigned({ headers, body }: ReceivedRequest, secret: string): boolean {
  return verify(headers, body, secret, { nowSeconds: Number(headers["webhook-timestamp"]) });
}

const eventOf = (request: ReceivedRequest) => JSON.parse(request.body.toString());

/** The next event that is not about the health of a target. */
async function nextEvent(endpoint: Endpoint) {
  for (;;) {
    const event = eventOf(await endpoint.next());
    if (!event.type.startsWith("endpoint.")) return event;
  }
}

describe.each(serviceFaces(EventService, () => carillon))("an event webhook over $name", (face: ServiceFace) => {
  test("is created with a secret that is shown once, and read, listed, changed and deleted", async () => {
    const name = unique("hook");
    const created = await face.call("createEventWebhook", { url: URL, name, event_types: ["cron.*", "task.failed"] });
    expect(created).toMatchObject({
      webhook_id: expect.stringMatching(/^wh_/),
      name,
      url: URL,
      event_types: ["cron.*", "task.failed"],
      enabled: true,
      secret: expect.stringMatching(/^whsec_/),
    });
    const { webhook_id, secret, ...shown } = created;
    expect(await face.call("getEventWebhook", { webhook_id })).toEqual({ webhook_id, ...shown });

    const changed = await face.call("updateEventWebhook", { webhook_id, enabled: false, url: `${URL}/2` });
    expect(changed).toMatchObject({ enabled: false, url: `${URL}/2`, event_types: ["cron.*", "task.failed"] });
    expect(changed.secret).toBeUndefined();
    const { items } = await face.call("listEventWebhooks", {});
    expect(items[0]).toEqual(changed);

    expect(await face.call("deleteEventWebhook", { webhook_id })).toEqual({ webhook_id, deleted: true });
    await expect(face.call("getEventWebhook", { webhook_id })).rejects.toEqual(refusal("WEBHOOK_NOT_FOUND"));
  });

  test("keeps a secret that is given to itself, and shows one that it made", async () => {
    const { webhook_id, ...created } = await face.call("createEventWebhook", {
      url: URL,
      secret: "sixteen characters",
    });
    expect(created.secret).toBeUndefined();
    const renewed = await face.call("updateEventWebhook", { webhook_id, secret: "" });
    expect(renewed.secret).toMatch(/^whsec_/);
    await face.call("deleteEventWebhook", { webhook_id });
  });

  test("comes by pages", async () => {
    const made: string[] = [];
    for (let i = 0; i < 3; i++) made.unshift((await face.call("createEventWebhook", { url: URL })).webhook_id);
    const first = await face.call("listEventWebhooks", { limit: 2 });
    const second = await face.call("listEventWebhooks", { limit: 2, cursor: first.next_cursor });
    const ids = [...first.items, ...second.items].map(({ webhook_id }) => webhook_id);
    expect(ids.slice(0, 3)).toEqual(made);
    for (const webhook_id of made) await face.call("deleteEventWebhook", { webhook_id });
  });

  test("is refused for a type that does not exist, a target that may not be called, and a secret that is none", async () => {
    const create = (fields: object) => face.call("createEventWebhook", { url: URL, ...fields });
    await expect(create({ event_types: ["cron.run.exploded"] })).rejects.toEqual(refusal("FIELD_INVALID"));
    await expect(create({ event_types: ["cro.*"] })).rejects.toEqual(refusal("FIELD_INVALID"));
    await expect(create({ url: "https://169.254.169.254/" })).rejects.toEqual(refusal("TARGET_REFUSED"));
    await expect(create({ secret: "whsec_!" })).rejects.toEqual(refusal("FIELD_INVALID"));
    await expect(create({ url: "" })).rejects.toEqual(refusal("FIELD_INVALID"));
  });

  test("that does not exist is not found by any call", async () => {
    for (const method of ["getEventWebhook", "updateEventWebhook", "deleteEventWebhook", "testEventWebhook"]) {
      await expect(face.call(method, { webhook_id: ABSENT })).rejects.toEqual(refusal("WEBHOOK_NOT_FOUND"));
      await expect(face.call(method, { webhook_id: "nonsense" })).rejects.toEqual(refusal("WEBHOOK_NOT_FOUND"));
    }
  });

  test("is created once for an idempotency key, and the answer is the same", async () => {
    const request = { url: URL, idempotency_key: unique("key") };
    const first = await face.call("createEventWebhook", request);
    expect(await face.call("createEventWebhook", request)).toEqual(first);
    await face.call("deleteEventWebhook", { webhook_id: first.webhook_id });
  });

  test("gets a signed test event, whatever it subscribes to and although it is disabled", async () => {
    const endpoint = endpoints.open();
    const { webhook_id, secret } = await face.call("createEventWebhook", {
      url: endpoint.url,
      event_types: ["task.failed"],
      enabled: false,
    });
    const { run_id } = await face.call("testEventWebhook", { webhook_id });
    const request = await endpoint.next();
    expect(request.headers["webhook-id"]).toBe(run_id);
    expect(isSigned(request, secret)).toBe(true);
    expect(eventOf(request)).toEqual({ type: "webhook.test", timestamp: expect.any(String), data: {} });
    await face.call("deleteEventWebhook", { webhook_id });
  });
});

const create = async (body: object, headers = {}) => ok(await carillon.rest("POST", "/webhook/create", body, headers));
const remove = async ({ webhook_id }: { webhook_id: string }) =>
  ok(await carillon.rest("DELETE", `/webhook/delete/${webhook_id}`));

describe("events", () => {
  test("of failed runs reach the webhooks that subscribe, and the cron job's or task's own", async () => {
    const [target, own, all, cronOnly, other] = [1, 2, 3, 4, 5].map(() => endpoints.open());
    if (!target || !own || !all || !cronOnly || !other) return;
    target.respond({ status: 500 });
    const hooks = [
      await create({ url: all.url }),
      await create({ url: cronOnly.url, event_types: ["cron.*"] }),
      await create({ url: other.url, event_types: ["message.dead_lettered"] }),
    ];
    const failing = { url: target.url, retries: 0, on_failure_webhook: own.url };
    const { cron_id } = await createCron(carillon, failing);
    ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
    const about = {
      type: "cron.run.failed",
      data: expect.objectContaining({ cron_id, error: "HTTP 500", attempts: 1 }),
    };
    for (const told of [own, all, cronOnly]) expect(await nextEvent(told)).toMatchObject(about);

    const run_at = new Date().toISOString();
    const task = ok(await carillon.rest("POST", "/task/schedule", { ...failing, run_at }));
    expect(task.on_failure_webhook).toBe(own.url);
    for (const told of [own, all]) {
      expect(await nextEvent(told)).toMatchObject({
        type: "task.failed",
        data: { task_id: task.task_id, url: target.url, state: "failed", response_status: 500 },
      });
    }
    expect([cronOnly.count(), other.count()]).toEqual([1, 0]);
    for (const hook of hooks) await remove(hook);
  });

  test("of dead letters say why and where", async () => {
    const endpoint = endpoints.open();
    const hook = await create({ url: endpoint.url, event_types: ["message.dead_lettered"] });
    const queue = unique("q");
    ok(await carillon.rest("POST", "/queue/create", { queue }));
    const { message_id } = ok(await carillon.rest("POST", "/queue/publish", { queue, payload: 1 }));
    ok(await carillon.rest("POST", "/queue/consume", { queue }));
    ok(await carillon.rest("POST", "/queue/nack", { queue, message_id, requeue: false, reason: "broken" }));
    expect(eventOf(await endpoint.next())).toMatchObject({
      type: "message.dead_lettered",
      data: { message_id, queue, reason: "rejected", error: "broken", attempts: 1 },
    });
    await remove(hook);
  });

  test("of another project are not told", async () => {
    const endpoint = endpoints.open();
    const headers = await otherProject(carillon);
    await create({ url: endpoint.url }, headers);
    const mine = endpoints.open();
    const hook = await create({ url: mine.url });
    const target = endpoints.open();
    target.respond({ status: 410 });
    const { cron_id } = await createCron(carillon, { url: target.url });
    ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
    await mine.next();
    expect(endpoint.count()).toBe(0);
    await remove(hook);
  });
});

test("a webhook that answers 410 is disabled, says why, and is told again when it is enabled again", async () => {
  const endpoint = endpoints.open();
  endpoint.respond((_, index) => ({ status: index === 0 ? 410 : 200 }));
  const hook = await create({ url: endpoint.url });
  const read = async () => ok(await carillon.rest("GET", `/webhook/get/${hook.webhook_id}`));
  ok(await carillon.rest("POST", `/webhook/test/${hook.webhook_id}`));
  const { disabled_reason } = await eventually(read, ({ enabled }) => !enabled);
  expect(disabled_reason).toMatch(/no more requests/);
  await eventually(
    async () => ok(await carillon.rest("GET", `/endpoint/list?state=disabled`)).items,
    (items) => items.some(({ url }: { url: string }) => url === endpoint.url),
  );
  const enabled = ok(await carillon.rest("PATCH", `/webhook/update/${hook.webhook_id}`, { enabled: true }));
  expect(enabled).toMatchObject({ enabled: true });
  expect(enabled.disabled_reason).toBeUndefined();
  ok(await carillon.rest("POST", `/webhook/test/${hook.webhook_id}`));
  await endpoint.next();
  await endpoint.next();
  await remove(hook);
});

test("a project has ten tests a minute, of its webhooks and subscriptions together", async () => {
  const headers = await otherProject(carillon);
  const endpoint = endpoints.open();
  const { webhook_id } = await create({ url: endpoint.url }, headers);
  const subscribed = await carillon.rest("POST", "/queue/push_subscribe/orders", { url: endpoint.url }, headers);
  const { subscription_id } = ok(subscribed);
  const post = (path: string) => carillon.rest("POST", path, {}, headers);
  const { run_id } = ok(await post(`/webhook/test/${webhook_id}`));
  for (let made = 1; made < 5; made++) ok(await post(`/webhook/test/${webhook_id}`));
  for (let made = 5; made < 10; made++) ok(await post(`/queue/push_subscription/test/${subscription_id}`));
  for (const path of [`/webhook/test/${webhook_id}`, `/queue/push_subscription/test/${subscription_id}`]) {
    const { status, body } = await post(path);
    expect([status, body.error.reason], path).toEqual([429, "TOO_MANY_TESTS"]);
  }
  await carillon.database.advanceClock(61);
  ok(await post(`/webhook/test/${webhook_id}`));
  const { items } = ok(await carillon.rest("GET", "/delivery/list", undefined, headers));
  const first = items.find((item: { run_id: string }) => item.run_id === run_id);
  expect(first).toMatchObject({ kind: "event", trigger: "test" });
});

test("a project has no more event webhooks than it may", async () => {
  const headers = await otherProject(carillon);
  for (let i = 0; i < MAX_EVENT_WEBHOOKS; i++) await create({ url: URL }, headers);
  const { status, body } = await carillon.rest("POST", "/webhook/create", { url: URL }, headers);
  expect([status, body.error.reason]).toEqual([429, "WEBHOOK_LIMIT"]);
});
