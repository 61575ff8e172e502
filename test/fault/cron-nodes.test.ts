import { setTimeout as delay } from "node:timers/promises";
import { sql } from "kysely";
import { describe, expect, type TestContext, test } from "vitest";
import { formatId } from "../../src/domain/ids.ts";
import { LEASE_MARGIN_SECONDS } from "../../src/store/runs-leasing.ts";
import { testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { type Node, startNode } from "./node.ts";

const NODES = 3;
const SECONDS = 60;
const TIMEOUT_SECONDS = 5;

// Both in the same minute, each on its own database.
describe.concurrent("a cron job of every second on three nodes, for 60 seconds of real time", () => {
  test("makes exactly 60 runs, one for each second, and 60 requests", async (context) => {
    await minute(context, async () => {});
  });

  test("makes exactly 60 runs, one for each second, though nodes are killed and restarted meanwhile", async (context) => {
    await minute(context, async (nodes, restart) => {
      for (const index of [0, 1]) {
        await delay(15_000);
        await nodes[index]?.kill();
        expect(nodes[index]?.child.signalCode).toBe("SIGKILL");
        await delay(3_000);
        await restart(index);
      }
    });
  });
});

async function minute(
  { onTestFinished }: TestContext,
  meanwhile: (nodes: Node[], restart: (index: number) => Promise<void>) => Promise<void>,
) {
  await using database = await testDatabase();
  await using receiver = await startReceiver();
  const env = { CARILLON_DATABASE_URL: database.url };
  const nodes = await Promise.all(Array.from({ length: NODES }, () => startNode(env, onTestFinished)));
  // A node that nobody kills is asked.
  const url = nodes[NODES - 1]?.url ?? "";
  let killed = false;
  const { cron_id } = await must(url, "POST", "/cron/create", {
    cron_expr: "@every 1s",
    url: `${receiver.url}/tick`,
    max_runs: SECONDS,
    retries: 3,
    timeout_seconds: TIMEOUT_SECONDS,
    overlap_policy: "allow",
  });
  const startedAt = performance.now();
  await Promise.all([
    until("the job has made its runs", (SECONDS + 20) * 1_000, async () => {
      await delay(500);
      return (await must(url, "GET", `/cron/get/${cron_id}`)).state === "completed" ? true : undefined;
    }),
    meanwhile(nodes, async (index) => {
      killed = true;
      nodes[index] = await startNode(env, onTestFinished);
    }),
  ]);
  expect(performance.now() - startedAt).toBeGreaterThan((SECONDS - 2) * 1_000);

  // What a killed node had under way is due again when its lease has run out.
  if (killed) await database.advanceClock(TIMEOUT_SECONDS + LEASE_MARGIN_SECONDS + 1);
  const runs = await until("every run has ended", 30_000, async () => {
    const { rows } = await sql<{ run_id: string; second: number; state: string; attempt: number; trigger: string }>`
      select run_id, extract(epoch from fire_at)::float8 as second, state, attempt, trigger from runs order by fire_at`.execute(
      database.db,
    );
    if (rows.some(({ state }) => state === "retrying")) await database.advanceClock(5);
    return rows.every(({ state }) => state !== "pending" && state !== "running" && state !== "retrying")
      ? rows
      : undefined;
  });

  const first = runs[0]?.second ?? 0;
  expect(runs.map(({ second }) => second)).toEqual(Array.from({ length: SECONDS }, (_, n) => first + n));
  expect(new Set(runs.map(({ state }) => state))).toEqual(new Set(["succeeded"]));
  expect(new Set(runs.map(({ trigger }) => trigger))).toEqual(new Set(["schedule"]));

  const posted = Map.groupBy(receiver.requests, ({ headers }) => `${headers["webhook-id"]}`);
  expect([...posted.keys()].sort()).toEqual(runs.map(({ run_id }) => formatId("run", run_id)).sort());
  for (const { run_id, attempt } of runs) {
    const requests = posted.get(formatId("run", run_id)) ?? [];
    // A killed node may have counted an attempt and not sent it.
    if (killed) expect(requests.length).toBeLessThanOrEqual(attempt);
    else expect({ run_id, attempt, requests: requests.length }).toEqual({ run_id, attempt: 1, requests: 1 });
  }
}
