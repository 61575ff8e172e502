import type { CronJobRow } from "../db/schema.ts";

/** Whether the job is a monitor: its runs are made elsewhere, and pings tell of them. Nothing of it is ever sent. */
export function isMonitor(job: Pick<CronJobRow, "ping_token"> | undefined): boolean {
  return job !== undefined && job.ping_token !== null;
}

/** For how many seconds after its time the fire of a monitor waits for a ping; null for ever. */
export function awaitedSeconds(job: Pick<CronJobRow, "start_grace_seconds" | "finish_grace_seconds">): number | null {
  return job.finish_grace_seconds ?? job.start_grace_seconds;
}
