import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { ACME, consume, createCron, createQueue, FAR_AWAY, ok, publish, refused } from "./calls.ts";
import { type CurlAnswer, curl } from "./curl.ts";
import { EXAMPLES } from "./documented-examples.ts";
import { type Capability, RETURNS } from "./documented-shapes.ts";
import { expectAbsent, expectShape } from "./shape.ts";

// Without workers nothing fires, so that no target of the examples is ever dialled.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

/**
 * The documented example with real things in place of its placeholders: ID, RUN_ID and QUEUE in the path, and members
 * of the body by name. Checks that it succeeds with every documented field and returns the body.
 */
async function run(
  capability: Capability,
  path: Readonly<Record<string, string>> = {},
  body: Readonly<Record<string, string>> = {},
): Promise<CurlAnswer["body"]> {
  let script: string = EXAMPLES[capability];
  const put = (pattern: RegExp, replacement: string): void => {
    expect(script).toMatch(pattern);
    script = script.replace(pattern, () => replacement);
  };
  for (const [placeholder, value] of Object.entries(path)) {
    put(new RegExp(`/${placeholder}(?=[/ ])`), `/${encodeURIComponent(value)}`);
  }
  for (const [member, value] of Object.entries(body)) {
    put(new RegExp(`"${member}": "[^"]*"`), `"${member}": ${JSON.stringify(value)}`);
  }
  const [answer] = await curl(script, { url: carillon.url, key: TEST_KEY });
  expect(answer?.status, JSON.stringify(answer?.body)).toBe(200);
  expectShape(answer?.body, RETURNS[capability]);
  return answer?.body;
}

describe("with a real cron job, the documented example of", () => {
  test("cron.get answers it, next_run_at included while it has one", async () => {
    const { cron_id } = await createCron(carillon, { name: "weekly report" });
    const body = await run("scheduling.cron.get", { ID: cron_id });
    expect(body).toMatchObject({ cron_id, name: "weekly report", cron_expr: FAR_AWAY, task: ACME, timezone: "UTC" });
    expect(body.next_run_at).toBe("2090-01-01T00:00:00.000Z");
  });

  test("cron.update with {} answers it unchanged", async () => {
    const created = await createCron(carillon);
    expect(await run("scheduling.cron.update", { ID: created.cron_id })).toEqual(created);
  });

  test("cron.pause stops it: no next_run_at", async () => {
    const { cron_id } = await createCron(carillon);
    const body = await run("scheduling.cron.pause", { ID: cron_id });
    expect(body).toMatchObject({ cron_id, enabled: false, state: "paused" });
    expectAbsent(body, "next_run_at");
  });

  test("cron.resume lets it fire again", async () => {
    const { cron_id } = await createCron(carillon);
    await run("scheduling.cron.pause", { ID: cron_id }, { cron_id });
    const body = await run("scheduling.cron.resume", { ID: cron_id }, { cron_id });
    expect(body).toMatchObject({ cron_id, enabled: true, next_run_at: "2090-01-01T00:00:00.000Z" });
  });

  test("cron.trigger and cron.runs.get answer the run", async () => {
    const { cron_id } = await createCron(carillon);
    const { run_id, state } = await run("scheduling.cron.trigger", { ID: cron_id });
    expect(run_id).toMatch(/^run_/);
    expect(state).toBe("pending");
    const got = await run("scheduling.cron.runs.get", { ID: cron_id, RUN_ID: run_id });
    expect(got).toMatchObject({ run_id, cron_id, state: "pending" });
    expectAbsent(got, "finished_at", "response_status", "error");
  });

  test("cron.retention.set with 0 days and cron.retention.get agree", async () => {
    const { cron_id } = await createCron(carillon);
    expect(await run("scheduling.cron.retention.get", { ID: cron_id })).toEqual({ cron_id, retention_days: 30 });
    expect(await run("scheduling.cron.retention.set", { ID: cron_id })).toEqual({ cron_id, retention_days: 0 });
    expect(await run("scheduling.cron.retention.get", { ID: cron_id })).toEqual({ cron_id, retention_days: 0 });
  });

  test("cron.delete deletes it", async () => {
    const { cron_id } = await createCron(carillon);
    expect(await run("scheduling.cron.delete", { ID: cron_id })).toEqual({ cron_id, deleted: true });
    refused(await carillon.rest("GET", `/cron/get/${cron_id}`), 404, "NOT_FOUND", "CRON_JOB_NOT_FOUND");
  });
});

test("with a real target and time, the documented example of task.schedule schedules a task", async () => {
  const body = await run("scheduling.task.schedule", {}, { task: ACME, run_at: "2030-01-31T09:00:00Z" });
  expect(body).toMatchObject({
    task_id: expect.stringMatching(/^task_/),
    task: ACME,
    run_at: "2030-01-31T09:00:00.000Z",
    state: "scheduled",
  });
});

test("with a run to list, the documented example of run.list shows it", async () => {
  const { cron_id } = await createCron(carillon);
  const { run_id } = ok(await carillon.rest("POST", `/cron/trigger/${cron_id}`));
  const { items } = await run("scheduling.run.list");
  expect(items[0]).toMatchObject({ run_id, cron_id });
  expectShape(items[0], RETURNS["scheduling.cron.runs.get"]);
});

describe("with a real queue, the documented example of", () => {
  test("queue.get and queue.update answer its settings", async () => {
    const deadLetters = await createQueue(carillon);
    const QUEUE = await createQueue(carillon, { type: "fifo", max_retries: 2, dead_letter_queue: deadLetters });
    const settings = { queue: QUEUE, type: "fifo", max_retries: 2, dead_letter_queue: deadLetters };
    expect(await run("scheduling.queue.get", { QUEUE })).toMatchObject(settings);
    expect(await run("scheduling.queue.update", { QUEUE })).toMatchObject(settings);
  });

  test("queue.get leaves dead_letter_queue out where none is set", async () => {
    expectAbsent(await run("scheduling.queue.get", { QUEUE: await createQueue(carillon) }), "dead_letter_queue");
  });

  test("queue.stats counts, and leaves oldest_age_seconds out while nothing is available", async () => {
    const QUEUE = await createQueue(carillon);
    const empty = await run("scheduling.queue.stats", { QUEUE });
    expect(empty).toMatchObject({ queue: QUEUE, available: 0, in_flight: 0, dlq: 0 });
    expectAbsent(empty, "oldest_age_seconds");
    await publish(carillon, QUEUE);
    expect(await run("scheduling.queue.stats", { QUEUE })).toMatchObject({ available: 1, oldest_age_seconds: 0 });
  });

  test("queue.consume and queue.ack hand out a message and remove it", async () => {
    const queue = await createQueue(carillon);
    const message_id = await publish(carillon, queue, { payload: { n: 1 } });
    const { messages } = await run("scheduling.queue.consume", {}, { queue });
    expect(messages).toEqual([expect.objectContaining({ message_id, payload: { n: 1 } })]);
    expect(await run("scheduling.queue.ack", {}, { queue, message_id })).toMatchObject({ message_id, acked: true });
  });

  test("queue.nack gives the message back", async () => {
    const queue = await createQueue(carillon);
    const message_id = await publish(carillon, queue);
    await consume(carillon, queue);
    const body = await run("scheduling.queue.nack", {}, { queue, message_id });
    expect(body).toMatchObject({ message_id, nacked: true, requeued: true });
  });

  test("queue.dlq.list and queue.dlq.redrive show dead letters and put them back", async () => {
    const QUEUE = await createQueue(carillon, { max_retries: 0 });
    const message_id = await publish(carillon, QUEUE);
    await consume(carillon, QUEUE);
    ok(await carillon.rest("POST", "/queue/nack", { queue: QUEUE, message_id }));
    const { items } = await run("scheduling.queue.dlq.list", { QUEUE });
    expect(items).toEqual([expect.objectContaining({ message_id, source_queue: QUEUE })]);
    expect(await run("scheduling.queue.dlq.redrive", { QUEUE })).toMatchObject({ queue: QUEUE, redriven: 1 });
    expect(await consume(carillon, QUEUE)).toHaveLength(1);
  });

  test("queue.purge counts what it removed", async () => {
    const QUEUE = await createQueue(carillon);
    await publish(carillon, QUEUE);
    await publish(carillon, QUEUE);
    expect(await run("scheduling.queue.purge", { QUEUE })).toEqual({ queue: QUEUE, purged: 2 });
  });

  test("queue.push_subscribe answers the subscription", async () => {
    const QUEUE = await createQueue(carillon);
    const body = await run("scheduling.queue.push_subscribe", { QUEUE }, { queue: QUEUE });
    expect(body).toMatchObject({ queue: QUEUE, url: "https://api.acme.com/order-handler" });
  });

  test("queue.delete deletes it", async () => {
    const QUEUE = await createQueue(carillon);
    expect(await run("scheduling.queue.delete", { QUEUE })).toEqual({ queue: QUEUE, deleted: true });
    refused(await carillon.rest("GET", `/queue/get/${QUEUE}`), 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
  });
});
