import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { startReceiver } from "../support/receiver.ts";
import { call, eachOf, must, until } from "./calls.ts";
import { type Cluster, startCluster } from "./cluster.ts";
import { checkFires, type JobHistory, type LedgerRecord } from "./cron-ledger-checker.ts";
import { sized } from "./scale.ts";
import { seededRandom } from "./seed.ts";
import { type WrongClocks, wrongClocks } from "./wrong-clocks.ts";

const JOBS = sized(200, 20);
const SECONDS = sized(600, 60);
const NODES = sized(5, 3);
const FAULTS = { kill: sized(60, 6), database: sized(5, 1), clock: sized(30, 4) };
const HOUR_SECONDS = 3_600;
const TIMEOUT_SECONDS = 5;
/** From now until the first fire: all jobs have to be created by then. */
const LEAD_SECONDS = sized(60, 8);
/** From the last fire until what killed nodes had under way has been done by others: a lease, and an attempt. */
const SETTLE_MS = sized(300_000, 90_000);
/** Faults take as long as they take, and may go on after the last fire. */
const TEST_MS = (LEAD_SECONDS + 2 * SECONDS) * 1_000 + 2 * SETTLE_MS;
const SHOWN = 20;

test("every second of every job is recorded once and arrives, though nodes and the database are killed and clocks are set", {
  timeout: TEST_MS,
}, async () => {
  const random = seededRandom("cron-faults");
  await using clocks = await wrongClocks(NODES);
  await using receiver = await startReceiver();
  await using cluster = await startCluster(NODES, {}, clocks.envOf);
  const from = Math.ceil(Date.now() / 1_000) + LEAD_SECONDS;
  const to = from + SECONDS;
  const jobs = await createJobs(cluster.urls, receiver.url, from, to);
  // What was created too late for its first second has no place in the check.
  expect(Date.now()).toBeLessThan(from * 1_000);

  await delay(from * 1_000 - Date.now());
  const fired = await injectFaults(cluster, clocks, random);
  expect(fired).toEqual(FAULTS);
  console.log(`cron-faults: faults until ${Math.round(Date.now() / 1_000) - from} s of ${SECONDS}`);
  await delay(Math.max(0, to * 1_000 - Date.now()));
  cluster.expectAlive();

  const histories: JobHistory[] = [];
  let unknown = 0;
  await eachOf(jobs.keys(), 5, async (cronId) => {
    const ledger = await until(`every run of ${cronId} has ended`, SETTLE_MS, async () => {
      const records = await ledgerOf(cluster.urls[0] ?? "", cronId);
      if (records === undefined) unknown++;
      else if (records.every(({ state }) => !["pending", "running", "retrying"].includes(state))) return records;
      await delay(1_000);
      return undefined;
    });
    histories.push({ job: cronId, ledger, arrivals: [] });
  });
  const arrivals = Map.groupBy(receiver.requests, ({ path }) => path);
  const judged = histories.map((history) => ({
    ...history,
    arrivals: (arrivals.get(jobs.get(history.job) ?? "") ?? []).map(({ headers, receivedAt }) => ({
      webhookId: `${headers["webhook-id"]}`,
      timestamp: Number(headers["webhook-timestamp"]),
      receivedAt,
    })),
  }));
  console.log(`cron-faults: ${JOBS * SECONDS} fires, ${receiver.count} requests, ${unknown} calls without an answer`);
  const violations = checkFires(judged, from, to);
  if (violations.length > 0) expect.fail(`${violations.length} violations:\n${violations.slice(0, SHOWN).join("\n")}`);
});

/** Jobs of every second of [from, to), each with a path of its own: cron ids and paths. */
async function createJobs(urls: readonly string[], receiver: string, from: number, to: number) {
  const created = new Map<string, string>();
  await eachOf(Array(JOBS).keys(), 5, async (index) => {
    const path = `/job/${index}`;
    const { cron_id } = await must(urls[index % urls.length] ?? "", "POST", "/cron/create", {
      cron_expr: "* * * * * *",
      url: `${receiver}${path}`,
      start_at: new Date(from * 1_000).toISOString(),
      end_at: new Date(to * 1_000 - 1).toISOString(),
      retries: 10,
      timeout_seconds: TIMEOUT_SECONDS,
      overlap_policy: "allow",
      misfire_policy: "all",
      misfire_window_seconds: HOUR_SECONDS,
    });
    created.set(cron_id, path);
  });
  return created;
}

/** All faults, one after the other in a random order, spread over the window. Returns how many of each there were. */
async function injectFaults(cluster: Cluster, clocks: WrongClocks, random: () => number) {
  const kinds = (["kill", "database", "clock"] as const).flatMap((kind) => Array(FAULTS[kind]).fill(kind));
  const order = kinds.map((kind) => ({ kind, at: random() })).sort((a, b) => a.at - b.at);
  const fired = { kill: 0, database: 0, clock: 0 };
  const startedAt = performance.now();
  const gap = (SECONDS * 1_000) / (order.length + 1);
  for (const [turn, { kind }] of order.entries()) {
    await delay(Math.max(0, startedAt + gap * (turn + random()) - performance.now()));
    const node = Math.floor(random() * NODES);
    // The kinds throw unless what they name has happened.
    if (kind === "kill") await cluster.killNode(node);
    else if (kind === "database") await cluster.killPostgres();
    else await clocks.step(node, fired.clock % 2 === 0 ? HOUR_SECONDS : -HOUR_SECONDS, cluster.urls[node] ?? "");
    fired[kind as keyof typeof fired]++;
  }
  return fired;
}

/** All records of a job's ledger; undefined where a page has no answer. */
async function ledgerOf(url: string, cronId: string): Promise<LedgerRecord[] | undefined> {
  const records: LedgerRecord[] = [];
  for (let cursor = ""; ; ) {
    const outcome = await call(url, "GET", `/cron/runs/list/${cronId}?limit=500&cursor=${encodeURIComponent(cursor)}`);
    if (outcome.kind === "unknown") return undefined;
    if (outcome.kind === "refused") throw new Error(`the ledger: ${JSON.stringify(outcome)}`);
    records.push(...outcome.body.items);
    cursor = outcome.body.next_cursor ?? "";
    if (cursor === "") return records;
  }
}
