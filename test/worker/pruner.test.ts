import { randomUUID } from "node:crypto";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { claimKey } from "../../src/store/idempotency.ts";
import { prunerTick } from "../../src/worker/pruner.ts";
import { testDatabase } from "../support/database.ts";

test("what cannot be pruned keeps nothing else from being pruned, and is told of", async () => {
  await using t = await testDatabase();
  await t.db.transaction().execute((trx) =>
    claimKey(trx, {
      projectId: randomUUID(),
      operation: "o",
      resource: "",
      key: "k",
      fingerprint: Buffer.alloc(32),
      ttlSeconds: 60,
    }),
  );
  await t.advanceClock(61);
  await sql`alter table messages rename to elsewhere`.execute(t.db);
  await expect(prunerTick(t.db, new AbortController().signal)).rejects.toThrow(/messages/);
  expect(await t.db.selectFrom("idempotency_keys").selectAll().execute()).toEqual([]);
});
