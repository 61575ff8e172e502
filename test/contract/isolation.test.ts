import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hashApiKey, newApiKey } from "../../src/domain/api-key.ts";
import { createApiKey } from "../../src/store/api-keys.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { signsWith } from "../support/signing.ts";
import { eventually } from "./calls.ts";

/** An id of every kind that looks right and never existed. */
const ABSENT = {
  cron_id: "cron_00000000000000000000000000",
  run_id: "run_00000000000000000000000000",
  task_id: "task_00000000000000000000000000",
  message_id: "msg_00000000000000000000000000",
  subscription_id: "sub_00000000000000000000000000",
  redrive_id: "rdr_00000000000000000000000000",
  backfill_id: "bfl_00000000000000000000000000",
  endpoint_id: "ep_00000000000000000000000000",
  webhook_id: "wh_00000000000000000000000000",
  delivery_id: "dlv_00000000000000000000000000",
  replay_id: "rpl_00000000000000000000000000",
  key_id: "sigk_00000000000000000000000000",
  queue: "absent",
};

let carillon: TestCarillon;
let foreign: typeof ABSENT;
let strangerKey: string;

beforeAll(async () => {
  carillon = await startTestCarillon();
  const { db } = carillon.database;
  strangerKey = newApiKey();
  const stranger = await ensureProject(db, "stranger", signsWith());
  await createApiKey(db, {
    projectId: stranger.project_id,
    name: "stranger",
    hint: "stranger",
    keyHash: hashApiKey(strangerKey),
  });

  await carillon.rest("POST", "/queue/create", { queue: "mine" }, { authorization: `Bearer ${strangerKey}` });

  const url = "https://api.example.com/hook";
  const job = (await carillon.rest("POST", "/cron/create", { cron_expr: "0 0 1 1 *", url, max_runs: 1 })).body;
  const run = (await carillon.rest("POST", `/cron/pause/${job.cron_id}`)).body;
  expect(run.enabled).toBe(false);
  const since = { since: "2026-01-01T00:00:00Z" };
  const backfill = (await carillon.rest("POST", `/cron/backfill/start/${job.cron_id}`, since)).body;
  const task = (await carillon.rest("POST", "/task/schedule", { url, run_at: "2030-01-01T00:00:00Z" })).body;
  const message = (await carillon.rest("POST", "/queue/publish", { queue: "theirs", payload: 1 })).body;
  const subscription = (await carillon.rest("POST", "/queue/push_subscribe/pushed", { url })).body;
  const redrive = (await carillon.rest("POST", "/queue/dlq/redrive_job/start/theirs")).body;
  const webhook = (await carillon.rest("POST", "/webhook/create", { url })).body;
  const refusedUrl = "https://refused.invalid/hook";
  await carillon.rest("POST", "/task/schedule", { url: refusedUrl, run_at: "2020-01-01T00:00:00Z", retries: 0 });
  const [delivery] = await eventually(
    async () => (await carillon.rest("GET", `/delivery/list?url=${refusedUrl}`)).body.items,
    ([first]) => first?.finished_at !== undefined,
  );
  const { replay } = (
    await carillon.rest("POST", "/delivery/replay_job/start", { filter: { url: "https://nowhere/" } })
  ).body;
  const sent = await eventually(
    async () => (await carillon.rest("GET", `/endpoint/list?url=${refusedUrl}`)).body.items,
    ([first]) => first !== undefined,
  );
  foreign = {
    cron_id: job.cron_id,
    run_id: task.last_run.run_id,
    task_id: task.task_id,
    message_id: message.message_id,
    subscription_id: subscription.subscription_id,
    redrive_id: redrive.redrive_id,
    backfill_id: backfill.backfill.backfill_id,
    endpoint_id: sent[0].endpoint_id,
    webhook_id: webhook.webhook_id,
    delivery_id: delivery.delivery_id,
    replay_id: replay.replay_id,
    key_id: (await carillon.rest("GET", "/signing/list")).body.items[0].key_id,
    queue: "theirs",
  };
});
afterAll(() => carillon[Symbol.asyncDispose]());

const calls: readonly (readonly [method: string, path: string, body?: object])[] = [
  ["GET", "/cron/get/{cron_id}"],
  ["PATCH", "/cron/update/{cron_id}", { name: "mine" }],
  ["DELETE", "/cron/delete/{cron_id}"],
  ["POST", "/cron/pause/{cron_id}"],
  ["POST", "/cron/resume/{cron_id}"],
  ["POST", "/cron/trigger/{cron_id}"],
  ["POST", "/cron/preview", { cron_id: "{cron_id}" }],
  ["GET", "/cron/runs/get/{cron_id}/{run_id}"],
  ["GET", "/cron/runs/list/{cron_id}"],
  ["POST", "/cron/runs/run/{cron_id}/{run_id}"],
  ["GET", "/cron/explain/{cron_id}?at=2026-01-01T00:00:00Z"],
  ["POST", "/cron/backfill/start/{cron_id}", { since: "2026-01-01T00:00:00Z", dry_run: true }],
  ["GET", "/cron/backfill/list/{cron_id}"],
  ["GET", "/cron/backfill/get/{backfill_id}"],
  ["POST", "/cron/backfill/cancel/{backfill_id}"],
  ["GET", "/cron/retention/get/{cron_id}"],
  ["PUT", "/cron/retention/set/{cron_id}", { retention_days: 1 }],
  ["GET", "/task/get/{task_id}"],
  ["GET", "/task/explain/{task_id}"],
  ["POST", "/task/cancel/{task_id}"],
  ["POST", "/task/reschedule/{task_id}", { run_at: "2031-01-01T00:00:00Z" }],
  ["POST", "/task/run_now/{task_id}"],
  ["GET", "/run/list?cron_id={cron_id}"],
  ["GET", "/run/list?task_id={task_id}"],
  ["GET", "/endpoint/get/{endpoint_id}"],
  ["PATCH", "/endpoint/update/{endpoint_id}", { max_rate: 1 }],
  ["POST", "/endpoint/enable/{endpoint_id}"],
  ["POST", "/endpoint/disable/{endpoint_id}"],
  ["GET", "/queue/get/{queue}"],
  ["PATCH", "/queue/update/{queue}", { max_retries: 1 }],
  ["DELETE", "/queue/delete/{queue}"],
  ["POST", "/queue/purge/{queue}"],
  ["GET", "/queue/stats/{queue}"],
  ["POST", "/queue/consume", { queue: "{queue}" }],
  ["GET", "/queue/consume_stream/{queue}"],
  ["POST", "/queue/ack", { queue: "{queue}", message_id: "{message_id}" }],
  ["POST", "/queue/nack", { queue: "{queue}", message_id: "{message_id}" }],
  ["POST", "/queue/extend", { queue: "{queue}", message_id: "{message_id}", visibility_timeout: 5 }],
  ["GET", "/queue/dlq/list/{queue}"],
  ["GET", "/queue/dlq/get/{queue}/{message_id}"],
  ["PATCH", "/queue/dlq/update/{queue}/{message_id}", { priority: 1 }],
  ["POST", "/queue/dlq/purge/{queue}"],
  ["POST", "/queue/dlq/redrive/{queue}"],
  ["POST", "/queue/dlq/redrive/mine", { to_queue: "{queue}" }],
  ["POST", "/queue/dlq/redrive_job/start/{queue}"],
  ["GET", "/queue/dlq/redrive_job/get/{redrive_id}"],
  ["GET", "/queue/dlq/redrive_job/list/{queue}"],
  ["POST", "/queue/dlq/redrive_job/cancel/{redrive_id}"],
  ["GET", "/queue/push_subscription/get/{subscription_id}"],
  ["GET", "/queue/push_subscription/list/{queue}"],
  ["PATCH", "/queue/push_subscription/update/{subscription_id}", { paused: true }],
  ["GET", "/queue/groups/blocked/{queue}"],
  ["GET", "/queue/groups/blocked/mine?subscription_id={subscription_id}"],
  ["POST", "/queue/groups/resume/{queue}"],
  ["POST", "/queue/groups/resume/mine", { subscription_id: "{subscription_id}" }],
  ["POST", "/queue/push_subscription/pause/{subscription_id}"],
  ["POST", "/queue/push_subscription/resume/{subscription_id}"],
  ["POST", "/queue/push_subscription/test/{subscription_id}"],
  ["DELETE", "/queue/push_subscription/delete/{subscription_id}"],
  ["POST", "/queue/push_subscription/rotate_secret/{subscription_id}"],
  ["POST", "/signing/end/{key_id}"],
  ["GET", "/webhook/get/{webhook_id}"],
  ["PATCH", "/webhook/update/{webhook_id}", { enabled: false }],
  ["DELETE", "/webhook/delete/{webhook_id}"],
  ["POST", "/webhook/test/{webhook_id}"],
  ["GET", "/delivery/get/{delivery_id}"],
  ["GET", "/delivery/list?run_id={run_id}"],
  ["GET", "/delivery/list?cron_id={cron_id}"],
  ["POST", "/delivery/replay/{delivery_id}"],
  ["POST", "/delivery/replay_job/start", { filter: { run_id: "{run_id}" }, dry_run: true }],
  ["GET", "/delivery/replay_job/get/{replay_id}"],
  ["POST", "/delivery/replay_job/cancel/{replay_id}"],
  ["POST", "/queue/create", { name: "x", dead_letter_queue: "{queue}" }],
  ["POST", "/queue/push_subscribe/mine", { url: "https://api.example.com", dead_letter_queue: "{queue}" }],
];

/** The answer to a call about `ids`, with the ids and what differs from call to call taken out. */
async function answerAbout(ids: typeof ABSENT, [method, path, body]: (typeof calls)[number]): Promise<string> {
  const fill = (text: string) => text.replace(/\{(\w+)\}/g, (_, name: string) => ids[name as keyof typeof ids]);
  const { status, text } = await carillon.rest(method, fill(path), body && fill(JSON.stringify(body)), {
    authorization: `Bearer ${strangerKey}`,
  });
  const blanked = Object.values(ids).reduce((left, id) => left.replaceAll(id, "ID"), text);
  return `${status} ${blanked.replace(/req_\w+/, "REQUEST")}`;
}

describe("what belongs to another project", () => {
  test.each(calls.map((call) => ({ call, name: call.slice(0, 2).join(" ") })))(
    "$name answers as if it did not exist",
    async ({ call }) => {
      expect(await answerAbout(foreign, call)).toBe(await answerAbout(ABSENT, call));
    },
  );

  test.each([
    "/cron/list",
    "/task/list",
    "/run/list",
    "/queue/list",
    "/webhook/list",
    "/endpoint/list",
    "/delivery/list",
    "/delivery/replay_job/list",
  ])("is not in %s", async (path) => {
    const { status, body } = await carillon.rest("GET", path, undefined, { authorization: `Bearer ${strangerKey}` });
    expect(status).toBe(200);
    expect(JSON.stringify(body)).not.toMatch(new RegExp(Object.values(foreign).join("|")));
  });

  test("is untouched by all these calls", async () => {
    expect((await carillon.rest("GET", `/cron/get/${foreign.cron_id}`)).body).toMatchObject({ state: "paused" });
    expect((await carillon.rest("GET", `/task/get/${foreign.task_id}`)).body).toMatchObject({ state: "scheduled" });
    expect((await carillon.rest("GET", `/queue/stats/${foreign.queue}`)).body).toMatchObject({ available: 1 });
    const path = `/queue/push_subscription/get/${foreign.subscription_id}`;
    expect((await carillon.rest("GET", path)).body).toMatchObject({ paused: false });
    expect((await carillon.rest("GET", `/webhook/get/${foreign.webhook_id}`)).body).toMatchObject({ enabled: true });
  });
});
