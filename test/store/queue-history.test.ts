import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { QueueRow } from "../../src/db/schema.ts";
import { expireLeases, leaseMessages } from "../../src/store/leases.ts";
import { publishInLine } from "../../src/store/line.ts";
import { foldHistory, lastHour, pruneHistory, queueHistory, sampleQueues } from "../../src/store/queue-history.ts";
import { foldLaneChanges } from "../../src/store/queue-stats.ts";
import { QueueTally } from "../../src/store/queue-tally.ts";
import { ackMessage, nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(() => {
  project = randomUUID();
});

const NONE = { published: 0, delivered: 0, acked: 0, nacked: 0, expired: 0, dead: 0 };

const history = async (queue: QueueRow, bucketSeconds = 60, since?: Date, until?: Date) =>
  queueHistory(t.db, queue, { since, until, bucketSeconds });

/** Goes to the beginning of the next minute of the service's clock, and returns it. */
async function nextMinute(): Promise<Date> {
  const now = await t.now();
  await t.advanceClock(60 - ((now.getTime() / 1_000) % 60));
  const { rows } = await sql<{ minute: Date }>`select date_bin('1 minute', carillon_now(), 'epoch') as minute`.execute(
    t.db,
  );
  return rows[0]?.minute ?? now;
}

const parts = async (queue: QueueRow) => {
  const { rows } = await sql`select from queue_history where queue_id = ${queue.queue_id}`.execute(t.db);
  return rows.length;
};

describe("the history of a queue", () => {
  test("adds up what the nodes did, minute by minute, whether it is folded or not", async () => {
    const queue = await makeQueue(t.db, project);
    const nodes = [new QueueTally(t.db), new QueueTally(t.db)];
    const first = await nextMinute();
    for (const node of nodes) {
      node.add(queue.project_id, queue.name, "published", 2);
      await node.flush();
      node.add(queue.project_id, queue.name, "published", 1);
      node.add(queue.project_id, queue.name, "delivered", 1);
      await node.flush();
    }
    const second = await nextMinute();
    nodes[0]?.add(queue.project_id, queue.name, "acked", 1);
    await nodes[0]?.flush();
    const expected = [
      { ...NONE, starts_at: first, published: 6, delivered: 2 },
      { ...NONE, starts_at: second, acked: 1 },
    ];
    expect(await history(queue)).toMatchObject(expected);
    expect(await parts(queue)).toBe(3);
    expect(await lastHour(t.db, queue)).toEqual({ ...NONE, published: 6, delivered: 2, acked: 1 });
    await nextMinute();
    await nextMinute();
    await Promise.all([foldHistory(t.db, 100), foldHistory(t.db, 100)]);
    while ((await foldHistory(t.db, 100)) > 0);
    expect(await history(queue)).toMatchObject(expected);
    expect(await parts(queue)).toBe(2);
  });

  test("takes in a part that was written late", async () => {
    const queue = await makeQueue(t.db, project);
    const minute = await nextMinute();
    await t.advanceClock(180);
    for (let late = 0; late < 2; late++) {
      await sql`insert into queue_history (project_id, queue_id, minute, published)
        values (${queue.project_id}, ${queue.queue_id}, ${minute}, 1)`.execute(t.db);
      await foldHistory(t.db, 100);
    }
    expect(await history(queue)).toMatchObject([{ starts_at: minute, published: 2 }]);
    expect(await parts(queue)).toBe(1);
  });

  test("counts leases that ran out and deaths with the transactions that see to them", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true, max_retries: 1 });
    await publish(t.db, queue, ["a", "b"]);
    const lease = () =>
      t.db
        .transaction()
        .execute((trx) => leaseMessages(trx, queue, { limit: 2, visibilitySeconds: 10, requestId: "" }));
    const [held] = await lease();
    const key = { messageId: held?.message_id ?? "", receipt: held?.lease_token ?? "" };
    await t.db
      .transaction()
      .execute((trx) => nackMessage(trx, queue, { ...key, requeue: false, delaySeconds: 0, error: "" }));
    await t.advanceClock(11);
    await t.db.transaction().execute((trx) => expireLeases(trx, queue));
    const failed = t.db.transaction().execute(async (trx) => {
      await lease();
      await t.advanceClock(11);
      await expireLeases(trx, queue);
      throw new Error("rolled back");
    });
    await expect(failed).rejects.toThrow("rolled back");
    expect(await lastHour(t.db, queue)).toEqual({ ...NONE, expired: 1, dead: 1 });
  });

  test("counts what is published by SQL, without repeats", async () => {
    const queue = await makeQueue(t.db, project);
    const once = sql`select carillon_publish(${project}, 'orders', '1'::jsonb, deduplication_key => 'k')`;
    await once.execute(t.db);
    await once.execute(t.db);
    expect(await lastHour(t.db, queue)).toEqual({ ...NONE, published: 1 });
  });

  test("can be asked for in larger buckets, for a time", async () => {
    const queue = await makeQueue(t.db, project);
    const tally = new QueueTally(t.db);
    const minutes: Date[] = [];
    for (let n = 0; n < 7; n++) {
      minutes.push(await nextMinute());
      tally.add(queue.project_id, queue.name, "published", 1);
      await tally.flush();
    }
    const fives = await history(queue, 300);
    expect(fives.reduce((sum, { published }) => sum + published, 0)).toBe(7);
    expect(fives.every(({ starts_at }) => starts_at.getTime() % 300_000 === 0)).toBe(true);
    expect(await history(queue, 60, minutes[2], minutes[4])).toMatchObject([
      { starts_at: minutes[2], published: 1 },
      { starts_at: minutes[3], published: 1 },
    ]);
  });

  test("of a deleted queue does not keep what was counted from being written for the others", async () => {
    const queue = await makeQueue(t.db, project);
    const tally = new QueueTally(t.db);
    tally.add(queue.project_id, "gone", "published", 1);
    tally.add(queue.project_id, queue.name, "published", 1);
    await tally[Symbol.asyncDispose]();
    expect(await lastHour(t.db, queue)).toMatchObject({ published: 1 });
  });

  test("goes back a week", async () => {
    const queue = await makeQueue(t.db, project);
    const tally = new QueueTally(t.db);
    tally.add(queue.project_id, queue.name, "published", 1);
    await tally.flush();
    await t.advanceClock(7 * 86_400 - 60);
    await pruneHistory(t.db, 1_000);
    expect(await parts(queue)).toBe(1);
    await t.advanceClock(121);
    await pruneHistory(t.db, 1_000);
    expect(await parts(queue)).toBe(0);
  });
});

describe("a sample", () => {
  const sampled = async (queue: QueueRow) =>
    (await history(queue)).map(({ depth, oldest_age_seconds }) => [depth, oldest_age_seconds]);

  test("is taken once a minute of what a queue holds, in its line and outside, in flight and not", async () => {
    const queue = await makeQueue(t.db, project);
    await nextMinute();
    const message = {
      payload: Buffer.from("1"),
      contentType: "application/json",
      headers: {},
      groupId: "",
      priority: 0,
      delaySeconds: 0,
    };
    await publishInLine(t.db, queue.project_id, queue.name, [message, message, message]);
    await publish(t.db, queue, ["a"], { delaySeconds: 600 });
    await foldLaneChanges(t.db);
    await publish(t.db, queue, ["b"]);
    await t.advanceClock(20);
    await Promise.all([sampleQueues(t.db), sampleQueues(t.db), sampleQueues(t.db)]);
    expect(await sampled(queue)).toEqual([[5, 20]]);
    await publish(t.db, queue, ["c"]);
    expect(await sampleQueues(t.db)).toBe(0);
    await nextMinute();
    await sampleQueues(t.db);
    expect((await sampled(queue)).map(([depth]) => depth)).toEqual([5, 6]);
  });

  test("shows that a queue has become empty, and is not taken of one that stays so", async () => {
    const queue = await makeQueue(t.db, project, { enable_priority: true });
    await nextMinute();
    const [messageId = ""] = await publish(t.db, queue, ["a"], { ttlSeconds: 3_600 });
    await sampleQueues(t.db);
    await t.db.transaction().execute(async (trx) => {
      await leaseMessages(trx, queue, { limit: 1, visibilitySeconds: 30, requestId: "" });
      await ackMessage(trx, queue, { messageId, receipt: undefined });
    });
    for (let minute = 0; minute < 5; minute++) {
      await nextMinute();
      await sampleQueues(t.db);
    }
    expect(await sampled(queue)).toEqual([
      [1, expect.any(Number)],
      [0, null],
      [0, null],
    ]);
  });
});
