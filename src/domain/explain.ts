import { nextFireAt, type Schedule } from "./schedule.ts";

/** What became of an intended fire. */
export type Disposition =
  | "ran"
  | "caught_up"
  | "skipped_overlap"
  | "missed"
  | "dst_gap"
  | "paused"
  | "max_runs"
  | "expired"
  | "canceled";

/** The record of a fire, or of a stretch of fires. */
export interface LedgerRecord {
  readonly disposition: Disposition | null;
  readonly state: string;
  readonly trigger: string;
  readonly error: string | null;
  readonly fireAt: Date;
  /** The last fire time of a stretch; null for a single fire. */
  readonly fireUntil: Date | null;
  readonly fireCount: number;
}

/** All that is known of a cron job at one instant. */
export interface FireQuestion {
  /** The begin of the second that is asked about. */
  readonly at: Date;
  readonly now: Date;
  /** As it is now; undefined where it cannot be read any more. */
  readonly schedule: Schedule | undefined;
  readonly state: "active" | "paused" | "completed" | "deleted";
  readonly pauseReason: string | null;
  readonly createdAt: Date;
  readonly deletedAt: Date | null;
  /** Up to here each fire has a record. */
  readonly accountedUntil: Date;
  /** Days after which records are deleted; -1 for never. */
  readonly retentionDays: number;
  /** The record of the fire within that second, or of the stretch that reaches over it. */
  readonly record: LedgerRecord | undefined;
}

/** What was due at an instant, and what became of it. */
export interface FireAnswer {
  readonly due: boolean;
  readonly disposition: Disposition | undefined;
  readonly explanation: string;
}

const SECOND_MS = 1000;
const DAY_MS = 86_400_000;

const SAID: Record<Exclude<Disposition, "ran" | "caught_up">, string> = {
  skipped_overlap: "was due and did not run: the overlap policy let it pass",
  missed: "was due and did not run: no node could act in time",
  dst_gap: "did not run: a clock change skipped its local time, and dst_gap is skip",
  paused: "was due and did not run: the job was paused",
  max_runs: "was due and did not run: the job had reached max_runs",
  expired: "was due and did not run: it was too late to start",
  canceled: "was due and was called off",
};

/** Says what was due at an instant, what became of it and why; of an instant to come, whether something will be due. */
export function explainFire(question: FireQuestion): FireAnswer {
  const { at, now, record, createdAt, deletedAt, retentionDays } = question;
  const isDueBySchedule = isDue(question);
  if (record !== undefined && (record.fireUntil === null || isDueBySchedule)) return fromRecord(record);
  if (at > now) return toCome(question, isDueBySchedule);
  const nothing = (explanation: string): FireAnswer => ({ due: false, disposition: undefined, explanation });
  if (at.getTime() + SECOND_MS <= createdAt.getTime())
    return nothing(`the job was created at ${createdAt.toISOString()}`);
  if (deletedAt !== null && at > deletedAt) return nothing(`the job was deleted at ${deletedAt.toISOString()}`);
  if (at > question.accountedUntil && isDueBySchedule) return sinceAccounted(question);
  if (retentionDays >= 0 && now.getTime() - at.getTime() > Math.max(retentionDays * DAY_MS, DAY_MS / 24)) {
    return nothing(`there is no record, and records are deleted ${retentionDays} days after their end`);
  }
  return nothing("nothing was due");
}

function isDue({ schedule, at }: FireQuestion): boolean {
  if (schedule === undefined) return false;
  const next = nextFireAt(schedule, new Date(at.getTime() - 1));
  return next !== undefined && next.getTime() < at.getTime() + SECOND_MS;
}

function fromRecord(record: LedgerRecord): FireAnswer {
  const disposition = record.disposition ?? undefined;
  if (record.trigger === "ping" && record.state === "pending") {
    return { due: true, disposition, explanation: "it was due, and no ping has told of a run yet" };
  }
  const error = record.error === null ? "" : `; ${record.error}`;
  if (disposition === undefined || disposition === "ran" || disposition === "caught_up") {
    const late = disposition === "caught_up" ? "was let run later" : "was let run";
    return { due: true, disposition, explanation: `it ${late}, and is ${record.state}${error}` };
  }
  const stretch =
    record.fireUntil === null
      ? ""
      : `, one of the fires from ${record.fireAt.toISOString()} to ${record.fireUntil.toISOString()}`;
  const said =
    record.trigger === "ping" && disposition === "missed" ? "was due, and nobody told of a run" : SAID[disposition];
  return { due: true, disposition, explanation: `it ${said}${stretch}${error}` };
}

function toCome({ state, pauseReason }: FireQuestion, isDueBySchedule: boolean): FireAnswer {
  if (!isDueBySchedule) return { due: false, disposition: undefined, explanation: "nothing will be due" };
  const explanation = {
    active: "it will be due",
    paused: `it will be due, and will not run while the job is paused${because(pauseReason)}`,
    completed: "it would be due, and will not run: the job is completed",
    deleted: "it would be due, and will not run: the job is deleted",
  }[state];
  return { due: state === "active" || state === "paused", disposition: undefined, explanation };
}

/** A fire that has no record yet. */
function sinceAccounted({ state, accountedUntil, pauseReason }: FireQuestion): FireAnswer {
  const since = accountedUntil.toISOString();
  switch (state) {
    case "paused": {
      const explanation = `it ${SAID.paused}, since ${since}${because(pauseReason)}`;
      return { due: true, disposition: "paused", explanation };
    }
    case "completed":
      return { due: true, disposition: "max_runs", explanation: `it ${SAID.max_runs}, at ${since}` };
    default:
      return { due: true, disposition: undefined, explanation: "it was due, and is about to be recorded" };
  }
}

function because(reason: string | null): string {
  return reason === null ? "" : `: ${reason}`;
}
