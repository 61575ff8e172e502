import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import { redriveDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { hasDeadLetters } from "../../src/store/dead-letters.ts";
import { handOut } from "../../src/store/hand-outs.ts";
import { claimKey, type IdempotencyClaim, pruneIdempotencyKeys, storeReply } from "../../src/store/idempotency.ts";
import { leaseMessages } from "../../src/store/leases.ts";
import { publishInLine } from "../../src/store/line.ts";
import { claimFromLine } from "../../src/store/line-claims.ts";
import type { MessageRow } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { deleteQueue, lockQueue, updateQueue } from "../../src/store/queues.ts";
import { pruneDroppedLanes } from "../../src/store/retention.ts";
import { nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { deadLetters, makeQueue, publish } from "../support/queues.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(() => {
  project = randomUUID();
});

function lease(queue: QueueRow): Promise<MessageRow[]> {
  return inTransaction((trx) => leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" }));
}

function inTransaction<T>(work: (trx: Db) => Promise<T>): Promise<T> {
  return t.db.transaction().execute(work);
}

/** A transaction that stays open until it is told to go on. */
function openTransaction<T>(first: (trx: Db) => Promise<T>) {
  const began = Promise.withResolvers<T>();
  const goOn = Promise.withResolvers<void>();
  const ended = inTransaction(async (trx) => {
    began.resolve(await first(trx));
    await goOn.promise;
    return trx;
  });
  ended.catch(began.reject);
  return {
    began: began.promise,
    async commit() {
      goOn.resolve();
      await ended;
    },
  };
}

/** Resolves when some transaction waits for a lock of another, or when `instead` has come. */
async function untilSomeoneWaits(instead?: Promise<unknown>): Promise<void> {
  let over = false;
  const end = () => {
    over = true;
  };
  instead?.then(end, end);
  while (!over) {
    const { rows } = await sql<{ waits: boolean }>`
      select exists (select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock') as waits`.execute(t.db);
    if (rows[0]?.waits) return;
  }
}

const reject = (message: MessageRow | undefined) => ({
  messageId: message?.message_id ?? "",
  receipt: message?.lease_token ?? undefined,
  requeue: false,
  delaySeconds: 0,
  error: "",
});

async function pruneLanes(): Promise<void> {
  while ((await pruneDroppedLanes(t.db, 10)) > 0);
}

describe("a message that dies", () => {
  test("is kept by its own queue when the dead letter queue was deleted after its queue was read", async () => {
    const grave = await makeQueue(t.db, project, { name: "grave" });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: grave.queue_id });
    await publish(t.db, queue, ["x"]);
    const [message] = await lease(queue);
    await inTransaction((trx) => deleteQueue(trx, grave));

    // The row of the queue is the one from before, as a pusher has it that waited for its receiver.
    await inTransaction((trx) => nackMessage(trx, queue, reject(message)));
    await pruneLanes();
    expect(await deadLetters(t.db, queue)).toMatchObject([{ dead_reason: "rejected" }]);
  });

  test("holds up the deletion of the dead letter queue that takes it", async () => {
    const grave = await makeQueue(t.db, project, { name: "grave" });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: grave.queue_id });
    await publish(t.db, queue, ["x"]);
    const [message] = await lease(queue);
    const dying = openTransaction((trx) => nackMessage(trx, queue, reject(message)));
    await dying.began;
    const deletion = inTransaction(async (trx) => {
      const locked = await lockQueue(trx, grave.project_id, "grave");
      return locked && hasDeadLetters(trx, queue);
    });
    await untilSomeoneWaits();
    await dying.commit();
    expect(await deletion).toBe(true);
  });

  test("comes back before others by its priority, where the queue counts it", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true });
    await publish(t.db, queue, ["urgent"], { priority: 9 });
    await inTransaction(async (trx) => nackMessage(trx, queue, reject((await lease(queue))[0])));
    await publish(t.db, queue, ["plain"]);
    await inTransaction((trx) => redriveDeadLetters(trx, queue, queue, {}, 10));
    expect((await lease(queue))[0]?.payload.toString()).toBe("urgent");
  });
});

test("a message that is being handed out while its queue is purged is purged too", async () => {
  const queue = await makeQueue(t.db, project);
  await publish(t.db, queue, ["a", "b"]);
  const leasing = openTransaction((trx) =>
    leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" }),
  );
  expect(await leasing.began).toHaveLength(1);
  const purging = inTransaction((trx) => purgeQueue(trx, queue));
  await untilSomeoneWaits(purging);
  await leasing.commit();
  expect(await purging).toBe(2);
  const { rows } = await sql`
    select message_id from messages where queue_id = ${queue.queue_id}
    union all select message_id from message_bodies where queue_id = ${queue.queue_id}`.execute(t.db);
  expect(rows).toEqual([]);
});

test("a message stored by a call that had read the queue before its deletion goes too", async () => {
  const queue = await makeQueue(t.db, project);
  await inTransaction((trx) => deleteQueue(trx, queue));
  await pruneLanes();
  await publish(t.db, queue, ["late"]);
  await pruneLanes();
  const left = () =>
    t.db.selectFrom("messages").select("message_id").where("project_id", "=", queue.project_id).execute();
  expect(await left()).toEqual([]);
  const lanes = () => t.db.selectFrom("dropped_lanes").selectAll().where("project_id", "=", queue.project_id).execute();
  expect(await lanes()).toHaveLength(3);
  await t.advanceClock(3_601);
  await pruneLanes();
  expect(await lanes()).toEqual([]);
});

test("an idempotency key that is claimed anew while its old row is being pruned is kept", async () => {
  const claim: IdempotencyClaim = {
    projectId: randomUUID(),
    operation: "o",
    resource: "",
    key: "k",
    fingerprint: Buffer.alloc(32),
    ttlSeconds: 60,
  };
  const answer = { reply: Buffer.from("old"), warning: null };
  await inTransaction(async (trx) => {
    await claimKey(trx, claim);
    await storeReply(trx, claim, answer);
  });
  await t.advanceClock(61);
  const second = openTransaction(async (trx) => {
    expect(await claimKey(trx, claim)).toEqual({ kind: "claimed" });
    await storeReply(trx, claim, { ...answer, reply: Buffer.from("new") });
  });
  await second.began;
  const pruned = pruneIdempotencyKeys(t.db, 1_000);
  await untilSomeoneWaits(pruned);
  await second.commit();
  await pruned;
  expect(await inTransaction((trx) => claimKey(trx, claim))).toMatchObject({
    kind: "replay",
    reply: Buffer.from("new"),
  });
});

describe("a limit that is set", () => {
  const plain = { payload: Buffer.from("x"), contentType: "", headers: {}, groupId: "", priority: 0, delaySeconds: 0 };

  test("waits for a hand-out that does not know of it, and counts what that leased", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["a", "b"], { delaySeconds: 1 });
    await t.advanceClock(2);
    const leasing = openTransaction((trx) =>
      leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" }),
    );
    expect(await leasing.began).toHaveLength(1);
    const next = inTransaction((trx) => updateQueue(trx, queue, { max_in_flight: 1 })).then(() =>
      handOut(t.db, queue.project_id, queue.name, [{ limit: 10 }]),
    );
    await untilSomeoneWaits(next);
    await leasing.commit();
    expect(await next).toEqual([[]]);
  });

  test("keeps a claim that waited for it from handing out what is not counted", async () => {
    const queue = await makeQueue(t.db, project);
    await publishInLine(t.db, queue.project_id, queue.name, [plain, plain]);
    const setting = openTransaction((trx) => updateQueue(trx, queue, { max_in_flight: 1 }));
    await setting.began;
    const claiming = claimFromLine(t.db, queue.project_id, queue.name, [{ limit: 2 }]);
    await untilSomeoneWaits(claiming);
    await setting.commit();
    expect((await claiming)?.messages).toEqual([[]]);
    expect((await handOut(t.db, queue.project_id, queue.name, [{ limit: 2 }]))?.[0]).toHaveLength(1);
  });
});
