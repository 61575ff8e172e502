import { GrpcClient } from "../clients/grpc.ts";
import { createCronJobs, fillCronJobs } from "../cron-jobs.ts";
import type { NodeOnDatabase } from "../scope.ts";
import { KEY } from "../servers/carillon.ts";
import type { CronContestant } from "./cron-contestant.ts";

/** Cron jobs of a node, which is the caller's. */
export function openCarillonCron({ node, database }: NodeOnDatabase): CronContestant {
  const grpc = new GrpcClient(node.port, KEY);
  const empty = async (): Promise<void> => {
    for (const table of ["cron_jobs", "runs", "run_attempts"]) await database.query(`delete from ${table}`);
  };
  return {
    name: "Carillon",
    async schedule(jobs, at, url) {
      await fillCronJobs(grpc, database, url, jobs, `timestamptz '${at.toISOString()}'`);
      return {
        async recorded() {
          const [row] = await database.query<{ count: number }>(
            "select count(*)::int as count from runs where kind = 'cron' and fire_at = $1",
            [at],
          );
          return row?.count ?? 0;
        },
        [Symbol.asyncDispose]: empty,
      };
    },
    async scheduleEverySecond(jobs, from, to, url) {
      await createCronJobs(
        grpc,
        { cronExpr: "* * * * * *", url, startAt: from, endAt: new Date(to.getTime() - 1) },
        jobs,
      );
      return { [Symbol.asyncDispose]: empty };
    },
    async [Symbol.asyncDispose]() {
      grpc[Symbol.dispose]();
    },
  };
}
