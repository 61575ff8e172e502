import { DummyDriver, Kysely, PostgresAdapter, PostgresIntrospector, PostgresQueryCompiler } from "kysely";
import { describe, expect, test } from "vitest";
import type { Database, Db, QueueRow, RunRow } from "../../src/db/schema.ts";
import { dueBackfills } from "../../src/store/backfills.ts";
import { cronHerds } from "../../src/store/cron-jobs.ts";
import { dueCronJobs } from "../../src/store/cron-jobs-firing.ts";
import { overdueJobs } from "../../src/store/cron-overdue.ts";
import { publishRuns, takeTurns } from "../../src/store/cron-publishing.ts";
import {
  countDeadLetters,
  findFreeDeadLetters,
  moveDeadLetters,
  purgeDeadLetters,
} from "../../src/store/dead-letter-moves.ts";
import { buryMessages, listDeadLetters } from "../../src/store/dead-letters.ts";
import { countReplayable, findReplayable, listDeliveries, pruneDeliveries } from "../../src/store/deliveries.ts";
import { claimKey } from "../../src/store/idempotency.ts";
import { expireLeases, leaseMessages, liveLeases, releaseLeases } from "../../src/store/leases.ts";
import { publishMessages, removeAcked } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { leaseDeliveries, settleDeliveries } from "../../src/store/push-deliveries.ts";
import { dueSubscriptions, pushableQueues } from "../../src/store/pushable.ts";
import { finishPush, startPush } from "../../src/store/pushes.ts";
import { foldLaneChanges, queueStats } from "../../src/store/queue-stats.ts";
import { pruneMessages } from "../../src/store/retention.ts";
import { expiredRuns } from "../../src/store/run-expiry.ts";
import { dueRuns } from "../../src/store/runs-due.ts";
import type { RunOwner } from "../../src/store/runs.ts";
import { lapsedRuns } from "../../src/store/runs-leasing.ts";
import { ackMessage, extendLease, nackMessage } from "../../src/store/settlements.ts";
import { walkTasks } from "../../src/store/task-filter.ts";
import { dedent } from "./statement-text.ts";

/**
 * The SQL that store functions send, as files, so that a reviewer sees a changed statement in the diff.
 * Nothing runs here: what the statements do is tested in test/store.
 */
const ID = "00000000-0000-0000-0000-000000000001";
const AT = new Date(0);
const queue: QueueRow = {
  project_id: ID,
  queue_id: ID,
  name: "orders",
  type: "standard",
  dead_letter_queue_id: null,
  lane_id: "1",
  graveyard_id: ID,
  push_lane_id: ID,
  max_retries: 5,
  message_retention_days: 14,
  visibility_timeout_seconds: 30,
  enable_priority: false,
  fair: false,
  max_in_flight: 0,
  rate_limit: 0,
  rate_period_seconds: 1,
  group_max_in_flight: 0,
  group_rate_limit: 0,
  group_rate_period_seconds: 1,
  grouped: false,
  metered: false,
  content_deduplication: false,
  deduplication_window_seconds: 600,
  require_receipt: false,
  paused: false,
  created_at: AT,
  updated_at: AT,
};
const fifo: QueueRow = { ...queue, type: "fifo", grouped: true };
const lease = { limit: 10, visibilitySeconds: 30, requestId: "" };
const message = { payload: Buffer.from("{}"), contentType: "", headers: {}, groupId: "", priority: 0, delaySeconds: 0 };
const nack = { messageId: ID, receipt: ID, requeue: true, delaySeconds: 0, error: "" };
const died = { deadLetteredAt: AT, seq: "1" };
const filter = { reason: "rejected", groupId: "g", headerContains: "h", errorContains: "e" };
const push = { run_id: ID, attempt: 1, fire_at: AT, started_at: AT, lease_token: ID };
const BOUNDS = { find: 50, look: 5_000 };

const job = { project_id: ID, cron_id: ID, queue: "orders", retention_days: 30 } as RunOwner;
const run = { project_id: ID, run_id: ID, cron_id: ID, state: "pending", trigger: "schedule", fire_at: AT } as RunRow;

const queries: Record<string, (db: Db) => Promise<unknown>> = {
  "messages.publish": (db) => publishMessages(db, queue, [message]),
  "messages.publish-fifo": (db) => publishMessages(db, fifo, [message]),
  "messages.remove-acked": (db) => removeAcked(db, queue, [{ message_id: ID, place: "(0,1)" }]),
  "messages.purge": (db) => purgeQueue(db, queue),
  "messages.stats": (db) => queueStats(db, queue),
  "messages.fold-changes": (db) => foldLaneChanges(db),
  "leases.lease": (db) => leaseMessages(db, queue, lease),
  "leases.lease-fifo": (db) => leaseMessages(db, fifo, lease),
  "leases.expire": (db) => expireLeases(db, queue),
  "leases.release": (db) => releaseLeases(db, queue, new Map([[ID, ID]])),
  "leases.live": (db) => liveLeases(db, queue, new Map([[ID, ID]])),
  "settlements.ack": (db) => ackMessage(db, queue, nack),
  "settlements.nack": (db) => nackMessage(db, queue, nack),
  "settlements.extend": (db) => extendLease(db, queue, nack, 30),
  "dead-letters.bury": (db) => buryMessages(db, queue, [{ messageId: ID, reason: "rejected", error: null }]),
  "dead-letters.list": (db) => listDeadLetters(db, queue, "source", {}, died, 50),
  "dead-letters.list-filtered": (db) => listDeadLetters(db, queue, "source", filter, undefined, 50),
  "dead-letters.find": (db) => findFreeDeadLetters(db, queue, filter, { after: died, cut: "1", limit: 1_000 }),
  "dead-letters.move": (db) => moveDeadLetters(db, queue, queue, { laneIds: [ID], messageIds: [ID], seqs: ["1"] }),
  "dead-letters.count": (db) => countDeadLetters(db, queue, { since: AT }),
  "dead-letters.purge": (db) => purgeDeadLetters(db, queue, {}, "1"),
  "push-subscriptions.pushable": (db) => pushableQueues(db, 100, []),
  "push-subscriptions.due": (db) => dueSubscriptions(db, 100, []),
  "push-deliveries.lease": (db) => leaseDeliveries(db, queue, ID, 10, 40),
  "push-deliveries.settle": (db) =>
    settleDeliveries(db, fifo, ID, [{ messageId: ID, receipt: ID, end: { kind: "ack" } }]),
  "pushes.start": (db) => startPush(db, queue, ID, ID, "https://a.example/", 40),
  "pushes.finish": (db) =>
    finishPush(db, ID, push, {
      state: "succeeded",
      error: null,
      record: {
        responseStatus: 200,
        error: null,
        durationMs: 1,
        timings: { firstByteMs: 1 },
        requestHeaders: {},
        responseHeaders: {},
        responseBody: null,
        disable: false,
      },
      retryInSeconds: 0,
    }),
  "idempotency.claim": (db) =>
    claimKey(db, { projectId: ID, operation: "o", resource: "", key: "k", fingerprint: Buffer.alloc(32), ttlSeconds: 60 }),
  "retention.messages": (db) => pruneMessages(db, 1_000),
  "cron-jobs.due": (db) => dueCronJobs(db, 200),
  "cron-jobs.expired": (db) => expiredRuns(db, 100),
  "cron-jobs.overdue": (db) => overdueJobs(db, 100),
  "cron-jobs.publish": (db) => publishRuns(db, ID, [job], [run]),
  "cron-jobs.take-turns": (db) => takeTurns(db, ID, ["orders"]),
  "cron-jobs.herd": (db) => cronHerds(db, ID, AT, 100),
  "backfills.due": (db) => dueBackfills(db, 100),
  "deliveries.list": (db) => listDeliveries(db, ID, { state: "failed", statusClass: 5, until: AT }, ID, 50),
  "deliveries.list-run": (db) => listDeliveries(db, ID, { runId: ID }, undefined, 50),
  "deliveries.count": (db) => countReplayable(db, ID, { cronId: ID }, ID),
  "deliveries.find": (db) => findReplayable(db, ID, { url: "https://a.example/" }, { below: ID }, 200),
  "deliveries.prune": (db) => pruneDeliveries(db, 1_000, 30),
  "runs.due": (db) => dueRuns(db, {
      limit: 264,
      parkedLimit: 264,
      full: [{ projectId: ID, endpointId: ID }],
      beyond: { after: { runAt: "2030-01-01 00:00:00+00", runId: ID }, reads: 2_000 },
    }),
  "runs.lapsed": (db) => lapsedRuns(db, 100),
  "tasks.walk-label": (db) => walkTasks(db, ID, { labels: { tenant: "a" }, states: ["failed"] }, ID, BOUNDS),
  "tasks.walk-states": (db) => walkTasks(db, ID, { states: ["scheduled", "retrying"], since: AT, until: AT }, ID, BOUNDS),
};

/** Every statement that `send` compiles, until it stumbles over a database that answers nothing. */
async function statementsOf(send: (db: Db) => Promise<unknown>): Promise<string> {
  const statements: string[] = [];
  const db = new Kysely<Database>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => new DummyDriver(),
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
    log: ({ query }) => {
      statements.push(query.sql);
    },
  });
  await send(db).catch(() => {});
  return `${statements.map((statement) => `${dedent(statement)};`).join("\n\n")}\n`;
}

describe("the SQL of", () => {
  test.each(Object.entries(queries))("%s is what the file says", async (name, send) => {
    const statements = await statementsOf(send);
    expect(statements.length).toBeGreaterThan(10);
    await expect(statements).toMatchFileSnapshot(`sql/${name}.sql`);
  });
});
