import type { BenchDatabase } from "../database.ts";
import { loadPeer } from "../peers.ts";
import { type CronContestant, Sender } from "./cron-contestant.ts";

interface CronBoss {
  on(event: "error" | "warning", listener: (about: unknown) => void): void;
  start(): Promise<unknown>;
  createQueue(name: string, options: object): Promise<void>;
  work(queue: string, options: object, handle: (jobs: readonly unknown[]) => Promise<void>): Promise<unknown>;
  stop(options: { readonly graceful: boolean }): Promise<void>;
}

interface PgBoss {
  PgBoss: new (options: object) => CronBoss;
}

const QUEUE = "posts";
/**
 * Every interval at its least: it looks for schedules that are due every second (30 by default), turns them into jobs every
 * second (5 by default), and its workers look every half second and are told by NOTIFY.
 */
const OPTIONS = { max: 30, useListenNotify: true, cronMonitorIntervalSeconds: 1, cronWorkerIntervalSeconds: 1 };
const WORKER = { pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 0.5, batchSize: 64 };

/** pg-boss's schedules, which fire once a minute at most. */
export async function openPgBossCron(database: BenchDatabase): Promise<CronContestant> {
  const { PgBoss } = await loadPeer<PgBoss>("pg-boss");
  return {
    name: "pg-boss",
    async schedule(jobs, at, url) {
      const sender = new Sender(url);
      const boss = new PgBoss({ connectionString: database.url, ...OPTIONS });
      boss.on("error", (error) => process.stderr.write(`pg-boss: ${error}\n`));
      boss.on("warning", () => {});
      await boss.start();
      await boss.createQueue(QUEUE, { notify: true });
      // Its own call stores one schedule at a time.
      await database.query(
        `insert into pgboss.schedule (name, key, cron, timezone)
         select $1, 'job_' || n, '* * * * *', 'UTC' from generate_series(1, $2::int) n`,
        [QUEUE, jobs],
      );
      await boss.work(QUEUE, WORKER, async (batch) => {
        await Promise.all(batch.map(() => sender.post(at)));
      });
      return {
        async recorded() {
          const [row] = await database.query<{ count: number }>(
            "select count(*)::int as count from pgboss.job where name = $1 and created_on >= $2",
            [QUEUE, at],
          );
          return row?.count ?? 0;
        },
        async [Symbol.asyncDispose]() {
          await boss.stop({ graceful: false });
          await sender[Symbol.asyncDispose]();
          await database.query("delete from pgboss.schedule");
          await database.query("delete from pgboss.job");
        },
      };
    },
    async [Symbol.asyncDispose]() {},
  };
}
