/**
 * Measures Carillon against its peers and prints how near it comes to each goal: `npm run bench -- --help`.
 */
import { inspect } from "node:util";
import { openDatabaseServer } from "./database.ts";
import { installPeers } from "./peers.ts";
import { type Finding, figureTable, verdictTable, writeResults } from "./report.ts";
import { backlog } from "./scenarios/backlog.ts";
import { cycle } from "./scenarios/cycle.ts";
import { drain } from "./scenarios/drain.ts";
import { embeddedStart } from "./scenarios/embedded-start.ts";
import { growth } from "./scenarios/growth.ts";
import { idle } from "./scenarios/idle.ts";
import { latency } from "./scenarios/latency.ts";
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
  wal,
  embeddedStart,
  idle,
  growth,
];

const settings = readSettings(
  process.argv.slice(2),
  SCENARIOS.map(({ name }) => name),
);
try {
  if (settings !== undefined) await run(settings);
} catch (error) {
  process.stderr.write(`bench: ${inspect(error)}\n`);
  process.exitCode = 1;
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
    await using scope = new Scope(settings, server, brokers);
    const finding = { scenario: scenario.name, ...(await Promise.race([scenario.run(scope), broken])) };
    findings.push(finding);
    process.stdout.write(`\n${scenario.name}\n${figureTable(finding)}\n\n`);
    if (settings.output !== undefined) await writeResults(settings.output, finding, { settings, server, startedAt });
  }
  process.stdout.write(`${verdictTable(findings)}\n`);
}
