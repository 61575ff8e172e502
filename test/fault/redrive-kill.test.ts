import { expect, test } from "vitest";
import { expireLeases, leaseMessages } from "../../src/store/leases.ts";
import { queueStats } from "../../src/store/queue-stats.ts";
import { findQueue } from "../../src/store/queues.ts";
import { testDatabase } from "../support/database.ts";
import { publish } from "../support/queues.ts";
import { must, until } from "./calls.ts";
import { startNode } from "./node.ts";

const DEAD = 4_000;

test("a redrive whose node was killed goes on elsewhere, and every dead letter is back once", async () => {
  await using database = await testDatabase();
  const { db } = database;
  const env = { CARILLON_DATABASE_URL: database.url };
  const doomed = await startNode(env);
  await must(doomed.url, "POST", "/queue/create", { queue: "orders", max_retries: 0 });
  const { project_id } = await db.selectFrom("queues").select("project_id").executeTakeFirstOrThrow();
  const queue = await findQueue(db, project_id, "orders");
  if (queue === undefined) throw new Error("no queue");
  const payloads = Array.from({ length: DEAD }, (_, i) => `${i}`);
  const ids = await publish(db, queue, payloads);
  await db
    .transaction()
    .execute((trx) => leaseMessages(trx, queue, { limit: DEAD, visibilitySeconds: 1, requestId: "" }));
  await database.advanceClock(2);
  await until("all are dead", 60_000, async () => {
    await db.transaction().execute((trx) => expireLeases(trx, queue));
    const { dead } = await queueStats(db, queue);
    return dead === DEAD || undefined;
  });

  const { redrive_id } = await must(doomed.url, "POST", "/queue/dlq/redrive_job/start/orders", {
    messages_per_second: 400,
  });
  const redrive = (url: string) => must(url, "GET", `/queue/dlq/redrive_job/get/${redrive_id}`);
  await until("it is under way", 30_000, async () => (await redrive(doomed.url)).moved > 200 || undefined);
  await doomed.kill();

  const other = await startNode(env);
  const done = await until("it has ended", 60_000, async () => {
    const now = await redrive(other.url);
    return now.state === "running" ? undefined : now;
  });
  expect(done).toMatchObject({ state: "succeeded", matched: DEAD, moved: DEAD });
  const back = await db.selectFrom("messages").select("message_id").where("queue_id", "=", queue.queue_id).execute();
  expect(back.map((row) => row.message_id).sort()).toEqual(ids.sort());
  expect(await queueStats(db, queue)).toMatchObject({ dead: 0 });
});
