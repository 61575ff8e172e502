/**
 * Measures Carillon against its peers and prints how near it comes to each goal: `npm run bench -- --help`.
 */
import { setTimeout as delay } from "node:timers/promises";
import { inspect } from "node:util";
import { type DatabaseServer, openDatabaseServer } from "./database.ts";
import { installPeers } from "./peers.ts";
import { type Finding, figureTable, verdictTable, writeResults } from "./report.ts";
import { backlog } from "./scenarios/backlog.ts";
import { cycle } from "./scenarios/cycle.ts";
import { deliver } from "./scenarios/deliver.ts";
import { drain } from "./scenarios/drain.ts";
import { embeddedStart } from "./scenarios/embedded-start.ts";
import { growth } from "./scenarios/growth.ts";
import { idle } from "./scenarios/idle.ts";
import { idleJobs } from "./scenarios/idle-jobs.ts";
import { latency } from "./scenarios/latency.ts";
import { lateness } from "./scenarios/lateness.ts";
import { many } from "./scenarios/many.ts";
import { oldSnapshot } from "./scenarios/old-snapshot.ts";
import { publish } from "./scenarios/publish.ts";
import { publishBatch } from "./scenarios/publish-batch.ts";
import { wal } from "./scenarios/wal.ts";
import { Brokers, type Scenario, Scope } from "./scope.ts";
import { readSettings, type Settings } from "./settings.ts";

const SCENARIOS: readonly Scenario[] = [
  publish,
  publishBatch,
  drain,
  cycle,
  oldSnapshot,
  backlog,
  many,
  latency,
  lateness,
  wal,
  embeddedStart,
  idle,
  idleJobs,
  growth,
  deliver,
];

/** How long what a scenario has started may take to stop, in milliseconds. */
const STOP_MS = 30_000;

const settings = readSettings(
  process.argv.slice(2),
  SCENARIOS.map(({ name }) => name),
);
try {
  if (settings !== undefined) await run(settings);
} catch (error) {
  process.stderr.write(`bench: ${inspect(error)}\n`);
  // What the scenario was at goes on, and may wait for servers that are gone.
  process.exit(1);
}

async function run(settings: Settings): Promise<void> {
  // A connection that breaks outside of any call, or Ctrl-C: the servers that were started have to be stopped.
  const broken = new Promise<never>((_, reject) => {
    process.on("uncaughtException", reject);
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => reject(new Error(`ended by ${signal}`)));
  });
  broken.catch(() => {});
  if (settings.peers) installPeers();
  await using server = await openDatabaseServer(process.env["CARILLON_BENCH_DATABASE_URL"]);
  await using brokers = new Brokers();
  const findings: Finding[] = [];
  for (const scenario of SCENARIOS) {
    if (settings.only !== undefined && !settings.only.includes(scenario.name)) continue;
    const startedAt = new Date();
    process.stderr.write(`${scenario.name}: ${scenario.about}\n`);
    const finding = { scenario: scenario.name, ...(await runScenario(scenario, settings, server, brokers, broken)) };
    findings.push(finding);
    process.stdout.write(`\n${scenario.name}\n${figureTable(finding)}\n\n`);
    if (settings.output !== undefined) await writeResults(settings.output, finding, { settings, server, startedAt });
  }
  process.stdout.write(`${verdictTable(findings)}\n`);
}

/** Runs a scenario until it ends or `broken` rejects. A peer that cannot stop does not keep the servers from stopping. */
async function runScenario(
  scenario: Scenario,
  settings: Settings,
  server: DatabaseServer,
  brokers: Brokers,
  broken: Promise<never>,
): ReturnType<Scenario["run"]> {
  const scope = new Scope(settings, server, brokers);
  const running = scenario.run(scope);
  // When it was broken off, what it says afterwards is of no interest.
  running.catch(() => {});
  try {
    return await Promise.race([running, broken]);
  } finally {
    await Promise.race([scope[Symbol.asyncDispose](), delay(STOP_MS, undefined, { ref: false })]);
  }
}
