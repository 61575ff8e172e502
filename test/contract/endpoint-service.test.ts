import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { EndpointService } from "../../gen/scheduling/v1/endpoint_service_pb.js";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { type Endpoint, type Endpoints, openEndpoints } from "./endpoints.ts";
import { serviceFaces } from "./service-faces.ts";

let carillon: TestCarillon;
let receivers: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  receivers = await openEndpoints();
});
afterAll(async () => {
  await receivers[Symbol.asyncDispose]();
  await carillon[Symbol.asyncDispose]();
});

/** A task that is due now. */
async function send(url: string, fields: object = {}): Promise<{ readonly task_id: string }> {
  const task = { url, run_at: "2020-01-01T00:00:00Z", ...fields };
  return (await carillon.rest("POST", "/task/schedule", task)).body;
}

async function lastRun(taskId: string) {
  return (await carillon.rest("GET", `/task/get/${taskId}`)).body.last_run;
}

describe.each(serviceFaces(EndpointService, () => carillon))("over $name", (face) => {
  const find = async ({ url }: Pick<Endpoint, "url">) => (await face.call("listEndpoints", { url })).items[0];
  const known = (receiver: Endpoint) => expect.poll(() => find(receiver)).toBeDefined();
  /** The endpoint of a receiver that something was sent to. */
  async function opened(): Promise<{ readonly receiver: Endpoint; readonly id: string }> {
    const receiver = receivers.open();
    await send(receiver.url);
    await receiver.next();
    await known(receiver);
    return { receiver, id: (await find(receiver)).endpoint_id };
  }

  test("an endpoint appears with its first request, one for all queries of its URL", async () => {
    const { receiver, id } = await opened();
    const endpoint = await face.call("getEndpoint", { endpoint_id: id });
    expect(endpoint).toMatchObject({
      endpoint_id: expect.stringMatching(/^ep_[0-9A-Z]{26}$/),
      url: receiver.url,
      state: "closed",
      succeeded: 1,
      failed: 0,
      throttled: 0,
      in_flight: 0,
      waiting: 0,
    });
    for (const absent of ["reason", "max_concurrency", "max_rate", "current_rate", "paused_until", "next_probe_at"]) {
      expect(endpoint[absent], absent).toBeUndefined();
    }
    expect((await find({ url: `${receiver.url}?page=2#top` })).endpoint_id).toBe(id);
  });

  test("limits are set, kept and cleared", async () => {
    const { id } = await opened();
    const limits = { max_concurrency: 3, max_rate: 2.5 };
    expect(await face.call("updateEndpoint", { endpoint_id: id, ...limits })).toMatchObject({
      ...limits,
      current_rate: 2.5,
    });
    expect(await face.call("updateEndpoint", { endpoint_id: id, max_rate: 0.5 })).toMatchObject({
      max_concurrency: 3,
      max_rate: 0.5,
    });
    const clear =
      face.name === "REST" ? { max_concurrency: null, max_rate: null } : { update_mask: "maxConcurrency,maxRate" };
    const cleared = await face.call("updateEndpoint", { endpoint_id: id, ...clear });
    expect(cleared.max_concurrency).toBeUndefined();
    expect(cleared.max_rate).toBeUndefined();
  });

  test.each([{ max_concurrency: 0 }, { max_concurrency: 1_001 }, { max_rate: 0 }, { max_rate: 10_001 }])(
    "refuses %j",
    async (limits) => {
      const refused = face.call("updateEndpoint", { endpoint_id: "ep_00000000000000000000000000", ...limits });
      await expect(refused).rejects.toMatchObject({ reason: "FIELD_INVALID", fields: Object.keys(limits) });
    },
  );

  test("what is due for a disabled endpoint waits, says so, and goes when it is enabled", async () => {
    const { receiver, id } = await opened();
    const disabled = await face.call("disableEndpoint", { endpoint_id: id, reason: "moving house" });
    expect(disabled).toMatchObject({ state: "disabled", reason: "moving house" });
    expect(await face.call("disableEndpoint", { endpoint_id: id })).toEqual(disabled);

    const { task_id: taskId } = await send(receiver.url);
    await expect
      .poll(() => lastRun(taskId))
      .toMatchObject({
        state: "pending",
        attempt: 0,
        waiting_for: "endpoint",
        endpoint_id: id,
      });
    expect(await face.call("getEndpoint", { endpoint_id: id })).toMatchObject({ waiting: 1 });
    expect(receiver.count()).toBe(1);

    expect(await face.call("enableEndpoint", { endpoint_id: id })).toMatchObject({ state: "closed" });
    await receiver.next();
    await expect.poll(() => lastRun(taskId)).toMatchObject({ state: "succeeded" });
    expect((await lastRun(taskId)).waiting_for).toBeUndefined();
  });

  test("an answer 410 disables it", async () => {
    const receiver = receivers.open();
    receiver.respond({ status: 410 });
    await send(receiver.url);
    await expect
      .poll(() => find(receiver))
      .toMatchObject({
        state: "disabled",
        reason: "the receiver answered 410",
      });
  });

  test("the breaker opens, spends no attempts while it is open, and says when it will probe", async () => {
    const receiver = receivers.open();
    receiver.respond({ status: 500 });
    for (let count = 0; count < 10; count++) await send(receiver.url, { retries: 0 });
    await expect
      .poll(() => find(receiver))
      .toMatchObject({
        state: "open",
        reason: "10 of 10 requests in 5 minutes failed; the newest: HTTP 500",
        failed: 10,
      });
    const { changed_at: since, next_probe_at: probe } = await find(receiver);
    expect(Date.parse(probe) - Date.parse(since)).toBe(30_000);
    const { task_id: taskId } = await send(receiver.url);
    await expect.poll(() => lastRun(taskId)).toMatchObject({ waiting_for: "endpoint", attempt: 0 });
    expect(receiver.count()).toBe(10);
    expect(
      (await face.call("listEndpoints", { state: "open" })).items.map(({ url }: { url: string }) => url),
    ).toContain(receiver.url);
  });

  test("lists page by page", async () => {
    await opened();
    await opened();
    const all = (await face.call("listEndpoints", { limit: 500 })).items.map(
      (item: { endpoint_id: string }) => item.endpoint_id,
    );
    const paged: string[] = [];
    for (let cursor = ""; ; ) {
      const page = await face.call("listEndpoints", { limit: 1, ...(cursor !== "" && { cursor }) });
      paged.push(...page.items.map((item: { endpoint_id: string }) => item.endpoint_id));
      if (page.next_cursor === undefined) break;
      cursor = page.next_cursor;
    }
    expect(paged).toEqual(all);
  });

  test("an unknown endpoint is refused", async () => {
    for (const method of ["getEndpoint", "updateEndpoint", "enableEndpoint", "disableEndpoint"]) {
      const call = face.call(method, { endpoint_id: "ep_00000000000000000000000000" });
      await expect(call, method).rejects.toMatchObject({ reason: "ENDPOINT_NOT_FOUND" });
    }
  });
});

test("operators are told elsewhere that an endpoint spends attempts and that it wants nothing more", async () => {
  const operators = receivers.open();
  const failing = receivers.open();
  const hook = { url: operators.url, event_types: ["endpoint.*"] };
  const { webhook_id: webhookId } = (await carillon.rest("POST", "/webhook/create", hook)).body;
  /** The next event about the failing endpoint. */
  const told = async () => {
    for (;;) {
      const { type, data } = JSON.parse((await operators.next()).body.toString());
      if (data.url === failing.url) return { type, ...data };
    }
  };
  const about = { endpoint_id: expect.stringMatching(/^ep_/), url: failing.url };
  failing.respond({ status: 500 });
  await send(failing.url, { retries: 0 });
  const spent = { type: "endpoint.attempts_spent", ...about, state: "closed", percent: 100, error: "HTTP 500" };
  expect(await told()).toMatchObject(spent);
  failing.respond({ status: 410 });
  await send(failing.url);
  expect(await told()).toMatchObject({ type: "endpoint.disabled", ...about, state: "disabled", error: "HTTP 410" });
  await carillon.rest("DELETE", `/webhook/delete/${webhookId}`);
});
