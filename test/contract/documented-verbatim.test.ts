import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, TEST_KEY, type TestCarillon } from "../support/carillon.ts";
import { ok, refused, warning } from "./calls.ts";
import { type CurlAnswer, curl } from "./curl.ts";
import { END_TO_END, EXAMPLES } from "./documented-examples.ts";
import { type Capability, RETURNS } from "./documented-shapes.ts";
import { expectShape } from "./shape.ts";

// Without workers nothing fires, so that no target of the examples is ever dialled.
let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

async function run(capability: Capability): Promise<CurlAnswer> {
  const [answer] = await curl(EXAMPLES[capability], { url: carillon.url, key: TEST_KEY });
  if (answer === undefined) throw new Error("curl printed no answer");
  return answer;
}

/** Runs the example as documented and checks that it succeeds with every documented field. */
async function runs(capability: Capability): Promise<CurlAnswer> {
  const answer = await run(capability);
  expect(answer.status, JSON.stringify(answer.body)).toBe(200);
  expectShape(answer.body, RETURNS[capability]);
  return answer;
}

test("there is an example and a documented return for each of the 28 capabilities", () => {
  expect(Object.keys(EXAMPLES)).toHaveLength(28);
  expect(Object.keys(EXAMPLES).sort()).toEqual(Object.keys(RETURNS).sort());
});

describe("as documented, cron", () => {
  test("create answers the new cron job", async () => {
    const { body } = await runs("scheduling.cron.create");
    expect(body).toMatchObject({
      cron_id: expect.stringMatching(/^cron_[0-9A-HJKMNP-TV-Z]{26}$/),
      name: "api.acme.com/weekly",
      schedule: "0 9 * * 1",
      url: "https://api.acme.com/weekly",
      enabled: true,
      next_run_at: expect.stringMatching(/T09:00:00\.000Z$/),
    });
    expect(new Date(body.next_run_at).getUTCDay(), "a Monday").toBe(1);
  });

  test("list answers cron jobs with every documented field", async () => {
    await runs("scheduling.cron.create");
    const { body } = await runs("scheduling.cron.list");
    expect(body.items.length).toBeGreaterThan(0);
    for (const item of body.items) {
      expectShape(item, RETURNS["scheduling.cron.create"]);
      expectShape(item, RETURNS["scheduling.cron.get"]);
    }
  });

  test.each([
    "scheduling.cron.get",
    "scheduling.cron.update",
    "scheduling.cron.delete",
    "scheduling.cron.pause",
    "scheduling.cron.resume",
    "scheduling.cron.trigger",
    "scheduling.cron.retention.get",
    "scheduling.cron.retention.set",
  ] as const)("%s of the placeholder ID answers 404", async (capability) => {
    refused(await run(capability), 404, "NOT_FOUND", "CRON_JOB_NOT_FOUND");
  });

  test("runs.get of the placeholders ID and RUN_ID answers 404", async () => {
    refused(await run("scheduling.cron.runs.get"), 404, "NOT_FOUND", "RUN_NOT_FOUND");
  });
});

describe("as documented, task and run", () => {
  test("task.schedule with placeholders answers 400 and names the field", async () => {
    const error = refused(await run("scheduling.task.schedule"), 400, "INVALID_ARGUMENT", "FIELD_INVALID");
    expect(error.details).toContainEqual({ field: "run_at", message: expect.stringContaining("RFC 3339") });
  });

  test("run.list answers a page", async () => {
    await runs("scheduling.run.list");
  });
});

describe("as documented, queue", () => {
  test("publish stores a message in a queue that it creates, and says so", async () => {
    const answer = await runs("scheduling.queue.publish");
    expect(answer.body.message_id).toMatch(/^msg_[0-9A-HJKMNP-TV-Z]{26}$/);
    expect(warning(answer)).toContain("queue orders did not exist and was created");
    const [message] = ok(await carillon.rest("POST", "/queue/consume", { queue: "orders" })).messages;
    expect(message).toMatchObject({ message_id: answer.body.message_id, payload: { order_id: "o_123" }, priority: 5 });
  });

  test("create makes a queue called ...", async () => {
    const { body } = await runs("scheduling.queue.create");
    expect(body).toMatchObject({ queue: "...", type: "standard", max_retries: 5, visibility_timeout_default: 30 });
  });

  test("list answers queues with every documented field", async () => {
    await runs("scheduling.queue.create");
    const { body } = await runs("scheduling.queue.list");
    expect(body.items.length).toBeGreaterThan(0);
    for (const item of body.items) expectShape(item, RETURNS["scheduling.queue.get"]);
  });

  test("publish_batch of no messages answers no ids", async () => {
    expect((await runs("scheduling.queue.publish_batch")).body).toMatchObject({ message_ids: [] });
  });

  test("consume of the empty queue ... answers no messages", async () => {
    await runs("scheduling.queue.create");
    expect((await runs("scheduling.queue.consume")).body).toMatchObject({ messages: [] });
  });

  test("ack and nack of the message ... say that there is none", async () => {
    await runs("scheduling.queue.create");
    expect((await runs("scheduling.queue.ack")).body).toMatchObject({ acked: false, reason: "not_found" });
    const nacked = (await runs("scheduling.queue.nack")).body;
    expect(nacked).toMatchObject({ nacked: false, requeued: false, reason: "not_found" });
  });

  test.each([
    "scheduling.queue.get",
    "scheduling.queue.update",
    "scheduling.queue.delete",
    "scheduling.queue.purge",
    "scheduling.queue.stats",
    "scheduling.queue.dlq.list",
    "scheduling.queue.dlq.redrive",
  ] as const)("%s of the placeholder QUEUE answers 404", async (capability) => {
    refused(await run(capability), 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
  });

  test("push_subscribe subscribes the queue QUEUE, which it creates", async () => {
    const answer = await runs("scheduling.queue.push_subscribe");
    expect(answer.body).toMatchObject({
      subscription_id: expect.stringMatching(/^sub_[0-9A-HJKMNP-TV-Z]{26}$/),
      queue: "QUEUE",
      url: "https://api.acme.com/order-handler",
    });
    expect(warning(answer)).toContain("queue QUEUE did not exist and was created");
    expect(warning(answer)).toContain("body.queue ignored, path names the queue");
    ok(await carillon.rest("DELETE", "/queue/delete/QUEUE"));
  });
});

test("S44: the end-to-end script runs as documented; what it does to the placeholder ID answers 404", async () => {
  const answers = await curl(END_TO_END, { url: carillon.url, key: TEST_KEY });
  expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 404, 404, 404, 404, 404]);
});
