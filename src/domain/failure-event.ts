/** What a failure webhook is told about a run of a cron job that has failed for good. */
export interface FailedRun {
  /** Public ids. */
  readonly runId: string;
  readonly cronId: string;
  /** The cron job's name. */
  readonly name: string;
  readonly trigger: string;
  readonly scheduledAt: Date;
  readonly startedAt: Date;
  readonly finishedAt: Date;
  readonly error: string;
  /** Null when the newest attempt got no answer. */
  readonly responseStatus: number | null;
  /** How many attempts were made. */
  readonly attempts: number;
}

/**
 * The body of a `cron.run.failed` event in the envelope of Standard Webhooks: type, timestamp, data. Fields without a
 * value are left out, as in the REST answers.
 */
export function cronRunFailedEvent(run: FailedRun): string {
  return JSON.stringify({
    type: "cron.run.failed",
    timestamp: run.finishedAt.toISOString(),
    data: {
      run_id: run.runId,
      cron_id: run.cronId,
      name: run.name,
      state: "failed",
      trigger: run.trigger,
      scheduled_at: run.scheduledAt.toISOString(),
      started_at: run.startedAt.toISOString(),
      finished_at: run.finishedAt.toISOString(),
      attempts: run.attempts,
      error: run.error,
      response_status: run.responseStatus ?? undefined,
    },
  });
}
