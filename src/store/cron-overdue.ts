import { sql } from "kysely";
import type { Db } from "../db/schema.ts";
import { forgetFires, judgeFires } from "./cron-watch.ts";
import { lockOwner } from "./run-owners.ts";

/** A cron job that has a fire whose time is up. */
export interface OverdueJob {
  readonly projectId: string;
  readonly cronId: string;
}

/** The cron jobs of up to `limit` fires whose time is up, the longest due first. */
export async function overdueJobs(db: Db, limit: number): Promise<OverdueJob[]> {
  const { rows } = await sql<OverdueJob>`
    select project_id as "projectId", cron_id as "cronId" from cron_watches
    where due_at <= carillon_now() order by due_at limit ${limit}`.execute(db);
  return [...new Map(rows.map((row) => [row.cronId, row])).values()];
}

/**
 * Judges the fires of such a job in one transaction, unless another node has done so meanwhile. Jobs that are paused or
 * deleted are waited for no more.
 */
export async function judgeOverdueJob(db: Db, { projectId, cronId }: OverdueJob): Promise<void> {
  await db.transaction().execute(async (trx) => {
    const job = await lockOwner(trx, projectId, cronId);
    if (job === undefined || job.state === "paused" || job.state === "deleted") {
      await forgetFires(trx, { project_id: projectId, cron_id: cronId });
    } else await judgeFires(trx, job);
  });
}
