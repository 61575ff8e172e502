import { setTimeout as delay } from "node:timers/promises";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { testDatabase } from "../support/database.ts";
import { must, until } from "./calls.ts";
import { startNode } from "./node.ts";

const NODES = 3;
const JOBS = 30;
const FIRES = 20;

test("cron jobs of every second publish each fire once, though the nodes that fire them are killed", async ({
  onTestFinished,
}) => {
  await using database = await testDatabase();
  const env = { CARILLON_DATABASE_URL: database.url };
  const nodes = await Promise.all(Array.from({ length: NODES }, () => startNode(env, onTestFinished)));
  // A node that nobody kills is asked.
  const url = nodes[NODES - 1]?.url ?? "";
  await must(url, "POST", "/queue/create", { queue: "line" });
  await must(url, "POST", "/queue/create", { queue: "ordered", type: "fifo" });
  for (let n = 0; n < JOBS; n++) {
    const queue = n % 2 === 0 ? "line" : "ordered";
    await must(url, "POST", "/cron/create", {
      cron_expr: "@every 1s",
      queue,
      group_id: `g${n}`,
      max_runs: FIRES,
      misfire_policy: "all",
    });
  }

  let kills = 0;
  const completed = until("every job has made its runs", 120_000, async () => {
    const { items } = await must(url, "GET", `/cron/list?limit=${JOBS}`);
    await delay(250);
    return items.every(({ state }: { state: string }) => state === "completed") ? true : undefined;
  });
  const killing = (async () => {
    for (; kills < 6; kills++) {
      await delay(1_500 + Math.random() * 1_000);
      const index = kills % (NODES - 1);
      await nodes[index]?.kill();
      expect(nodes[index]?.child.signalCode).toBe("SIGKILL");
      nodes[index] = await startNode(env, onTestFinished);
    }
  })();
  await Promise.all([completed, killing]);

  const { rows: runs } = await sql<{ run_id: string; message_id: string; state: string }>`
    select run_id, message_id, state from runs`.execute(database.db);
  expect(runs.filter(({ state }) => state !== "succeeded")).toEqual([]);
  expect(runs).toHaveLength(JOBS * FIRES);
  const { rows: messages } = await sql<{ message_id: string; fire: string; group_id: string; at: string }>`
    select m.message_id, m.group_id, b.headers ->> 'carillon-scheduled-at' as at,
      (b.headers ->> 'carillon-cron-id') || ' ' || (b.headers ->> 'carillon-scheduled-at') as fire
    from messages m join message_bodies b using (project_id, queue_id, message_id) order by m.seq`.execute(database.db);
  expect(messages.map(({ message_id }) => message_id).sort()).toEqual(runs.map(({ message_id }) => message_id).sort());
  expect(new Set(messages.map(({ fire }) => fire)).size).toBe(JOBS * FIRES);
  // Those of a group of the FIFO queue are in the order of their fires.
  for (const ofGroup of Map.groupBy(messages, ({ group_id }) => group_id).values()) {
    if (Number(ofGroup[0]?.group_id.slice(1)) % 2 === 0) continue;
    expect(ofGroup.map(({ at }) => at)).toEqual(ofGroup.map(({ at }) => at).toSorted());
  }
});
