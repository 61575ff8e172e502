import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { connect } from "../../src/db/connect.ts";
import type { QueueRow } from "../../src/db/schema.ts";
import { pruneDeduplicationKeys } from "../../src/store/deduplication.ts";
import { publishMessages } from "../../src/store/messages.ts";
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

const stored = (queue: QueueRow) =>
  t.db.selectFrom("messages").select("message_id").where("project_id", "=", queue.project_id).execute();
const keys = async (queue: QueueRow) => {
  const { rows } = await sql`select from deduplication_keys where project_id = ${queue.project_id}`.execute(t.db);
  return rows.length;
};

describe("publishers of the same keys at the same time", () => {
  test("store one message for each key, and all are told its id, on whatever node they are", async () => {
    const queue = await makeQueue(t.db, project);
    const nodes = [connect({ url: t.url }), connect({ url: t.url })];
    const names = Array.from({ length: 20 }, (_, i) => `key-${i}`);
    const calls = Array.from({ length: 40 }, async (_, i) => {
      // In all sorts of orders: they must not wait for each other in a circle.
      const turned = names.map((_, n) => names[(n * 7 + i) % names.length] ?? "");
      const db = nodes[i % nodes.length] ?? t.db;
      const published = await db.transaction().execute((trx) =>
        publishMessages(
          trx,
          queue,
          turned.map((deduplicationKey) => ({
            payload: Buffer.from("1"),
            contentType: "application/json",
            headers: {},
            groupId: "",
            priority: 0,
            delaySeconds: 0,
            deduplicationKey,
          })),
        ),
      );
      return turned.map((name, n) => ({ name, ...published[n] }));
    });
    const answers = (await Promise.all(calls)).flat();
    const byKey = Map.groupBy(answers, ({ name }) => name);
    for (const [, some] of byKey) {
      expect(new Set(some.map(({ message_id }) => message_id)).size).toBe(1);
      expect(some.filter(({ deduplicated }) => !deduplicated)).toHaveLength(1);
    }
    expect((await stored(queue)).map((row) => row.message_id).toSorted()).toEqual(
      [...new Set(answers.map((answer) => answer.message_id))].toSorted(),
    );
    for (const node of nodes) await node.destroy();
  });
});

test("keys are forgotten when their window has passed, and no sooner", async () => {
  const queue = await makeQueue(t.db, project, { deduplication_window_seconds: 60 });
  await publish(t.db, queue, ["1"], { deduplicationKey: "a" });
  await t.advanceClock(59);
  await publish(t.db, queue, ["1"], { deduplicationKey: "b" });
  await pruneDeduplicationKeys(t.db, 1_000);
  expect(await keys(queue)).toBe(2);
  await t.advanceClock(1);
  await pruneDeduplicationKeys(t.db, 1_000);
  expect(await keys(queue)).toBe(1);
});

test("a key whose window has passed stands for the newest message, pruned or not", async () => {
  const queue = await makeQueue(t.db, project, { deduplication_window_seconds: 60 });
  const [first] = await publish(t.db, queue, ["1"], { deduplicationKey: "a" });
  await t.advanceClock(60);
  const [second] = await publish(t.db, queue, ["2"], { deduplicationKey: "a" });
  const [third] = await publish(t.db, queue, ["3"], { deduplicationKey: "a" });
  expect(second).not.toBe(first);
  expect(third).toBe(second);
});

test("content does not run together with a group or a type that begins with it", async () => {
  const queue = await makeQueue(t.db, project, { content_deduplication: true });
  const ids = [
    await publish(t.db, queue, ["c"], { groupId: "a", contentType: "b" }),
    await publish(t.db, queue, ["c"], { groupId: "", contentType: "ab" }),
    await publish(t.db, queue, ["bc"], { groupId: "a", contentType: "" }),
    await publish(t.db, queue, ["c"], { groupId: "a", contentType: "b" }),
  ].flat();
  expect(ids[3]).toBe(ids[0]);
  expect(new Set(ids).size).toBe(3);
});
