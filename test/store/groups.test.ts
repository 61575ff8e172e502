import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import { redriveDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { listBlockedGroups, queueBlock, refreshGroups } from "../../src/store/groups.ts";
import { expireLeases, leaseMessages, leasesOf, releaseLeases } from "../../src/store/leases.ts";
import { type MessageRow, publishMessages } from "../../src/store/messages.ts";
import { purgeQueue } from "../../src/store/purge.ts";
import { deleteQueue, findQueue, type QueueChanges, type QueueSettings, updateQueue } from "../../src/store/queues.ts";
import { pruneMessages } from "../../src/store/retention.ts";
import { ackMessage, ackMessages, extendLease, nackMessage } from "../../src/store/settlements.ts";
import { groupKeeperTick } from "../../src/worker/group-keeper.ts";
import { prunerTick } from "../../src/worker/pruner.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { groupsAndTruth } from "../support/groups.ts";
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

function consume(queue: QueueRow, limit = 1, visibilitySeconds = 30): Promise<MessageRow[]> {
  return inTransaction(async (trx) => {
    await expireLeases(trx, queue);
    return leaseMessages(trx, queue, { limit, visibilitySeconds, requestId: "" });
  });
}

function inTransaction<T>(work: (trx: Db) => Promise<T>): Promise<T> {
  return t.db.transaction().execute(work);
}

async function change(queue: QueueRow, changes: QueueChanges): Promise<QueueRow> {
  await inTransaction((trx) => updateQueue(trx, queue, changes));
  const changed = await findQueue(t.db, queue.project_id, queue.name);
  if (changed === undefined) throw new Error("no queue");
  return changed;
}

const key = (row: MessageRow | undefined) => ({
  messageId: row?.message_id ?? "",
  receipt: row?.lease_token ?? undefined,
});
const ack = (queue: QueueRow, row: MessageRow | undefined) => inTransaction((trx) => ackMessage(trx, queue, key(row)));
const nack = (queue: QueueRow, row: MessageRow | undefined, how: { requeue?: boolean; delaySeconds?: number } = {}) =>
  inTransaction((trx) => nackMessage(trx, queue, { ...key(row), requeue: true, delaySeconds: 0, error: "", ...how }));
const text = (rows: readonly MessageRow[]) => rows.map((row) => row.payload.toString());
const groupsOf = (rows: readonly MessageRow[]) => rows.map((row) => row.group_id);

const plainMessage = { payload: Buffer.from("x"), contentType: "", headers: {}, priority: 0, delaySeconds: 0 };

/** Publishes one message to each of the groups, in one call. */
const publishEach = (queue: QueueRow, groups: readonly string[]) =>
  inTransaction((trx) =>
    publishMessages(
      trx,
      queue,
      groups.map((groupId) => ({ ...plainMessage, groupId })),
    ),
  );

/** A seeded source of choices: the same seed makes the same test. */
function chooser(seed: number) {
  let state = seed;
  const below = (n: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  return { below, pick: <T>(items: readonly T[]): T => items[below(items.length)] as T };
}

describe("the rows of groups", () => {
  test.each<{ kind: string; settings: Partial<QueueSettings>; seed: number }>([
    { kind: "a FIFO queue", settings: { type: "fifo" }, seed: 1 },
    { kind: "a fair queue", settings: { fair: true }, seed: 2 },
    {
      kind: "a queue with limits",
      settings: { group_max_in_flight: 2, group_rate_limit: 9, enable_priority: true },
      seed: 3,
    },
  ])("say what the messages of $kind say, whatever happens to those", async ({ settings, seed }) => {
    const { below, pick } = chooser(seed);
    const failed = await makeQueue(t.db, project, { name: "failed", ...settings });
    const queue = await makeQueue(t.db, project, {
      ...settings,
      max_retries: 1,
      dead_letter_queue_id: failed.queue_id,
    });
    let held: MessageRow[] = [];
    const settle = async (how: (row: MessageRow) => Promise<unknown>) => {
      const [row] = held.splice(below(held.length), 1);
      if (row !== undefined) await how(row);
    };
    const steps: Record<string, () => Promise<unknown>> = {
      publish: () => publish(t.db, queue, ["a", "b"], { groupId: pick(["x", "y", "z", ""]), priority: below(10) }),
      delay: () => publish(t.db, queue, ["later"], { groupId: pick(["x", "d"]), delaySeconds: 20 }),
      consume: async () => held.push(...(await consume(queue, 1 + below(6)))),
      ack: () => settle((row) => ack(queue, row)),
      nack: () => settle((row) => nack(queue, row, { delaySeconds: pick([0, 15]), requeue: below(4) > 0 })),
      end: () => settle((row) => inTransaction((trx) => extendLease(trx, queue, key(row), 0))),
      extend: () => settle((row) => inTransaction((trx) => extendLease(trx, queue, key(row), 60))),
      release: () => releaseLeases(t.db, queue, leasesOf(held.splice(0, 2))),
      wait: () => t.advanceClock(pick([1, 10, 40])),
      redrive: () => inTransaction((trx) => redriveDeadLetters(trx, queue, queue, {}, 2)),
      age: async () => {
        if (below(10) > 0) return;
        await t.advanceClock(15 * 86_400);
        await pruneMessages(t.db, 100);
      },
      purge: async () => below(10) === 0 && inTransaction((trx) => purgeQueue(trx, queue)),
      regroup: () =>
        inTransaction((trx) =>
          updateQueue(trx, queue, { group_max_in_flight: pick([0, 2]), fair: pick([true, false]) }),
        ),
    };
    const names = [...Object.keys(steps), "publish", "consume", "consume", "ack", "ack"];
    for (let i = 0; i < 240; i++) {
      const name = pick(names);
      await steps[name]?.();
      if (i % 6 > 0) continue;
      for (const lane of [queue, failed]) {
        const now = await change(lane, {});
        const { said, truth } = await groupsAndTruth(t.db, lane);
        expect(said, `after ${name}, step ${i}`).toEqual(now.grouped ? truth : []);
      }
    }
    held = [];
  });

  test("are right when a queue is grouped while it is published to and consumed", async () => {
    const plain = await makeQueue(t.db, project);
    let over = false;
    const publisher = async (name: string) => {
      for (let n = 0; !over; n++) await publish(t.db, plain, ["x", "y"], { groupId: `${name}${n % 7}` });
    };
    const consumer = async () => {
      while (!over) for (const row of await consume(plain, 3)) await ack(plain, row);
    };
    const work = [publisher("a"), publisher("b"), consumer()];
    for (let i = 0; i < 4; i++) {
      await change(plain, { fair: i % 2 === 0 });
      await new Promise((resolve) => setImmediate(resolve));
    }
    const grouped = await change(plain, { fair: true });
    over = true;
    await Promise.all(work);
    const { said, truth } = await groupsAndTruth(t.db, grouped);
    expect(said).toEqual(truth);
    expect(truth.length).toBeGreaterThan(0);
  });

  test("miss no change that commits late, however many came after it", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["held"], { groupId: "slow" });
    const [slow] = await consume(queue);
    const acked = Promise.withResolvers<void>();
    const goOn = Promise.withResolvers<void>();
    // Its change gets a number now and can be seen when the transaction ends.
    const acking = inTransaction(async (trx) => {
      await ackMessage(trx, queue, key(slow));
      acked.resolve();
      await goOn.promise;
    });
    await acked.promise;
    for (let i = 0; i < 6; i++) {
      await publishEach(
        queue,
        Array.from({ length: 700 }, (_, n) => `${i}-${n}`),
      );
      while ((await inTransaction((trx) => refreshGroups(trx, queue))) > 0);
    }
    const floors = () => t.db.selectFrom("group_marks").selectAll().where("queue_id", "=", queue.queue_id).execute();
    expect(await floors()).toHaveLength(1);
    goOn.resolve();
    await acking;
    const { said, truth } = await groupsAndTruth(t.db, queue);
    expect(said).toEqual(truth);
    expect(said.map((group) => group.group_id)).not.toContain("slow");
  });

  test("go with the queue", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["x"], { groupId: "g" });
    await inTransaction((trx) => refreshGroups(trx, queue));
    await publish(t.db, queue, ["y"], { groupId: "g" });
    await inTransaction((trx) => deleteQueue(trx, queue));
    while ((await prunerTick(t.db, new AbortController().signal)) > 0);
    for (const table of ["message_groups", "group_changes", "group_marks"] as const) {
      expect(await t.db.selectFrom(table).selectAll().where("queue_id", "=", queue.queue_id).execute()).toEqual([]);
    }
  });

  test("are kept for a while when a group has no messages left, and then deleted", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publishEach(queue, ["gone", "back"]);
    for (const row of await consume(queue, 2)) await ack(queue, row);
    while ((await inTransaction((trx) => refreshGroups(trx, queue))) > 0);
    const known = async () => {
      const rows = await t.db
        .selectFrom("message_groups")
        .select("group_id")
        .where("queue_id", "=", queue.queue_id)
        .execute();
      return rows.map((row) => row.group_id).sort();
    };
    while ((await prunerTick(t.db, new AbortController().signal)) > 0);
    expect(await known()).toEqual(["back", "gone"]);
    await publishEach(queue, ["back"]);
    while ((await inTransaction((trx) => refreshGroups(trx, queue))) > 0);
    await t.advanceClock(61);
    while ((await prunerTick(t.db, new AbortController().signal)) > 0);
    expect(await known()).toEqual(["back"]);
  });

  test("hold nobody up for long when a queue is to be grouped while a transaction is open that publishes to it", async () => {
    const queue = await makeQueue(t.db, project);
    await inTransaction(async (trx) => {
      await publishMessages(trx, queue, [{ ...plainMessage, groupId: "open" }]);
      await expect(change(queue, { fair: true })).rejects.toMatchObject({ code: "55P03" });
    });
    expect(groupsOf(await consume(await change(queue, { fair: true }), 10))).toEqual(["open"]);
  });

  test("are brought up to date where nobody consumes, but for what one hand-out can take in", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publishEach(
      queue,
      Array.from({ length: 1_200 }, (_, n) => `g${n}`),
    );
    while ((await groupKeeperTick(t.db, new AbortController().signal)) > 0);
    const waiting = await t.db.selectFrom("group_changes").selectAll().where("queue_id", "=", queue.queue_id).execute();
    expect(waiting.length).toBeLessThanOrEqual(1_000);
    expect(await consume(queue, 500)).toHaveLength(500);
  });
});

describe("the cost of a hand-out", () => {
  /** Blocks that a hand-out of so many messages touches, which is undone. */
  const blocksTouched = async (queue: QueueRow, limit: number): Promise<number> => {
    const undo = new Error("undo");
    let blocks = 0;
    await inTransaction(async (trx) => {
      const { rows } = await sql<{ "QUERY PLAN": [{ Plan: { "Shared Hit Blocks": number } }] }>`
        explain (analyze, buffers, format json)
        select carillon_hand_out(${queue.project_id}, ${queue.queue_id}, ${limit}, 30, '')`.execute(trx);
      blocks = rows[0]?.["QUERY PLAN"][0].Plan["Shared Hit Blocks"] ?? 0;
      throw undo;
    }).catch((error) => {
      if (error !== undo) throw error;
    });
    return blocks;
  };

  test.each<{ kind: string; settings: Partial<QueueSettings> }>([
    { kind: "FIFO", settings: { type: "fifo" } },
    { kind: "fair", settings: { fair: true } },
  ])("of a $kind queue does not grow while an old transaction keeps what is over", async ({ settings }) => {
    const queue = await makeQueue(t.db, project, settings);
    const groups = Array.from({ length: 20 }, (_, n) => `g${n}`);
    for (let i = 0; i < 5; i++) await publishEach(queue, groups);
    const cycle = async () => {
      const rows = await consume(queue, groups.length);
      await inTransaction((trx) => ackMessages(trx, queue, rows.map(key)));
      await publishEach(queue, groupsOf(rows));
    };
    await t.db
      .transaction()
      .setIsolationLevel("repeatable read")
      .execute(async (old) => {
        await old.selectFrom("messages").select("message_id").limit(1).execute();
        for (let i = 0; i < 10; i++) await cycle();
        const before = await blocksTouched(queue, groups.length);
        for (let i = 0; i < 60; i++) await cycle();
        expect(await blocksTouched(queue, groups.length)).toBeLessThan(1.6 * before);
      });
  });
});

describe("a FIFO queue", () => {
  test("keeps the order of each group, one in flight, under many consumers that ack, nack and give back", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo", max_retries: 1_000 });
    const groups = 12;
    const each = 12;
    const next = Array.from({ length: groups }, () => 0);
    const out = new Set<number>();
    let left = groups * each;
    const publisher = async () => {
      for (let n = 0; n < each; n++) {
        for (let g = 0; g < groups; g++) await publish(t.db, queue, [`${g}:${n}`], { groupId: `g${g}` });
      }
    };
    const consumer = async (seed: number) => {
      const { below } = chooser(seed);
      while (left > 0) {
        for (const row of await consume(queue, 1 + below(4))) {
          const [g = 0, n = 0] = row.payload.toString().split(":").map(Number);
          expect(out.has(g), `two of group ${g} in flight`).toBe(false);
          expect(n, `group ${g}`).toBe(next[g]);
          out.add(g);
          const choice = below(6);
          // What the database allows begins with the commit, which is before we hear of it: so the books come first.
          out.delete(g);
          if (choice === 0) await nack(queue, row);
          else if (choice === 1) await inTransaction((trx) => extendLease(trx, queue, key(row), 0));
          else if (choice === 2) await releaseLeases(t.db, queue, leasesOf([row]));
          else {
            next[g] = n + 1;
            left -= 1;
            expect(await ack(queue, row)).toMatchObject({ acked: true, late: false });
          }
        }
      }
    };
    await Promise.all([publisher(), ...[1, 2, 3, 4, 5].map(consumer)]);
    expect(next).toEqual(Array.from({ length: groups }, () => each));
    expect((await groupsAndTruth(t.db, queue)).said).toEqual([]);
  });

  test("serves every group in turn, however much waits in one of them", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publish(t.db, queue, ["a1", "a2", "a3", "a4"], { groupId: "a" });
    await publish(t.db, queue, ["b1", "b2"], { groupId: "b" });
    const seen: string[] = [];
    for (let i = 0; i < 5; i++) {
      const [row] = await consume(queue);
      seen.push(...text(row === undefined ? [] : [row]));
      await ack(queue, row);
    }
    expect(seen).toEqual(["a1", "b1", "a2", "b2", "a3"]);
  });

  test("steps over a message whose retention has ended", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo", message_retention_days: 1 });
    await publish(t.db, queue, ["old"]);
    await t.advanceClock(86_401);
    await publish(t.db, queue, ["new"]);
    expect(text(await consume(queue, 10))).toEqual(["new"]);
  });

  test("hands out others while the first message of a group is locked by somebody else", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    await publishEach(queue, ["a", "b"]);
    await inTransaction(async (trx) => {
      await trx
        .selectFrom("messages")
        .select("message_id")
        .where("group_id", "=", "a")
        .where("queue_id", "=", queue.queue_id)
        .forUpdate()
        .execute();
      expect(groupsOf(await consume(queue))).toEqual(["b"]);
    });
    expect(groupsOf(await consume(queue))).toEqual(["a"]);
  });
});

describe("a fair queue", () => {
  test("serves the group with the least in flight first, then the one that waited longest for its turn", async () => {
    const queue = await makeQueue(t.db, project, { fair: true });
    await publishEach(queue, ["a", "a", "a", "a", "a", "b", "b", "c"]);
    expect(groupsOf(await consume(queue, 3))).toEqual(["a", "b", "c"]);
    expect(groupsOf(await consume(queue, 2))).toEqual(["a", "b"]);
    await publishEach(queue, ["d", "d", "d"]);
    expect(groupsOf(await consume(queue, 3))).toEqual(["d", "d", "a"]);
  });

  test("makes a quiet group wait no longer behind a noisy one than in an idle queue", async () => {
    const queue = await makeQueue(t.db, project, { fair: true });
    for (let i = 0; i < 10; i++)
      await publishEach(
        queue,
        Array.from({ length: 1_000 }, () => "noisy"),
      );
    // Eight workers hold a message each of the noisy group, and take the next one when they are done with it.
    const held = await consume(queue, 8);
    expect(new Set(groupsOf(held))).toEqual(new Set(["noisy"]));
    for (let i = 0; i < 40; i++) {
      await publishEach(queue, [`quiet${i % 4}`]);
      await ack(queue, held.shift());
      const [quiet] = await consume(queue);
      expect(quiet?.group_id, `hand-out ${i}`).toBe(`quiet${i % 4}`);
      await ack(queue, quiet);
      held.push(...(await consume(queue)));
      expect(held.at(-1)?.group_id).toBe("noisy");
    }
  });

  test("hands everything out when there is only one group", async () => {
    const queue = await makeQueue(t.db, project, { fair: true });
    await publishEach(
      queue,
      Array.from({ length: 50 }, () => "only"),
    );
    expect(await consume(queue, 30)).toHaveLength(30);
    expect(await consume(queue, 30)).toHaveLength(20);
  });

  test("prefers a higher priority within a group", async () => {
    const queue = await makeQueue(t.db, project, { fair: true, enable_priority: true });
    await publish(t.db, queue, ["low"], { groupId: "g" });
    await publish(t.db, queue, ["later"], { groupId: "g", priority: 9, delaySeconds: 60 });
    await publish(t.db, queue, ["high"], { groupId: "g", priority: 9 });
    expect(text(await consume(queue, 10))).toEqual(["high", "low"]);
    await t.advanceClock(61);
    expect(text(await consume(queue, 10))).toContain("later");
  });
});

test("messages that wait when a queue becomes fair are handed out fairly, and all of them when it ceases to be", async () => {
  const plain = await makeQueue(t.db, project);
  await publishEach(plain, ["a", "a", "a", "b"]);
  const [first] = await consume(plain);
  expect(first?.group_id).toBe("a");
  const fair = await change(plain, { fair: true });
  expect(groupsOf(await consume(fair))).toEqual(["b"]);
  const again = await change(fair, { fair: false });
  expect(groupsOf(await consume(again, 10))).toEqual(["a", "a"]);
});

describe("the list of blocked groups", () => {
  const blocked = (queue: QueueRow, after?: string, limit = 100) =>
    inTransaction((trx) => listBlockedGroups(trx, queue, after, limit));

  test("says of a FIFO queue what each group waits for, and until when", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo", group_rate_limit: 1, group_rate_period_seconds: 600 });
    await publishEach(queue, ["busy", "busy", "failing", "free", "spent"]);
    await publish(t.db, queue, ["x"], { groupId: "late", delaySeconds: 100 });
    const rows = await consume(queue, 10, 60);
    const of = (group: string) => rows.find((row) => row.group_id === group);
    await nack(queue, of("failing"), { delaySeconds: 50 });
    await ack(queue, of("free"));
    await ack(queue, of("spent"));
    await publishEach(queue, ["spent", "new"]);
    await t.advanceClock(10);
    expect(await blocked(queue)).toMatchObject([
      {
        group_id: "busy",
        reason: "in_flight",
        message_id: of("busy")?.message_id,
        until: of("busy")?.lease_expires_at,
        depth: 2,
        in_flight: 1,
      },
      { group_id: "failing", reason: "retrying", message_id: of("failing")?.message_id, failure_count: 1, depth: 1 },
      { group_id: "late", reason: "delayed", until: expect.any(Date), failure_count: 0 },
      { group_id: "spent", reason: "rate_limited", until: expect.any(Date), message_id: null, depth: 1 },
    ]);
    expect((await blocked(queue))[0]?.oldest_age_seconds).toBeGreaterThanOrEqual(10);
    expect((await blocked(queue, "busy", 2)).map((row) => row.group_id)).toEqual(["failing", "late"]);
    await ack(queue, of("busy"));
    expect((await blocked(queue))[0]).toMatchObject({ group_id: "busy", reason: "rate_limited" });
  });

  test("has a group at its limit only while more of it waits", async () => {
    const queue = await makeQueue(t.db, project, { group_max_in_flight: 1 });
    await publishEach(queue, ["full", "full", "served"]);
    await consume(queue, 10);
    expect(await blocked(queue)).toMatchObject([
      { group_id: "full", reason: "concurrency_limited", until: null, depth: 2, in_flight: 1 },
    ]);
  });

  test("comes with what holds up the whole queue", async () => {
    const queue = await makeQueue(t.db, project, { max_in_flight: 1, rate_limit: 1, rate_period_seconds: 60 });
    await publishEach(queue, ["", ""]);
    expect(await queueBlock(t.db, queue)).toBeUndefined();
    const [row] = await consume(queue);
    expect(await queueBlock(t.db, queue)).toEqual({ reason: "concurrency_limited", until: null });
    await ack(queue, row);
    expect(await queueBlock(t.db, queue)).toEqual({ reason: "rate_limited", until: expect.any(Date) });
    expect(await queueBlock(t.db, await change(queue, { paused: true }))).toEqual({ reason: "paused", until: null });
  });
});
