import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Db, QueueRow } from "../../src/db/schema.ts";
import type { DeadLetterFilter } from "../../src/store/dead-letter-filter.ts";
import { countDeadLetters, drawCut, purgeDeadLetters, redriveDeadLetters } from "../../src/store/dead-letter-moves.ts";
import { findDeadLetter, listDeadLetters, lockDeadLetter, updateDeadLetter } from "../../src/store/dead-letters.ts";
import { expireLeases, leaseMessages, leasesOf, releaseLeases } from "../../src/store/leases.ts";
import type { MessageRow } from "../../src/store/messages.ts";
import { putPushSubscription } from "../../src/store/push-subscriptions.ts";
import { closesDeadLetterCycle, type NamedQueueRow } from "../../src/store/queues.ts";
import { startRedrive } from "../../src/store/redrives.ts";
import { nackMessage } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { deadLetters, makeQueue, publish } from "../support/queues.ts";
import { watching } from "../support/statements.ts";

let t: TestDatabase;
let project: string;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());
beforeEach(() => {
  project = randomUUID();
});

const inTransaction = <T>(work: (trx: Db) => Promise<T>): Promise<T> => t.db.transaction().execute(work);

function consume(queue: QueueRow, limit = 1): Promise<MessageRow[]> {
  return inTransaction(async (trx) => {
    await expireLeases(trx, queue);
    return leaseMessages(trx, queue, { limit, visibilitySeconds: 30, requestId: "" });
  });
}

async function consumeOne(queue: QueueRow): Promise<MessageRow> {
  const [message] = await consume(queue);
  if (message === undefined) throw new Error("nothing to consume");
  return message;
}

const nack = (
  queue: QueueRow,
  { message_id: messageId }: MessageRow,
  rest: { requeue?: boolean; error?: string } = {},
) =>
  inTransaction((trx) =>
    nackMessage(trx, queue, { messageId, receipt: undefined, requeue: true, delaySeconds: 0, error: "", ...rest }),
  );

/** Publishes one message for each payload and kills it. Returns the ids. */
async function kill(queue: NamedQueueRow, payloads: readonly string[], message = {}, error = ""): Promise<string[]> {
  const ids = await publish(t.db, queue, payloads, message);
  for (const row of await consume(queue, payloads.length)) await nack(queue, row, { requeue: false, error });
  return ids;
}

const redrive = (queue: QueueRow, filter: DeadLetterFilter, limit = 10, to = queue) =>
  inTransaction((trx) => redriveDeadLetters(trx, queue, to, filter, limit));
const text = (rows: readonly MessageRow[]) => rows.map((row) => row.payload.toString());

describe("dead letters", () => {
  test("come after max_retries failures, nacks and lease expiries alike", async () => {
    const queue = await makeQueue(t.db, project, { max_retries: 2 });
    await publish(t.db, queue, ["x"]);
    await consumeOne(queue);
    await t.advanceClock(31);
    expect(await nack(queue, await consumeOne(queue))).toEqual({ nacked: true, requeued: true });
    const last = await consumeOne(queue);
    expect(await nack(queue, last, { error: "boom" })).toEqual({
      nacked: true,
      requeued: false,
      reason: "max_retries",
    });
    expect(await deadLetters(t.db, queue)).toMatchObject([
      {
        message_id: last.message_id,
        dead_reason: "max_retries",
        error: "boom",
        source_queue: "orders",
        receive_count: 3,
      },
    ]);
  });

  test("go to the named queue, where they can be consumed, and come back by redrive", async () => {
    const failed = await makeQueue(t.db, project, { name: "failed" });
    const queue = await makeQueue(t.db, project, { name: "work", dead_letter_queue_id: failed.queue_id });
    await kill(queue, ["x", "y"]);
    expect(await countDeadLetters(t.db, queue, {})).toBe(2);
    const kept = await listDeadLetters(t.db, failed, "self", {}, undefined, 10);
    expect(text(kept.rows).sort()).toEqual(["x", "y"]);
    await consumeOne(failed);
    expect(await redrive(queue, {}), "the one that is held stays").toBe(1);
    expect(await countDeadLetters(t.db, queue, {})).toBe(0);
    expect(await countDeadLetters(t.db, queue, {}, { leased: true })).toBe(1);
    expect(await consume(queue, 10)).toMatchObject([{ failure_count: 0 }]);
  });

  test("are redriven oldest first, by id and since an instant", async () => {
    const queue = await makeQueue(t.db, project);
    const [first = ""] = await kill(queue, ["1"]);
    await t.advanceClock(10);
    await kill(queue, ["2"]);
    await t.advanceClock(10);
    await kill(queue, ["3"]);
    const [third] = await deadLetters(t.db, queue);
    expect(await redrive(queue, { since: third?.dead_lettered_at ?? new Date(0) })).toBe(1);
    expect(await redrive(queue, { messageIds: [first] })).toBe(1);
    expect(await redrive(queue, {})).toBe(1);
    expect(text(await consume(queue, 10))).toEqual(["3", "1", "2"]);
  });

  test("that died in one millisecond are listed, paged and redriven in the order of their deaths", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo", max_retries: 0 });
    const payloads = Array.from({ length: 30 }, (_, i) => `${i}`);
    for (const payload of payloads) await publish(t.db, queue, [payload], { groupId: payload });
    await consume(queue, 30);
    await t.advanceClock(31);
    await consume(queue);
    const times = (await deadLetters(t.db, queue)).map((row) => row.dead_lettered_at?.getTime());
    expect(new Set(times).size).toBe(1);
    const paged: string[] = [];
    for (let after: Parameters<typeof listDeadLetters>[4]; ; ) {
      const page = await listDeadLetters(t.db, queue, "source", {}, after, 7);
      paged.push(...text(page.rows));
      after = page.next;
      if (after === undefined) break;
    }
    expect(paged).toEqual(payloads.toReversed());
    expect(await redrive(queue, {}, 20)).toBe(20);
    expect(await redrive(queue, {}, 20)).toBe(10);
    expect(text(await consume(queue, 30))).toEqual(payloads);
  });

  test("cannot be sent in a circle", async () => {
    const a = await makeQueue(t.db, project, { name: "a" });
    const b = await makeQueue(t.db, project, { name: "b", dead_letter_queue_id: a.queue_id });
    const c = await makeQueue(t.db, project, { name: "c" });
    await putPushSubscription(t.db, {
      project_id: c.project_id,
      queue_id: c.queue_id,
      url: "https://api.example.com/",
      mode: "compete",
      max_retries: null,
      visibility_timeout_seconds: null,
      dead_letter_queue_id: b.queue_id,
    });
    await inTransaction(async (trx) => {
      const closes = (from: QueueRow, to: QueueRow) =>
        closesDeadLetterCycle(trx, a.project_id, from.queue_id, to.queue_id);
      expect(await closes(a, b)).toBe(true);
      expect(await closes(b, a)).toBe(false);
      expect(await closes(a, c), "by way of a subscription of c").toBe(true);
      expect(await closes(c, c)).toBe(true);
    });
  });
});

describe("a filter", () => {
  test("finds by id, reason, time, group, error and header, and by all of them together", async () => {
    const queue = await makeQueue(t.db, project, { max_retries: 0 });
    const [plain = ""] = await kill(queue, ["plain"]);
    await t.advanceClock(60);
    const [grouped = ""] = await kill(
      queue,
      ["grouped"],
      { groupId: "g", headers: { "x-tenant": "Acme" } },
      "HTTP 500",
    );
    await t.advanceClock(60);
    await publish(t.db, queue, ["expired"]);
    await consumeOne(queue);
    await t.advanceClock(31);
    await consume(queue);
    const [{ dead_lettered_at: later, message_id: expired } = {}, { dead_lettered_at: middle } = {}] =
      await deadLetters(t.db, queue);
    const cases: [DeadLetterFilter, string[]][] = [
      [{}, [plain, grouped, expired ?? ""]],
      [{ messageIds: [plain, queue.queue_id] }, [plain]],
      [{ messageIds: [] }, []],
      [{ reason: "max_retries" }, [expired ?? ""]],
      [{ since: middle ?? undefined }, [grouped, expired ?? ""]],
      [{ until: middle ?? undefined }, [plain]],
      [{ since: middle ?? undefined, until: later ?? undefined }, [grouped]],
      [{ groupId: "g" }, [grouped]],
      [{ groupId: "" }, [plain, expired ?? ""]],
      [{ errorContains: "500" }, [grouped]],
      [{ errorContains: "lease" }, [expired ?? ""]],
      [{ headerContains: "tenant" }, [grouped]],
      [{ headerContains: "Acm" }, [grouped]],
      [{ headerContains: "acme" }, []],
      [{ headerContains: "%" }, []],
      [{ groupId: "g", reason: "rejected", headerContains: "Acme", errorContains: "HTTP" }, [grouped]],
      [{ groupId: "g", reason: "max_retries" }, []],
    ];
    for (const [filter, wanted] of cases) {
      const { rows } = await listDeadLetters(t.db, queue, "source", filter, undefined, 10);
      expect(rows.map((row) => row.message_id).toReversed(), JSON.stringify(filter)).toEqual(wanted);
      expect(await countDeadLetters(t.db, queue, filter), JSON.stringify(filter)).toBe(wanted.length);
    }
  });

  test("that hardly anything meets is followed from page to page and from step to step", async () => {
    const queue = await makeQueue(t.db, project);
    await publish(t.db, queue, ["rare"], { headers: { "x-a": "needle" } });
    for (let i = 0; i < 6; i++) {
      await publish(
        t.db,
        queue,
        Array.from({ length: 1_000 }, () => "x"),
      );
    }
    await inTransaction(async (trx) => {
      const rows = await leaseMessages(trx, queue, { limit: 10_000, visibilitySeconds: 30, requestId: "" });
      expect(rows).toHaveLength(6_001);
    });
    await t.advanceClock(31);
    const mortal = { ...queue, max_retries: 0 };
    while ((await inTransaction((trx) => expireLeases(trx, mortal))) > 0);
    const filter = { headerContains: "needle" };
    const first = await listDeadLetters(t.db, queue, "source", filter, undefined, 10);
    expect(first.rows).toEqual([]);
    const second = await listDeadLetters(t.db, queue, "source", filter, first.next, 10);
    expect(text(second.rows)).toEqual(["rare"]);
    expect(second.next).toBeUndefined();
    expect(await countDeadLetters(t.db, queue, filter)).toBe(1);
    expect(await redrive(queue, filter)).toBe(1);
    // The time of a call is over after its first step.
    const time = new AbortController();
    const stepped = watching(t.db, (statement) => {
      if (statement.includes("picked")) time.abort();
    });
    const cut = await drawCut(t.db);
    const purging = stepped.transaction().execute((trx) => purgeDeadLetters(trx, queue, {}, cut, time.signal));
    await expect(purging).rejects.toMatchObject({ reason: "DEAD_LETTERS_TOO_MANY" });
    expect(await countDeadLetters(t.db, queue, {})).toBe(6_000);
    const count = countDeadLetters(t.db, queue, {}, { within: time.signal });
    await expect(count).rejects.toMatchObject({ reason: "DEAD_LETTERS_TOO_MANY" });
    const late = { queue, to: queue, filter: {}, messagesPerSecond: null, within: time.signal };
    const starting = inTransaction((trx) => startRedrive(trx, late));
    await expect(starting).rejects.toMatchObject({ reason: "DEAD_LETTERS_TOO_MANY" });
    expect(await inTransaction((trx) => purgeDeadLetters(trx, queue, {}, cut))).toBe(6_000);
  });
});

describe("the past of a dead letter", () => {
  test("is kept over deaths in other queues and over redrives, with its counts", async () => {
    const last = await makeQueue(t.db, project, { name: "last" });
    const second = await makeQueue(t.db, project, { name: "second", dead_letter_queue_id: last.queue_id });
    const first = await makeQueue(t.db, project, {
      name: "first",
      max_retries: 1,
      dead_letter_queue_id: second.queue_id,
    });
    const [id = ""] = await publish(t.db, first, ["x"]);
    await consumeOne(first);
    await t.advanceClock(31);
    await inTransaction(async (trx) => releaseLeases(trx, first, leasesOf([await consumeOne(first)])));
    await nack(first, await consumeOne(first), { error: "one" });
    const deathInFirst = {
      queue: "first",
      reason: "max_retries",
      error: "one",
      attempts: 3,
      failures: 2,
      returns: 1,
      expiries: 1,
    };
    expect(await findDeadLetter(t.db, first, id)).toMatchObject({ source_queue: "first", deaths: [deathInFirst] });

    await nack(second, await consumeOne(second), { requeue: false, error: "two" });
    const deathInSecond = {
      queue: "second",
      reason: "rejected",
      error: "two",
      attempts: 4,
      failures: 1,
      returns: 0,
      expiries: 0,
    };
    expect(await findDeadLetter(t.db, second, id)).toMatchObject({
      source_queue: "second",
      deaths: [deathInFirst, deathInSecond],
    });
    expect(await findDeadLetter(t.db, first, id), "it died elsewhere since").toBeUndefined();
    expect(await findDeadLetter(t.db, last, id), "last keeps it").toMatchObject({ source_queue: "second" });

    expect(await redrive(second, {}, 10, first)).toBe(1);
    await nack(first, await consumeOne(first), { requeue: false });
    expect((await findDeadLetter(t.db, first, id))?.deaths).toMatchObject([
      deathInFirst,
      deathInSecond,
      { queue: "first", reason: "rejected", error: null, attempts: 5, failures: 1 },
    ]);
  });

  test("is bounded: the first death and the latest 49", async () => {
    const queue = await makeQueue(t.db, project);
    const [id = ""] = await kill(queue, ["x"], {}, "0");
    for (let i = 1; i <= 60; i++) {
      await redrive(queue, {});
      await nack(queue, await consumeOne(queue), { requeue: false, error: `${i}` });
    }
    const deaths = (await findDeadLetter(t.db, queue, id))?.deaths.map((death) => death.error);
    expect(deaths).toEqual(["0", ...Array.from({ length: 49 }, (_, i) => `${i + 12}`)]);
  });
});

describe("a purge", () => {
  test("takes what the filter finds and what consumers hold, and nothing that died after its cut", async () => {
    const failed = await makeQueue(t.db, project, { name: "failed" });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: failed.queue_id });
    const other = await makeQueue(t.db, project, { name: "other", dead_letter_queue_id: failed.queue_id });
    const [kept = ""] = await kill(queue, ["kept"], { groupId: "g" });
    await kill(queue, ["a", "b"]);
    await kill(other, ["other"]);
    await consume(failed, 10);
    const cut = await drawCut(t.db);
    const [late = ""] = await kill(queue, ["late"]);
    expect(await countDeadLetters(t.db, queue, { groupId: "" }, { leased: true, cut })).toBe(2);
    expect(await inTransaction((trx) => purgeDeadLetters(trx, queue, { groupId: "" }, cut))).toBe(2);
    expect((await deadLetters(t.db, queue)).map((row) => row.message_id)).toEqual([late, kept]);
    expect(text(await deadLetters(t.db, other))).toEqual(["other"]);
    const bodies = await t.db
      .selectFrom("message_bodies")
      .select("message_id")
      .where("project_id", "=", queue.project_id)
      .execute();
    expect(bodies).toHaveLength(3);
  });
});

describe("an edit of a dead letter", () => {
  test("changes what is given, and redrive delivers it", async () => {
    const queue = await makeQueue(t.db, project, { type: "fifo" });
    const [id = ""] = await kill(queue, ["broken"], { groupId: "a", headers: { a: "b" }, contentType: "text/plain" });
    await inTransaction(async (trx) => {
      const row = await lockDeadLetter(trx, queue, id);
      if (row === undefined) throw new Error("no dead letter");
      await updateDeadLetter(trx, row, { payload: Buffer.from("mended"), groupId: "z", priority: 3 });
    });
    await redrive(queue, {});
    const [back] = await consume(queue);
    expect(back).toMatchObject({ content_type: "text/plain", headers: { a: "b" }, group_id: "z", priority: 3 });
    expect(back?.payload.toString()).toBe("mended");
  });

  test("moves it in the line of a dead letter queue by its priority", async () => {
    const failed = await makeQueue(t.db, project, { name: "failed", enable_priority: true });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: failed.queue_id });
    await kill(queue, ["1"]);
    const [id = ""] = await kill(queue, ["2"]);
    await inTransaction(async (trx) => {
      const row = await lockDeadLetter(trx, failed, id);
      if (row === undefined) throw new Error("no dead letter");
      await updateDeadLetter(trx, row, { priority: 9 });
    });
    expect(text(await consume(failed, 2))).toEqual(["2", "1"]);
  });

  test("of its group lets no two of the new group be in flight", async () => {
    const failed = await makeQueue(t.db, project, { name: "failed", type: "fifo" });
    const queue = await makeQueue(t.db, project, { dead_letter_queue_id: failed.queue_id });
    const [id = ""] = await kill(queue, ["moved"], { groupId: "a" });
    await kill(queue, ["held"], { groupId: "b" });
    const [moved, held] = await consume(failed, 2);
    await inTransaction((trx) => releaseLeases(trx, failed, leasesOf(moved ? [moved] : [])));
    await inTransaction(async (trx) => {
      const row = await lockDeadLetter(trx, queue, id);
      if (row === undefined) throw new Error("no dead letter");
      await updateDeadLetter(trx, row, { groupId: "b" });
    });
    expect(await consume(failed, 10)).toEqual([]);
    await nack(failed, held as MessageRow, { requeue: false });
    expect(text(await consume(failed, 10))).toEqual(["moved"]);
  });
});
