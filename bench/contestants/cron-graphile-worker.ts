import pg from "pg";
import type { BenchDatabase } from "../database.ts";
import { type CronContestant, Sender } from "./cron-contestant.ts";
import { GRAPHILE_SETTINGS, loadGraphileWorker } from "./graphile-worker.ts";

const POOL_SIZE = 30;
/** Jobs at a time: as many requests as a Carillon node has under way. */
const CONCURRENCY = 64;

/**
 * graphile-worker's crontab, which knows minutes. It has a timer for each and inserts all jobs of a minute by one statement; its
 * workers are told by NOTIFY. No setting makes it more prompt.
 */
export async function openGraphileCron(database: BenchDatabase): Promise<CronContestant> {
  const { graphile, logger } = await loadGraphileWorker();
  return {
    name: "graphile-worker",
    async schedule(jobs, at, url) {
      const sender = new Sender(url);
      const pgPool = new pg.Pool({ connectionString: database.url, max: POOL_SIZE });
      pgPool.on("error", () => {});
      pgPool.on("connect", (client) => client.on("error", () => {}));
      const runner = await graphile.run({
        pgPool,
        logger,
        noHandleSignals: true,
        taskList: { post: () => sender.post(at) },
        crontab: Array.from({ length: jobs }, (_, index) => `* * * * * post ?id=job_${index}`).join("\n"),
        concurrency: CONCURRENCY,
        preset: { worker: { ...GRAPHILE_SETTINGS, concurrentJobs: CONCURRENCY, logger, pollInterval: 500 } },
      });
      return {
        async recorded() {
          const [row] = await database.query<{ count: number }>(
            "select count(*)::int as count from graphile_worker._private_known_crontabs where last_execution >= $1",
            [at],
          );
          return row?.count ?? 0;
        },
        async [Symbol.asyncDispose]() {
          await runner.stop();
          await pgPool.end();
          await sender[Symbol.asyncDispose]();
          await database.query("truncate graphile_worker._private_jobs, graphile_worker._private_known_crontabs");
        },
      };
    },
    async [Symbol.asyncDispose]() {},
  };
}
