import { create } from "@bufbuild/protobuf";
import { createContextValues, createHandlerContext } from "@connectrpc/connect";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import {
  ConsumeRequestSchema,
  ConsumeStreamRequestSchema,
  QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { Wakeups } from "../../src/db/wakeups.ts";
import { consumeHandlers } from "../../src/rpc/consume-handlers.ts";
import { consumeStream } from "../../src/rpc/consume-stream.ts";
import { type AppContext, createAppContext, principalKey } from "../../src/rpc/context.ts";
import { leaseMessages } from "../../src/store/leases.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import type { NamedQueueRow } from "../../src/store/queues.ts";
import { createEgress, type Egress } from "../../src/webhook/post.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";
import { openSealed, TEST_VAULT } from "../support/signing.ts";

let t: TestDatabase;
let app: AppContext;
let wakeups: Wakeups;
let egress: Egress;
let queue: NamedQueueRow;

beforeAll(async () => {
  t = await testDatabase();
  wakeups = new Wakeups(t.url);
  egress = createEgress({ policy: { allowHttp: false, allowLoopback: false, allow: [] }, open: openSealed });
  app = createAppContext({
    tally: new QueueTally(t.db),
    db: t.db,
    vault: TEST_VAULT,
    wakeups,
    targets: { allowHttp: false, allowLoopback: false, allow: [] },
    egress,
    limits: { maxPayloadBytes: 1_048_576, idempotencySeconds: 86_400, autoCreateQueues: true },
  });
});
afterAll(async () => {
  await egress[Symbol.asyncDispose]();
  await wakeups[Symbol.asyncDispose]();
  await t[Symbol.asyncDispose]();
});
beforeEach(async (context) => {
  queue = await makeQueue(t.db, context.task.id);
});

/** The context of a call that `leave` ends, as the end of its connection does. */
function callOf(method: "consume" | "consumeStream") {
  const values = createContextValues();
  const principal = { projectId: queue.project_id, strictPathBody: false, strictFields: false };
  const ctx = createHandlerContext({
    service: QueueService,
    method: QueueService.method[method],
    protocolName: "connect",
    requestMethod: "POST",
    url: "http://carillon.test/",
    contextValues: values.set(principalKey, principal),
  });
  return { ctx, leave: () => ctx.abort(new Error("the caller left")) };
}

/** What is available now, with how often it failed and how often it was handed out. */
async function available() {
  const rows = await t.db
    .transaction()
    .execute((trx) => leaseMessages(trx, queue, { limit: 10, visibilitySeconds: 30, requestId: "" }));
  return rows.map(({ failure_count, receive_count }) => ({ failure_count, receive_count }));
}

async function untilSomeoneWaits(): Promise<void> {
  for (;;) {
    const { rows } = await sql<{ waits: boolean }>`
      select exists (select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock') as waits`.execute(t.db);
    if (rows[0]?.waits) return;
  }
}

const GIVEN_BACK = [{ failure_count: 0, receive_count: 2 }];

test("a waiting consumer that leaves is not given what comes afterwards", async () => {
  const { ctx, leave } = callOf("consume");
  const request = create(ConsumeRequestSchema, { queue: queue.name, waitSeconds: 20 });
  const answer = consumeHandlers(app).consume(request, ctx);
  await publish(t.db, queue, ["x"], { delaySeconds: 1 });
  await t.advanceClock(2);
  leave();
  await answer;
  // Not leased at all, or given back where its poll came just before it left.
  expect(await available()).toMatchObject([{ failure_count: 0 }]);
});

test("what is leased for a consumer that leaves meanwhile is given back without a failure", async () => {
  await publish(t.db, queue, ["x"]);
  const { ctx, leave } = callOf("consume");
  const answer = consumeHandlers(app).consume(create(ConsumeRequestSchema, { queue: queue.name }), ctx);
  leave();
  await answer;
  expect(await available()).toEqual(GIVEN_BACK);
});

test("what a stream leases while its caller leaves is given back without a failure", async () => {
  await publish(t.db, queue, ["x"]);
  const { ctx, leave } = callOf("consumeStream");
  const request = create(ConsumeStreamRequestSchema, { queue: queue.name });
  const stream = consumeStream(app).consumeStream(request, ctx)[Symbol.asyncIterator]();
  await stream.next();
  // The lease is held up until the caller has left.
  const next = await t.db.transaction().execute(async (trx) => {
    await sql`lock table messages in access exclusive mode`.execute(trx);
    const leasing = stream.next();
    leasing.catch(() => {});
    await untilSomeoneWaits();
    leave();
    return { leasing };
  });
  await expect(next.leasing).rejects.toThrow();
  expect(await available()).toEqual(GIVEN_BACK);
});

test("a stream leases one answer ahead, and gives it back with the rest when its caller leaves", async () => {
  await publish(t.db, queue, ["x", "y", "z"]);
  const { ctx, leave } = callOf("consumeStream");
  const request = create(ConsumeStreamRequestSchema, { queue: queue.name, maxBatch: 1 });
  const stream = consumeStream(app).consumeStream(request, ctx)[Symbol.asyncIterator]();
  await stream.next();
  await stream.next();
  while ((await leased()) < 2);
  leave();
  await stream.return?.();
  while ((await leased()) > 0);
  const neverLeased = { failure_count: 0, receive_count: 1 };
  expect((await available()).toSorted((a, b) => b.receive_count - a.receive_count)).toEqual([
    ...GIVEN_BACK,
    ...GIVEN_BACK,
    neverLeased,
  ]);
});

async function leased(): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::int as count from messages
    where queue_id = ${queue.queue_id} and lease_expires_at is not null`.execute(t.db);
  return rows[0]?.count ?? 0;
}
