import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type CreateCronJobRequestSchema, CronService } from "../gen/scheduling/v1/cron_service_pb.js";
import { OverlapPolicy } from "../gen/scheduling/v1/run_pb.js";
import type { GrpcClient } from "./clients/grpc.ts";
import type { BenchDatabase } from "./database.ts";

/** How many calls are in flight. */
const WIDTH = 16;

/** A cron job for load. */
interface NewCronJob {
  readonly cronExpr: string;
  readonly url: string;
  readonly startAt?: Date;
  readonly endAt?: Date;
}

/** Creates so many cron jobs, each with a path of its own. */
export async function createCronJobs(
  grpc: GrpcClient,
  { cronExpr, url, startAt, endAt }: NewCronJob,
  count: number,
): Promise<void> {
  const left = Array(count).keys();
  const schedule: MessageInitShape<typeof CreateCronJobRequestSchema> = {
    cronExpr,
    ...(startAt !== undefined && { startAt: timestampFromDate(startAt) }),
    ...(endAt !== undefined && { endAt: timestampFromDate(endAt) }),
  };
  const loop = async (): Promise<void> => {
    for (const index of left) {
      await grpc.unary(CronService.method.createCronJob, {
        ...schedule,
        url: `${url}/${index}`,
        overlapPolicy: OverlapPolicy.ALLOW,
      });
    }
  };
  await Promise.all(Array.from({ length: WIDTH }, loop));
}

/**
 * Makes so many copies of a cron job that fires once a year, by SQL: the rows of the nodes' own statement, without the
 * nodes. `nextRunAt` is the SQL of their next fires, where `n` numbers them from 1.
 */
export async function fillCronJobs(
  grpc: GrpcClient,
  database: BenchDatabase,
  url: string,
  count: number,
  nextRunAt: string,
): Promise<void> {
  const name = `filled at ${performance.now()}`;
  await grpc.unary(CronService.method.createCronJob, { name, cronExpr: "@yearly", url });
  await database.query(
    `insert into cron_jobs
     select copy.* from cron_jobs j, generate_series(1, $2::int) n, jsonb_populate_record(null::cron_jobs,
       to_jsonb(j) || jsonb_build_object('cron_id', carillon_id(), 'url', j.url || '/' || n, 'next_run_at', ${nextRunAt})) copy
     where j.name = $1`,
    [name, count],
  );
  // As a node that creates a cron job tells the others.
  await database.query("select pg_notify('carillon_wakeups', 'crons')");
}
