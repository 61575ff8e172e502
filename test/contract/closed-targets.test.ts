import { type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { DeliveryService } from "../../gen/scheduling/v1/delivery_service_pb.js";
import { EventService } from "../../gen/scheduling/v1/event_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { Wakeups } from "../../src/db/wakeups.ts";
import { endpointOf } from "../../src/domain/endpoint.ts";
import { Refusal } from "../../src/errors.ts";
import { createAppContext, principalKey } from "../../src/rpc/context.ts";
import { toConnectError } from "../../src/rpc/refusal.ts";
import { routes, SERVICES } from "../../src/rpc/routes.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import { formatAddress } from "../../src/webhook/address.ts";
import { AttemptFailure } from "../../src/webhook/failure.ts";
import { createEgress, type Egress } from "../../src/webhook/post.ts";
import type { TargetPolicy } from "../../src/webhook/target.ts";
import { createDispatcher } from "../../src/worker/dispatcher.ts";
import { EndpointWatch } from "../../src/worker/endpoint-watch.ts";
import { Pusher } from "../../src/worker/pusher.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { openSealed, signsWith, TEST_VAULT } from "../support/signing.ts";
import { CLOSED_URLS } from "../webhook/corpus.ts";

/** Production with plain http allowed, so that no entry passes the test for its scheme alone. */
const TARGETS: TargetPolicy = { allowHttp: true, allowLoopback: false, allow: [] };
const OPEN = "https://hook.example.com/";

let t: TestDatabase;
let wakeups: Wakeups;
let egress: Egress;
let projectId: string;
/** What the connector was asked to dial. It dials nothing. */
const dials: string[] = [];
let app: ReturnType<typeof clients>;

function clients() {
  const context = createAppContext({
    db: t.db,
    wakeups,
    targets: TARGETS,
    vault: TEST_VAULT,
    egress,
    tally: new QueueTally(t.db),
    limits: { maxPayloadBytes: 1_048_576, idempotencySeconds: 86_400, autoCreateQueues: true },
  });
  const transport = createRouterTransport(routes(context), {
    router: {
      interceptors: [
        (next) => async (request) => {
          request.contextValues.set(principalKey, { projectId, strictPathBody: false, strictFields: false });
          try {
            return await next(request);
          } catch (error) {
            throw error instanceof Refusal ? toConnectError(error) : error;
          }
        },
      ],
    },
  });
  return {
    cron: createClient(CronService, transport),
    task: createClient(TaskService, transport),
    queue: createClient(QueueService, transport),
    delivery: createClient(DeliveryService, transport),
    event: createClient(EventService, transport),
  };
}

beforeAll(async () => {
  t = await testDatabase();
  wakeups = new Wakeups(t.url);
  egress = createEgress({
    policy: TARGETS,
    open: openSealed,
    lookup: async () => ["8.8.8.8"],
    connect: async ({ address, port }) => {
      dials.push(`${formatAddress(address)} ${port}`);
      throw new AttemptFailure("connect_failed", "no connection could be made");
    },
  });
  projectId = (await ensureProject(t.db, "test", signsWith())).project_id;
  app = clients();
});
afterAll(async () => {
  await egress[Symbol.asyncDispose]();
  await wakeups[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});

const runAt = { seconds: 0n, nanos: 0 };
const cronExpr = "0 0 1 1 *";

/** Every place of the contract that takes a target, by request and field, each with what must be there first. */
const PLACES: Record<string, () => Promise<(url: string) => Promise<unknown>>> = {
  "CreateCronJobRequest.url": async () => (url) => app.cron.createCronJob({ cronExpr, url }),
  "CreateCronJobRequest.on_failure_webhook": async () => (url) =>
    app.cron.createCronJob({ cronExpr, url: OPEN, onFailureWebhook: url }),
  "UpdateCronJobRequest.url": async () => {
    const { cronJob } = await app.cron.createCronJob({ cronExpr, url: OPEN });
    return (url) => app.cron.updateCronJob({ cronId: cronJob?.cronId ?? "", url });
  },
  "UpdateCronJobRequest.on_failure_webhook": async () => {
    const { cronJob } = await app.cron.createCronJob({ cronExpr, url: OPEN });
    return (url) => app.cron.updateCronJob({ cronId: cronJob?.cronId ?? "", onFailureWebhook: url });
  },
  "ScheduleTaskRequest.url": async () => (url) => app.task.scheduleTask({ url, runAt }),
  "ScheduleTaskRequest.on_failure_webhook": async () => (url) =>
    app.task.scheduleTask({ url: OPEN, runAt, onFailureWebhook: url }),
  "PushSubscribeRequest.url": async () => (url) => app.queue.pushSubscribe({ queue: "q", url }),
  "UpdatePushSubscriptionRequest.url": async () => {
    const { subscription } = await app.queue.pushSubscribe({ queue: "changed", url: OPEN });
    return (url) => app.queue.updatePushSubscription({ subscriptionId: subscription?.subscriptionId ?? "", url });
  },
  "CreateEventWebhookRequest.url": async () => (url) => app.event.createEventWebhook({ url }),
  "UpdateEventWebhookRequest.url": async () => {
    const { webhook } = await app.event.createEventWebhook({ url: OPEN });
    return (url) => app.event.updateEventWebhook({ webhookId: webhook?.webhookId ?? "", url });
  },
};

/** Fields that look as if they took a target, but only say what to look for. */
const FILTERS = ["DeliveryFilter.url", "ListDeliveriesRequest.url", "ListEndpointsRequest.url"];

/** The text fields of a request and of the messages in it whose names are those of targets. */
function targetFields(message: DescMessage): string[] {
  return message.fields.flatMap((field) => {
    if (field.message?.file.proto.package.startsWith("scheduling.")) {
      return targetFields(field.message);
    }
    const isText = field.scalar === ScalarType.STRING;
    return isText && /(^|_)(ur[il]|webhook|callback|target|address)$/.test(field.name)
      ? [`${message.name}.${field.name}`]
      : [];
  });
}

test("the places are all that the contract has", () => {
  const fields = SERVICES.flatMap(({ methods }) => methods.flatMap(({ input }) => targetFields(input)));
  expect(new Set(fields)).toEqual(new Set([...Object.keys(PLACES), ...FILTERS]));
});

/** None given: no webhook, which is no target. */
const isNothing = (place: string, url: string) => url === "" && place.endsWith("on_failure_webhook");

describe("of the corpus' URLs none is taken", () => {
  test.each(Object.keys(PLACES))("as %s", { timeout: 120_000 }, async (place) => {
    const write = await PLACES[place]?.();
    for (const url of CLOSED_URLS.filter((one) => !isNothing(place, one))) {
      const error = await write?.(url).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      expect(error, `${place}: ${JSON.stringify(url)}`).toBeInstanceOf(ConnectError);
      expect((error as ConnectError).code, JSON.stringify(url)).toBe(Code.InvalidArgument);
    }
    expect(dials).toEqual([]);
  });
});

describe("what is in the database all the same", () => {
  /** The URLs of the corpus that a worker can read, each endpoint once, so that no breaker keeps any of them from the guard. */
  const stored = [
    ...new Map(CLOSED_URLS.filter((url) => URL.canParse(url)).map((url) => [endpointOf(url).address, url])).values(),
  ];
  /** Some of each kind: the connector sees all URLs one by one in test/webhook/ssrf.test.ts. */
  const some = stored.filter((_, index) => index % 20 === 0);
  const never = new AbortController().signal;

  /** Makes every due attempt, whatever the wait between retries. */
  async function dispatchAll(): Promise<void> {
    const errors: unknown[] = [];
    const onError = (error: unknown): void => void errors.push(error);
    await using watch = new EndpointWatch({ db: t.db, wakeups, onFault: onError });
    await using dispatcher = createDispatcher({ db: t.db, egress, watch, onError });
    for (let done = 1; done > 0; ) {
      ({ done } = await dispatcher.tick(never));
      await dispatcher.settled();
    }
    const pusher = new Pusher({
      db: t.db,
      wakeups,
      tally: new QueueTally(t.db),
      egress,
      watch,
      concurrency: 8,
      onFault: onError,
    });
    while ((await pusher.tick(never)) > 0) await pusher.stop(60_000);
    expect(errors).toEqual([]);
  }

  /** What the project's records say of its attempts, by kind, without what differs from one to the next. */
  async function said(): Promise<Record<string, readonly string[]>> {
    const { rows } = await sql<{ kind: string; texts: string[] }>`
      select kind, array_agg(distinct concat_ws('|', state, error, response_status::text)) as texts from runs
      where project_id = ${projectId} group by kind`.execute(t.db);
    return Object.fromEntries(rows.map(({ kind, texts }) => [kind, texts]));
  }

  const blocked = ["failed|blocked_address: the target's address is not allowed"];

  beforeEach(async () => {
    for (const table of ["runs", "tasks", "event_webhooks", "push_subscriptions"] as const) {
      await t.db.deleteFrom(table).execute();
    }
    dials.length = 0;
  });

  /** Makes something for each URL that is allowed, and puts the URL in its row behind the handlers' back. */
  async function plant(
    table: "tasks" | "cron_jobs" | "event_webhooks" | "push_subscriptions",
    columns: readonly string[],
    urls: readonly string[],
    make: () => Promise<string>,
  ): Promise<string[]> {
    const ids: string[] = [];
    const id = { tasks: "task", cron_jobs: "cron", event_webhooks: "webhook", push_subscriptions: "subscription" }[
      table
    ];
    for (const url of urls) {
      ids.push(await make());
      const set = sql.join(columns.map((column) => sql`${sql.ref(column)} = ${url}`));
      const newest = sql`(select ${sql.ref(`${id}_id`)} from ${sql.table(table)} order by 1 desc limit 1)`;
      await sql`update ${sql.table(table)} set ${set} where ${sql.ref(`${id}_id`)} = ${newest}`.execute(t.db);
    }
    return ids;
  }

  const retries = { retries: 0, onFailureWebhook: OPEN };

  test("is not dialled for a task, and its records all say the same", { timeout: 300_000 }, async () => {
    expect(stored.length).toBeGreaterThan(200);
    const quarter = stored.filter((_, index) => index % 4 === 0);
    await plant("tasks", ["url"], quarter, async () => {
      return (await app.task.scheduleTask({ url: OPEN, runAt, retries: 0 })).task?.taskId ?? "";
    });
    await dispatchAll();
    expect(dials).toEqual([]);
    expect(await said()).toEqual({ task: blocked });
  });

  test("is not dialled for a cron job, nor for the failure webhook of either", { timeout: 120_000 }, async () => {
    const columns = ["url", "on_failure_webhook"];
    await plant("tasks", columns, some, async () => {
      return (await app.task.scheduleTask({ url: OPEN, runAt, ...retries })).task?.taskId ?? "";
    });
    const jobs = await plant("cron_jobs", columns, some, async () => {
      return (await app.cron.createCronJob({ cronExpr, url: OPEN, ...retries })).cronJob?.cronId ?? "";
    });
    for (const cronId of jobs) await app.cron.triggerCronJob({ cronId });
    // The failure webhook has seven retries, over a day.
    for (let attempt = 0; attempt < 8; attempt++) {
      await dispatchAll();
      await t.advanceClock(45_000);
    }
    expect(dials).toEqual([]);
    expect(await said()).toEqual({ task: blocked, cron: blocked, callback: blocked });
  });

  test("is not dialled for an event webhook", { timeout: 120_000 }, async () => {
    const hooks = await plant("event_webhooks", ["url"], some, async () => {
      return (await app.event.createEventWebhook({ url: OPEN, eventTypes: ["webhook.*"] })).webhook?.webhookId ?? "";
    });
    for (const webhookId of hooks) {
      await app.event.testEventWebhook({ webhookId });
      await t.advanceClock(7);
    }
    await dispatchAll();
    expect(dials).toEqual([]);
    expect(await said()).toEqual({ callback: [blocked[0]?.replace("failed", "retrying")] });
  });

  test("is not dialled for a push, nor for its test", { timeout: 120_000 }, async () => {
    let count = 0;
    const subscriptions = await plant("push_subscriptions", ["url"], some, async () => {
      const queue = `planted-${++count}`;
      await app.queue.createQueue({ queue, maxRetries: 0 });
      const { subscription } = await app.queue.pushSubscribe({ queue, url: OPEN });
      return subscription?.subscriptionId ?? "";
    });
    for (let n = 1; n <= count; n++) await app.queue.publish({ queue: `planted-${n}`, payload: Buffer.from("1") });
    await dispatchAll();
    expect(await said()).toEqual({ push: ["failed|blocked_address"] });
    for (const subscriptionId of subscriptions.slice(0, 5)) {
      const answer = await app.queue.testPushSubscription({ subscriptionId });
      expect(answer).toMatchObject({ delivered: false, error: "blocked_address" });
      expect(answer.responseStatus).toBeUndefined();
    }
    expect(dials).toEqual([]);
  });

  test("is not dialled by a replay", { timeout: 120_000 }, async () => {
    await plant("tasks", ["url"], some, async () => {
      return (await app.task.scheduleTask({ url: OPEN, runAt, retries: 0 })).task?.taskId ?? "";
    });
    await dispatchAll();
    const { items } = await app.delivery.listDeliveries({ limit: 500 });
    expect(items).toHaveLength(some.length);
    for (const { deliveryId } of items) await app.delivery.replayDelivery({ deliveryId });
    await dispatchAll();
    expect((await app.delivery.listDeliveries({ limit: 500 })).items).toHaveLength(2 * some.length);
    expect(dials).toEqual([]);
    expect(await said()).toEqual({ task: blocked });
  });
});
