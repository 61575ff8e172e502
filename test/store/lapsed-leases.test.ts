import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Db } from "../../src/db/schema.ts";
import { lookAtQueues, newHandOutMemory } from "../../src/store/hand-outs.ts";
import { pushableQueues } from "../../src/store/pushable.ts";
import type { NamedQueueRow } from "../../src/store/queues.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue } from "../support/queues.ts";

const LEASES = 20_000;

let t: TestDatabase;
beforeAll(async () => {
  t = await testDatabase();
  // What the planner knows of these tables is what it knew when they were empty.
  for (const table of ["messages", "line_claims"]) {
    await sql`alter table ${sql.ref(table)} set (autovacuum_enabled = off)`.execute(t.db);
  }
});
afterAll(() => t[Symbol.asyncDispose]());

/** Leases in the line of a queue and as many outside, which end some time from now. */
async function lease(db: Db, { project_id, queue_id, lane_id }: NamedQueueRow, endsInSeconds: number): Promise<void> {
  await sql`
    insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, lease_token,
                          lease_expires_at, receive_count, published_at, expires_at)
    select ${project_id}::uuid, ${queue_id}::uuid, gen_random_uuid(), n, '', now(), 0, now(), gen_random_uuid(),
           now() + make_interval(secs => ${endsInSeconds}), 1, now(), now() + interval '1 day'
    from generate_series(1, ${LEASES}::int) n`.execute(db);
  await sql`
    insert into line_claims (lane_id, hi, lo, open_seqs, settled, token, first_published_at, claimed_at, expires_at)
    select ${lane_id}::bigint, n, n - 1, array[n], false, n, now(), now(), now() + make_interval(secs => ${endsInSeconds})
    from generate_series(1, ${LEASES}::int) n`.execute(db);
}

/** Blocks that the look of a hand-out touches, as often as it takes for the connection to keep its plan. */
async function blocksTouched(db: Db, queue: NamedQueueRow, since: Date): Promise<number> {
  let blocks = 0;
  for (let i = 0; i < 10; i++) blocks = await blocksTouchedOnce(db, queue, since);
  return blocks;
}

async function blocksTouchedOnce(db: Db, queue: NamedQueueRow, since: Date): Promise<number> {
  const { project_id, name } = queue;
  const look =
    queue.type === "fifo"
      ? sql`carillon_hand_out_in_turn(${project_id}, ${name}, '{0}', '{null}', '{""}', ${since})`
      : sql`carillon_line_claim(${project_id}, ${name}, '{0}', '{null}', '{1}', '{null}', ${since})`;
  const { rows } = await sql<{ "QUERY PLAN": [{ Plan: { "Shared Hit Blocks": number } }] }>`
    explain (analyze, buffers, format json) select * from ${look}`.execute(db);
  return rows[0]?.["QUERY PLAN"][0].Plan["Shared Hit Blocks"] ?? 0;
}

describe.each(["standard", "fifo"] as const)("a look at a %s queue", (type) => {
  /** It is paused, so that a hand-out looks and does no more. */
  const queueOf = async () => {
    const queue = await makeQueue(t.db, randomUUID(), { type });
    await t.db.updateTable("queues").set({ paused: true }).where("queue_id", "=", queue.queue_id).execute();
    return queue;
  };

  test("costs no more for the leases that live, by the plan of when there were none", async () => {
    const queue = await queueOf();
    const done = new Error("undo");
    const looking = t.db.transaction().execute(async (trx) => {
      const before = await blocksTouched(trx, queue, new Date(0));
      await lease(trx, queue, 3_600);
      expect(await blocksTouched(trx, queue, new Date(0))).toBeLessThan(before + 20);
      throw done;
    });
    await expect(looking).rejects.toBe(done);
  });

  test("costs no more for leases that ended and are over while an old transaction keeps them", async () => {
    const queue = await queueOf();
    const before = await blocksTouched(t.db, queue, new Date(0));
    await t.db
      .transaction()
      .setIsolationLevel("repeatable read")
      .execute(async (old) => {
        await old.selectFrom("messages").select("message_id").limit(1).execute();
        await lease(t.db, queue, -60);
        await sql`delete from messages`.execute(t.db);
        await sql`update line_claims set settled = true`.execute(t.db);
        expect(await blocksTouched(t.db, queue, new Date())).toBeLessThan(before + 20);
      });
  });
});

/** Rows of leases that were read in the transaction. */
async function leasesRead(trx: Db): Promise<number> {
  const { rows } = await sql<{ read: number }>`
    select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::int as read from pg_stat_xact_user_tables
    where relname in ('messages', 'line_claims')`.execute(trx);
  return rows[0]?.read ?? Number.NaN;
}

/** Runs what is undone when it has been looked at. */
async function undone(work: (trx: Db) => Promise<void>): Promise<void> {
  const done = new Error("undo");
  const working = t.db.transaction().execute(async (trx) => {
    await work(trx);
    throw done;
  });
  await expect(working).rejects.toBe(done);
}

test("a look at queues that are waited for reads no lease that lives, whatever the planner knows", async () => {
  const queue = await makeQueue(t.db, randomUUID());
  await undone(async (trx) => {
    await lease(trx, queue, 3_600);
    const before = await leasesRead(trx);
    const waiting = [{ projectId: queue.project_id, queueName: queue.name, memory: newHandOutMemory() }];
    expect(await lookAtQueues(trx, waiting)).toEqual({ withWork: [], nextDueInMs: undefined });
    expect((await leasesRead(trx)) - before).toBeLessThan(50);
  });
});

describe("a look at queues that are pushed", () => {
  const pushed = async () => {
    const queue = await makeQueue(t.db, randomUUID());
    await sql`
      insert into push_subscriptions (project_id, queue_id, url, mode)
      values (${queue.project_id}, ${queue.queue_id}, 'https://a.example/', 'compete')`.execute(t.db);
    return queue;
  };
  const found = async (trx: Db) => (await pushableQueues(trx, 100, [])).map(({ queue }) => queue.name);

  test("reads no lease that lives, whatever the planner knows", async () => {
    const queue = await pushed();
    await undone(async (trx) => {
      await lease(trx, queue, 3_600);
      const before = await leasesRead(trx);
      expect(await found(trx)).not.toContain(queue.name);
      expect((await leasesRead(trx)) - before).toBeLessThan(50);
    });
  });

  test.each(["messages", "line_claims"])("finds one whose leases ran out, in %s", async (table) => {
    const queue = await pushed();
    await undone(async (trx) => {
      await lease(trx, queue, -60);
      await sql`delete from ${sql.ref(table === "messages" ? "line_claims" : "messages")}`.execute(trx);
      expect(await found(trx)).toContain(queue.name);
    });
  });
});
