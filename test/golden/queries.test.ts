import { DummyDriver, Kysely, PostgresAdapter, PostgresIntrospector, PostgresQueryCompiler } from "kysely";
import { describe, expect, test } from "vitest";
import type { Database, Db, QueueRow } from "../../src/db/schema.ts";
import { dueCronJobs } from "../../src/store/cron-jobs-firing.ts";
import {
  countDeadLetters,
  findFreeDeadLetters,
  moveDeadLetters,
  purgeDeadLetters,
} from "../../src/store/dead-letter-moves.ts";
import { buryMessages, listDeadLetters } from "../../src/store/dead-letters.ts";
import { claimKey } from "../../src/store/idempotency.ts";
import { expireLeases, leaseMessages, liveLeases, releaseLeases } from "../../src/store/leases.ts";
import { publishMessages, removeAcked } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { pushableQueues } from "../../src/store/push-subscriptions.ts";
import { finishPush, startPush } from "../../src/store/pushes.ts";
import { foldLaneChanges, queueStats } from "../../src/store/queue-stats.ts";
import { pruneMessages } from "../../src/store/retention.ts";
import { dueRuns, lapsedRuns } from "../../src/store/runs-leasing.ts";
import { ackMessage, extendLease, nackMessage } from "../../src/store/settlements.ts";

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
const push = { run_id: ID, attempt: 1, fire_at: AT, lease_token: ID };

const queries: Record<string, (db: Db) => Promise<unknown>> = {
  "messages.publish": (db) => publishMessages(db, queue, [message]),
  "messages.publish-fifo": (db) => publishMessages(db, fifo, [message]),
  "messages.remove-acked": (db) => removeAcked(db, queue, [ID]),
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
  "dead-letters.bury": (db) => buryMessages(db, queue, [ID], { reason: "rejected", error: null }),
  "dead-letters.list": (db) => listDeadLetters(db, queue, "source", {}, died, 50),
  "dead-letters.list-filtered": (db) => listDeadLetters(db, queue, "source", filter, undefined, 50),
  "dead-letters.find": (db) => findFreeDeadLetters(db, queue, filter, { after: died, cut: "1", limit: 1_000 }),
  "dead-letters.move": (db) => moveDeadLetters(db, queue, queue, { laneIds: [ID], messageIds: [ID], seqs: ["1"] }),
  "dead-letters.count": (db) => countDeadLetters(db, queue, { since: AT }),
  "dead-letters.purge": (db) => purgeDeadLetters(db, queue, {}, "1"),
  "push-subscriptions.pushable": (db) => pushableQueues(db, 100),
  "pushes.start": (db) => startPush(db, queue, ID, ID, 40),
  "pushes.finish": (db) =>
    finishPush(db, ID, push, {
      state: "succeeded",
      responseStatus: 200,
      error: null,
      durationMs: 1,
      responseBody: null,
      retryInSeconds: 0,
    }),
  "idempotency.claim": (db) =>
    claimKey(db, { projectId: ID, operation: "o", resource: "", key: "k", fingerprint: Buffer.alloc(32), ttlSeconds: 60 }),
  "retention.messages": (db) => pruneMessages(db, 1_000),
  "cron-jobs.due": (db) => dueCronJobs(db, 200),
  "runs.due": (db) => dueRuns(db, 64),
  "runs.lapsed": (db) => lapsedRuns(db, 100),
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

function dedent(statement: string): string {
  const lines = statement.split("\n").filter((line) => line.trim() !== "");
  const indents = lines.slice(1).map((line) => line.length - line.trimStart().length);
  const depth = Math.min(...indents, Number.MAX_SAFE_INTEGER);
  return [lines[0]?.trim(), ...lines.slice(1).map((line) => line.slice(depth).trimEnd())].filter(Boolean).join("\n");
}

describe("the SQL of", () => {
  test.each(Object.entries(queries))("%s is what the file says", async (name, send) => {
    const statements = await statementsOf(send);
    expect(statements.length).toBeGreaterThan(10);
    await expect(statements).toMatchFileSnapshot(`sql/${name}.sql`);
  });
});
