import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DeliveryService } from "../../gen/scheduling/v1/delivery_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
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

const refusal = (reason: string) => expect.objectContaining({ reason });
const PAST = "2020-01-01T00:00:00Z";

/** Schedules a task that fires at once. */
const schedule = async (url: string, fields: object = {}) =>
  ok(await carillon.rest("POST", "/task/schedule", { url, run_at: PAST, retries: 0, ...fields }));

/** The one delivery of a task, when it is over. */
async function deliveryOf(face: ServiceFace, task_id: string) {
  const { items } = await eventually(
    () => face.call("listDeliveries", { task_id }),
    ({ items }) => items[0]?.finished_at !== undefined,
  );
  return items[0];
}

const ids = ({ items }: { items: { delivery_id: string }[] }) => items.map(({ delivery_id }) => delivery_id);

describe.each(serviceFaces(DeliveryService, () => carillon))("over $name", (face: ServiceFace) => {
  test("a delivery shows what was sent and answered, when, and where the time went", async () => {
    const endpoint = endpoints.open();
    endpoint.respond({ status: 503, body: "no", headers: { "x-request-id": "7", server: "nginx" } });
    const headers = { "x-shop": "7", authorization: "Bearer x" };
    const { task_id } = await schedule(endpoint.url, { headers, retries: 1 });
    const listed = await deliveryOf(face, task_id);
    expect(listed.response_body).toBeUndefined();
    const { delivery_id } = listed;
    const delivery = await face.call("getDelivery", { delivery_id });
    expect(delivery).toMatchObject({
      ...listed,
      kind: "task",
      trigger: "schedule",
      state: "retrying",
      task_id,
      attempt: 1,
      url: endpoint.url,
      response_status: 503,
      error: "rejected",
      response_body: "no",
      duration_ms: expect.any(Number),
      first_byte_ms: expect.any(Number),
      request_headers: { "x-shop": "7", authorization: "***", "webhook-id": listed.run_id, "webhook-signature": "***" },
      response_headers: { "x-request-id": "7" },
    });
    expect(delivery.response_headers.server).toBeUndefined();
    const waitMs = Date.parse(delivery.next_attempt_at) - Date.parse(delivery.finished_at);
    expect(waitMs).toBeGreaterThan(3_000);
    expect(waitMs).toBeLessThan(7_000);
  });

  test("deliveries are found by what they are of and how they ended, newest first and by pages", async () => {
    const [good, bad] = [endpoints.open(), endpoints.open()];
    bad.respond((_, index) => ({ status: 500 + index }));
    const waits = { retries: 2, retry_policy: { waits_seconds: [0] } };
    const failed = await schedule(bad.url, waits);
    const done = await schedule(good.url);
    const [last] = await eventually(
      async () => (await face.call("listDeliveries", { task_id: failed.task_id })).items,
      (items) => items[0]?.state === "failed",
    );
    const only = await deliveryOf(face, done.task_id);
    expect(last).toMatchObject({ attempt: 3, response_status: 502 });

    const all = await face.call("listDeliveries", { run_id: last.run_id });
    expect(all.items.map(({ attempt }: { attempt: number }) => attempt)).toEqual([3, 2, 1]);
    const count = async (filter: object) => (await face.call("listDeliveries", { ...filter })).items.length;
    expect(await count({ url: bad.url, status_class: 5 })).toBe(3);
    expect(await count({ url: bad.url, response_status: 501 })).toBe(1);
    expect(await count({ url: bad.url, error: "rejected" })).toBe(3);
    expect(await count({ url: bad.url, error: "timeout" })).toBe(0);
    expect(await count({ url: bad.url, state: "failed", kind: "task" })).toBe(3);
    expect(await count({ url: bad.url, kind: "cron" })).toBe(0);
    expect(await count({ url: good.url, state: "succeeded" })).toBe(1);
    expect(await count({ url: bad.url, since: all.items[1].started_at })).toBe(2);
    expect(await count({ url: bad.url, until: all.items[1].started_at })).toBe(1);
    expect(await count({ run_id: only.run_id })).toBe(1);
    expect(await count({ run_id: "nonsense" })).toBe(0);

    const first = await face.call("listDeliveries", { url: bad.url, limit: 2 });
    const rest = await face.call("listDeliveries", { url: bad.url, limit: 2, cursor: first.next_cursor });
    expect([...ids(first), ...ids(rest)]).toEqual(ids(all));
    expect(rest.next_cursor).toBeUndefined();
    const elsewhere = face.call("listDeliveries", { url: good.url, cursor: first.next_cursor });
    await expect(elsewhere).rejects.toEqual(refusal("FIELD_INVALID"));
    await expect(face.call("listDeliveries", { since: last.started_at, until: last.started_at })).rejects.toEqual(
      refusal("FIELD_INVALID"),
    );
  });

  test("a redirect is recorded with where it pointed, and nobody goes there", async () => {
    const [endpoint, elsewhere] = [endpoints.open(), endpoints.open()];
    endpoint.respond({ status: 302, headers: { location: `${elsewhere.url}?token=1` } });
    const { task_id } = await schedule(endpoint.url);
    expect(await deliveryOf(face, task_id)).toMatchObject({
      response_status: 302,
      error: "rejected",
      response_headers: { location: elsewhere.url },
    });
    expect(elsewhere.count()).toBe(0);
  });

  test("a replay is a new run that says what it replays, with the first one's webhook-id", async () => {
    const endpoint = endpoints.open();
    endpoint.respond((_, index) => ({ status: index === 0 ? 500 : 200 }));
    const { task_id } = await schedule(endpoint.url);
    const { delivery_id, run_id } = await deliveryOf(face, task_id);
    await eventually(
      () => face.call("getDelivery", { delivery_id }),
      ({ state }) => state === "failed",
    );
    const replay = await face.call("replayDelivery", { delivery_id });
    expect(replay).toMatchObject({ kind: "task", trigger: "replay", task_id, replay_of: run_id });
    expect(replay.run_id).not.toBe(run_id);
    const [first, second] = [await endpoint.next(), await endpoint.next()];
    expect(second.headers["webhook-id"]).toBe(first.headers["webhook-id"]);
    expect(second.headers).toMatchObject({
      "carillon-run-id": replay.run_id,
      "carillon-replay-of": run_id,
      "carillon-trigger": "replay",
    });
    expect(second.body.equals(first.body)).toBe(true);
    const [done] = await eventually(
      async () => (await face.call("listDeliveries", { run_id: replay.run_id })).items,
      (items) => items[0]?.state === "succeeded",
    );
    expect(done).toMatchObject({ trigger: "replay", replay_of: run_id });
    const again = await face.call("replayDelivery", { delivery_id: done.delivery_id });
    expect(again.replay_of).toBe(run_id);
    expect(ok(await carillon.rest("GET", `/task/get/${task_id}`)).last_run.run_id).toBe(again.run_id);
  });

  test("a replay is refused while the run is not over, and when what it was for is gone", async () => {
    const endpoint = endpoints.open();
    endpoint.respond({ status: 500 });
    const { task_id } = await schedule(endpoint.url, { retries: 1 });
    const { delivery_id } = await deliveryOf(face, task_id);
    await expect(face.call("replayDelivery", { delivery_id })).rejects.toEqual(refusal("REPLAY_REFUSED"));

    const { cron_id } = await createCron(carillon, { url: endpoint.url, retries: 0 });
    ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
    const [fired] = await eventually(
      async () => (await face.call("listDeliveries", { cron_id })).items,
      (items) => items[0]?.state === "failed",
    );
    ok(await carillon.rest("DELETE", `/cron/delete/${cron_id}`));
    await expect(face.call("replayDelivery", { delivery_id: fired.delivery_id })).rejects.toThrow(/was deleted/);
  });

  test("a replay is made once for an idempotency key", async () => {
    const endpoint = endpoints.open();
    const { task_id } = await schedule(endpoint.url);
    const { delivery_id } = await deliveryOf(face, task_id);
    await eventually(
      () => face.call("getDelivery", { delivery_id }),
      ({ state }) => state === "succeeded",
    );
    const request = { delivery_id, idempotency_key: unique("key") };
    const { run_id } = await face.call("replayDelivery", request);
    expect((await face.call("replayDelivery", request)).run_id).toBe(run_id);
  });

  test("deliveries are replayed by a filter, as a job that counts what it does", async () => {
    const endpoint = endpoints.open();
    endpoint.respond((_, index) => ({ status: index < 3 ? 500 : 200 }));
    const { url } = endpoint;
    for (let i = 0; i < 3; i++) await failedTask(face, endpoint);
    const filter = { url };
    expect(await face.call("replayDeliveries", { filter, dry_run: true })).toEqual({ matched: 3 });
    const { matched, replay } = await face.call("replayDeliveries", { filter });
    expect([matched, replay.matched]).toEqual([3, 3]);
    const { replay_id } = replay;
    const done = await eventually(
      () => face.call("getReplay", { replay_id }),
      ({ state }) => state !== "running",
    );
    expect(done).toMatchObject({ state: "succeeded", replayed: 3, refused: 0, filter: { url, state: "failed" } });
    await eventually(
      async () => (await face.call("listDeliveries", { url, state: "succeeded" })).items.length,
      (count) => count === 3,
    );
    const { items } = await face.call("listReplays", { limit: 1 });
    expect(items).toEqual([done]);
    expect(await face.call("cancelReplay", { replay_id })).toEqual(done);
  });

  test("a replay keeps its rate, excludes another, and can be called off", async () => {
    const endpoint = endpoints.open();
    endpoint.respond({ status: 500 });
    for (let i = 0; i < 3; i++) await failedTask(face, endpoint);
    const request = { filter: { url: endpoint.url }, rate_per_second: 1 };
    const { replay } = await face.call("replayDeliveries", request);
    await eventually(
      () => face.call("getReplay", { replay_id: replay.replay_id }),
      ({ replayed }) => replayed > 0,
    );
    await expect(face.call("replayDeliveries", request)).rejects.toEqual(refusal("REPLAY_RUNNING"));
    const canceled = await face.call("cancelReplay", { replay_id: replay.replay_id });
    expect(canceled.state).toBe("canceled");
    expect(canceled.replayed).toBeLessThan(3);
  });

  test("what does not exist is not found, and what is out of range is refused", async () => {
    for (const delivery_id of ["dlv_00000000000000000000000000", "nonsense"]) {
      await expect(face.call("getDelivery", { delivery_id })).rejects.toEqual(refusal("DELIVERY_NOT_FOUND"));
      await expect(face.call("replayDelivery", { delivery_id })).rejects.toEqual(refusal("DELIVERY_NOT_FOUND"));
    }
    for (const replay_id of ["rpl_00000000000000000000000000", "nonsense"]) {
      await expect(face.call("getReplay", { replay_id })).rejects.toEqual(refusal("REPLAY_NOT_FOUND"));
      await expect(face.call("cancelReplay", { replay_id })).rejects.toEqual(refusal("REPLAY_NOT_FOUND"));
    }
    const filter = { run_id: "nonsense" };
    expect(await face.call("replayDeliveries", { filter, dry_run: true })).toEqual({ matched: 0 });
    for (const request of [{ status_class: 6 }, { response_status: 99 }, { queue: "a b" }]) {
      await expect(face.call("listDeliveries", request)).rejects.toEqual(refusal("FIELD_INVALID"));
    }
    const fast = face.call("replayDeliveries", { rate_per_second: 0 });
    await expect(fast).rejects.toEqual(refusal("FIELD_INVALID"));
  });
});

/** A task that has failed at the endpoint. */
async function failedTask(face: ServiceFace, { url }: Endpoint): Promise<string> {
  const { task_id } = await schedule(url);
  await eventually(
    async () => (await face.call("listDeliveries", { task_id })).items,
    (items) => items[0]?.state === "failed",
  );
  return task_id;
}

describe("pushes", () => {
  const list = async (query: string) => ok(await carillon.rest("GET", `/delivery/list?${query}`)).items;

  async function push(endpoint: Endpoint, max_retries: number) {
    const queue = unique("q");
    ok(await carillon.rest("POST", "/queue/create", { queue, max_retries }));
    const { subscription_id } = ok(
      await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: endpoint.url }),
    );
    const message = { queue, payload: { n: 1 }, headers: { "x-shop": "7" } };
    const { message_id } = ok(await carillon.rest("POST", "/queue/publish", message));
    return { queue, subscription_id, message_id };
  }

  test("are found by message, subscription and queue, and a dead letter is pushed once more without leaving its place", async () => {
    const endpoint = endpoints.open();
    endpoint.respond((_, index) => ({ status: index === 0 ? 500 : 200 }));
    const { queue, subscription_id, message_id } = await push(endpoint, 0);
    const first = await endpoint.next();
    const [delivery] = await eventually(
      () => list(`message_id=${message_id}`),
      (items) => items[0]?.state === "failed",
    );
    expect(delivery).toMatchObject({
      kind: "push",
      url: endpoint.url,
      message_id,
      subscription_id,
      response_status: 500,
    });
    expect(await list(`queue=${queue}`)).toEqual([delivery]);
    expect(await list(`subscription_id=${subscription_id}`)).toEqual([delivery]);

    const run = ok(await carillon.rest("POST", `/delivery/replay/${delivery.delivery_id}`));
    expect(run).toMatchObject({ kind: "push", trigger: "replay", message_id, replay_of: delivery.run_id });
    const second = await endpoint.next();
    expect(second.headers).toMatchObject({
      "webhook-id": message_id,
      "x-shop": "7",
      "content-type": "application/json",
    });
    expect(second.body.equals(first.body)).toBe(true);
    const done = await eventually(
      () => list(`message_id=${message_id}`),
      (items) => items[0]?.state === "succeeded",
    );
    expect(done).toMatchObject([{ kind: "push", subscription_id, trigger: "replay" }, { attempt: 1 }]);
    const dead = ok(await carillon.rest("GET", `/queue/dlq/list/${queue}`)).items;
    expect(dead).toMatchObject([{ message_id }]);
  });

  test("whose message is acked cannot be replayed, and say so", async () => {
    const endpoint = endpoints.open();
    const { message_id } = await push(endpoint, 0);
    const [delivery] = await eventually(
      () => list(`message_id=${message_id}`),
      (items) => items[0]?.state === "succeeded",
    );
    const { status, body } = await carillon.rest("POST", `/delivery/replay/${delivery.delivery_id}`);
    expect([status, body.error.reason]).toEqual([409, "REPLAY_REFUSED"]);
    expect(body.error.message).toMatch(/hold the message/);
  });
});

test("events are in the log, are replayed with their body, and not to a webhook that is deleted", async () => {
  const endpoint = endpoints.open();
  const hook = ok(await carillon.rest("POST", "/webhook/create", { url: endpoint.url, event_types: ["webhook.*"] }));
  const { run_id } = ok(await carillon.rest("POST", `/webhook/test/${hook.webhook_id}`));
  const first = await endpoint.next();
  const list = async () => ok(await carillon.rest("GET", `/delivery/list?webhook_id=${hook.webhook_id}`)).items;
  const [delivery] = await eventually(list, (items) => items[0]?.state === "succeeded");
  expect(delivery).toMatchObject({ kind: "event", run_id, webhook_id: hook.webhook_id });
  ok(await carillon.rest("POST", `/delivery/replay/${delivery.delivery_id}`));
  expect((await endpoint.next()).body.equals(first.body)).toBe(true);
  ok(await carillon.rest("DELETE", `/webhook/delete/${hook.webhook_id}`));
  const refused = await carillon.rest("POST", `/delivery/replay/${delivery.delivery_id}`);
  expect(refused.body.error.message).toMatch(/the webhook was deleted/);
});

test("another project's deliveries are not replayed by a filter", async () => {
  const headers = await otherProject(carillon);
  const { matched } = ok(await carillon.rest("POST", "/delivery/replay_job/start", { dry_run: true }, headers));
  expect(matched).toBe(0);
});
