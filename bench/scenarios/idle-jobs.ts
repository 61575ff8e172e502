import { setTimeout as delay } from "node:timers/promises";
import { GrpcClient } from "../clients/grpc.ts";
import { createCronJobs, fillCronJobs } from "../cron-jobs.ts";
import type { BenchDatabase } from "../database.ts";
import type { Scenario } from "../scope.ts";
import { KEY } from "../servers/carillon.ts";
import { processorSeconds } from "../servers/processes.ts";
import { startFastReceiver } from "../servers/receiver.ts";
import { statementCounter } from "../statements.ts";
import { figures, type Verdict } from "../verdict.ts";

/** Jobs that fire every minute, so that the node is not quite without work. */
const NEAR_JOBS = 5;
/** Until what filling the table caused has passed, in milliseconds. */
const SETTLE_MS = 10_000;
/** Every worker has looked at least twice, and every near job has fired. */
const SHORTEST_S = 60;

/** What having many cron jobs costs: enabled ones whose next fire is hours to months away. */
export const idleJobs: Scenario = {
  name: "idle-jobs",
  about: "processor time, statements and full scans while many cron jobs wait",
  async run(scope) {
    const { jobs } = scope.settings;
    const seconds = Math.max(SHORTEST_S, scope.settings.seconds);
    const { node, database } = await scope.startCarillon();
    const receiver = scope.use(await startFastReceiver());
    using grpc = new GrpcClient(node.port, KEY);
    await fillCronJobs(grpc, database, receiver.url, jobs, "carillon_now() + make_interval(mins => 120 + n % 500000)");
    await createCronJobs(grpc, { cronExpr: "* * * * *", url: receiver.url }, NEAR_JOBS);
    await database.query("vacuum (analyze)");
    const statements = await statementCounter(database);
    await delay(SETTLE_MS);

    const name = `${jobs.toLocaleString("en-US")} idle cron jobs`;
    const look = async () => ({
      node: await node.processorSeconds(),
      all: await processorSeconds(),
      own: process.cpuUsage(),
      statements: await statements(),
      scans: await fullScans(database),
      at: performance.now(),
    });
    const rounds = await scope.alternate([
      {
        name,
        async measure() {
          const from = await look();
          await delay(seconds * 1_000);
          const to = await look();
          const passed = (to.at - from.at) / 1_000;
          const own = (to.own.user - from.own.user + to.own.system - from.own.system) / 1e6;
          const inNode = to.node - from.node;
          return {
            core_percent: (inNode / passed) * 100,
            // The receiver's few requests are in it.
            database_core_percent: ((to.all - from.all - inNode - own) / passed) * 100,
            statements_per_s: (to.statements - from.statements) / passed,
            full_scans: to.scans - from.scans,
          };
        },
      },
    ]);
    const within = (what: string, unit: string, atMost: number, figure: string): Verdict => ({
      goal: 11,
      what,
      unit,
      bound: { atMost },
      values: figures(rounds, name, figure),
    });
    return {
      rounds,
      verdicts: [
        within(`${name}: the node's processor time`, "% of a core", 2, "core_percent"),
        within("the same: PostgreSQL's", "% of a core", 2, "database_core_percent"),
        within("the same: full scans of the table of cron jobs", "", 0, "full_scans"),
      ],
    };
  },
};

/** How often the table of cron jobs has been read as a whole. The others are small here; their plans are tested. */
async function fullScans(database: BenchDatabase): Promise<number> {
  const [row] = await database.query<{ scans: string }>(
    "select seq_scan as scans from pg_stat_user_tables where relname = 'cron_jobs'",
  );
  return Number(row?.scans);
}
