import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Db } from "../../src/db/schema.ts";
import { handOut, newHandOutMemory } from "../../src/store/hand-outs.ts";
import type { MessageRow } from "../../src/store/messages.ts";
import type { NamedQueueRow } from "../../src/store/queues.ts";
import { ackMessages, extendEach, nackMessage, nackMessages } from "../../src/store/settlements.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue, publish } from "../support/queues.ts";
import { watching } from "../support/statements.ts";

let t: TestDatabase;

beforeAll(async () => {
  t = await testDatabase();
});
afterAll(() => t[Symbol.asyncDispose]());

async function consume(queue: NamedQueueRow, limit: number): Promise<MessageRow[]> {
  return (await handOut(t.db, queue.project_id, queue.name, [{ limit }]))?.[0] ?? [];
}

const numbered = (count: number) => Array.from({ length: count }, (_, n) => `${n}`);
const keyOf = (row: MessageRow) => ({ messageId: row.message_id, receipt: row.lease_token ?? undefined });
const again = { requeue: true, delaySeconds: 0, error: "" };

type Act = (db: Db, queue: NamedQueueRow, keys: ReturnType<typeof keyOf>[]) => Promise<unknown>;

const ACTS: Record<string, Act> = {
  acks: (db, queue, keys) => ackMessages(db, queue, keys),
  nacks: (db, queue, keys) =>
    nackMessages(
      db,
      queue,
      keys.map((key, n) => ({ ...key, ...again, error: `${n}`, requeue: n % 2 === 0 })),
    ),
  extensions: (db, queue, keys) =>
    extendEach(
      db,
      queue,
      keys.map((key, n) => ({ ...key, visibilitySeconds: n % 2 })),
    ),
};

describe("a batch", () => {
  test.each(Object.entries(ACTS))("of %s takes no more statements for many messages than for two", async (_, act) => {
    const counts: number[] = [];
    for (const size of [2, 60]) {
      const queue = await makeQueue(t.db, randomUUID(), { enable_priority: true });
      await publish(t.db, queue, numbered(size));
      const rows = await consume(queue, size);
      let statements = 0;
      const db = watching(t.db, () => statements++);
      await db.transaction().execute((trx) => act(trx, queue, rows.map(keyOf)));
      counts.push(statements);
    }
    expect(counts[1]).toBe(counts[0]);
  });

  test.each([
    { kind: "a plain queue", settings: {} },
    { kind: "a FIFO queue", settings: { type: "fifo" as const } },
    { kind: "a queue that requires receipts", settings: { require_receipt: true, enable_priority: true } },
  ])("answers in $kind as one call for each message does", async ({ settings }) => {
    const script = async (inOne: boolean) => {
      const queue = await makeQueue(t.db, randomUUID(), { ...settings, max_retries: 1 });
      const names = numbered(12);
      for (const group of names) await publish(t.db, queue, [group], { groupId: group });
      const rows = await consume(queue, 10);
      const [acked, dead, nacked, waiting] = rows.slice(0, 4).map(keyOf);
      if (!acked || !dead || !nacked || !waiting) throw new Error("too few were handed out");
      await t.db.transaction().execute((trx) => ackMessages(trx, queue, [acked]));
      await t.db.transaction().execute((trx) => nackMessage(trx, queue, { ...dead, ...again, requeue: false }));
      await t.db.transaction().execute((trx) => nackMessage(trx, queue, { ...nacked, ...again, delaySeconds: 60 }));
      const free = rows.slice(4).map(keyOf);
      const keys = [
        acked,
        dead,
        nacked,
        { ...nacked, receipt: undefined },
        { messageId: randomUUID(), receipt: undefined },
        ...free.slice(0, 2),
        // Twice, with and without its receipt, and once with another's.
        ...free.slice(0, 2).map((key) => ({ ...key, receipt: undefined })),
        { messageId: free[3]?.messageId ?? "", receipt: free[4]?.receipt },
        ...free.slice(2),
      ];
      const outcomes: unknown[] = [];
      for (const [n, act] of [ACTS["extensions"], ACTS["nacks"], ACTS["acks"]].entries()) {
        const some = keys.filter((_, place) => place < 9 || place % 3 === n);
        for (const part of inOne ? [some] : some.map((key) => [key])) {
          // The acts tell items apart by their places, so each goes to the place that it has in the batch.
          const padded = inOne ? part : [...some.slice(0, some.indexOf(part[0] ?? acked)).map(() => nobody), ...part];
          const done = (await t.db
            .transaction()
            .execute((trx) => act?.(trx, queue, padded) ?? Promise.resolve([]))) as {
            leaseExpiresAt?: Date | null;
          }[];
          outcomes.push(...(inOne ? done : done.slice(-1)).map(withoutInstants));
        }
      }
      return outcomes;
    };
    const outcomes = await script(true);
    expect(outcomes.length).toBeGreaterThan(20);
    expect(outcomes).toEqual(await script(false));
  });
});

const nobody = { messageId: "00000000-0000-4000-8000-000000000000", receipt: undefined };

function withoutInstants(outcome: { leaseExpiresAt?: Date | null }): unknown {
  return "leaseExpiresAt" in outcome ? { ...outcome, leaseExpiresAt: outcome.leaseExpiresAt !== null } : outcome;
}

test("a hand-out that fails half way gives back what it has leased, without a failure", async () => {
  const queue = await makeQueue(t.db, randomUUID());
  await publish(t.db, queue, ["singly"], { delaySeconds: 1 });
  await t.advanceClock(2);
  const memory = { ...newHandOutMemory(), setAside: true };
  const db = watching(t.db, (statement) => {
    if (statement.includes("carillon_line_claim")) throw new Error("the connection is gone");
  });
  await expect(handOut(db, queue.project_id, queue.name, [{ limit: 2 }], memory)).rejects.toThrow("is gone");
  expect(await consume(queue, 1)).toMatchObject([{ receive_count: 2, return_count: 1, failure_count: 0 }]);
});
