/** A record of a job's ledger, as ListCronRuns answers it. */
export interface LedgerRecord {
  readonly run_id: string;
  readonly scheduled_at: string;
  readonly state: string;
}

/** What came in at a receiver. */
export interface Arrival {
  readonly webhookId: string;
  /** `webhook-timestamp`: Unix time in seconds. */
  readonly timestamp: number;
  /** Unix time in milliseconds. */
  readonly receivedAt: number;
}

/** One job that is due at every second, as seen from outside. */
export interface JobHistory {
  readonly job: string;
  readonly ledger: readonly LedgerRecord[];
  readonly arrivals: readonly Arrival[];
}

/** How far the time that a request is signed with may be from its arrival, in seconds: receivers refuse old ones. */
const SIGNED_WITHIN_SECONDS = 60;

/**
 * What is wrong with the history of jobs that were due at every whole second of [from, to), in Unix seconds; empty when
 * all is right. Every (job, second) has one record, which succeeded, and arrived at least once with the record's id and
 * none else; nothing arrived that no record is about.
 */
export function checkFires(jobs: readonly JobHistory[], from: number, to: number): string[] {
  const violations: string[] = [];
  const owners = new Map<string, string>();
  for (const { job, ledger, arrivals } of jobs) {
    const arrived = new Set(arrivals.map(({ webhookId }) => webhookId));
    const bySecond = new Map<number, LedgerRecord[]>();
    for (const record of ledger) {
      const second = Date.parse(record.scheduled_at) / 1_000;
      bySecond.set(second, [...(bySecond.get(second) ?? []), record]);
      if (!(Number.isInteger(second) && second >= from && second < to))
        violations.push(`unexpected: ${job} at ${record.scheduled_at}`);
      if (owners.has(record.run_id)) violations.push(`one id for two fires: ${record.run_id}`);
      owners.set(record.run_id, job);
      if (record.state !== "succeeded") violations.push(`${record.state}: ${job} at ${record.scheduled_at}`);
      else if (!arrived.has(record.run_id)) violations.push(`never arrived: ${job} at ${record.scheduled_at}`);
    }
    for (let second = from; second < to; second++) {
      const count = bySecond.get(second)?.length ?? 0;
      if (count === 0) violations.push(`missing: ${job} at second ${second - from}`);
      if (count > 1) violations.push(`duplicate: ${job} at second ${second - from}, ${count} records`);
    }
  }
  for (const { job, arrivals } of jobs) {
    for (const { webhookId, timestamp, receivedAt } of arrivals) {
      if (owners.get(webhookId) !== job) violations.push(`arrived without a record: ${webhookId} for ${job}`);
      const off = timestamp - receivedAt / 1_000;
      if (!(Math.abs(off) <= SIGNED_WITHIN_SECONDS))
        violations.push(`signed ${Math.round(off)} s off: ${webhookId} for ${job}`);
    }
  }
  return violations;
}
