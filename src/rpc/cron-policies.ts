import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { DstGap, DstOverlap } from "../../gen/scheduling/v1/schedule_pb.js";
import type { CronJobRow } from "../db/schema.ts";
import type * as schedule from "../domain/schedule.ts";
import { Refusal } from "../errors.ts";
import { CRON_JOB_DEFAULTS } from "../store/cron-jobs.ts";
import { storedName } from "./convert-run.ts";
import { instantOf } from "./instant.ts";

const DST_GAPS = { run_after: DstGap.RUN_AFTER, skip: DstGap.SKIP } as const;
const DST_OVERLAPS = { auto: DstOverlap.AUTO, once: DstOverlap.ONCE, twice: DstOverlap.TWICE } as const;

/** What a cron job goes by, beside its expression, its zone, and its rules for overlaps and misfires. */
export type SchedulePolicies = Pick<
  CronJobRow,
  | "dst_gap"
  | "dst_overlap"
  | "start_at"
  | "end_at"
  | "spread_seconds"
  | "jitter_seconds"
  | "expire_after_seconds"
  | "pause_after_failures"
  | "start_grace_seconds"
  | "finish_grace_seconds"
>;
/** How requests carry them. */
interface PolicyFields {
  readonly dstGap?: DstGap | undefined;
  readonly dstOverlap?: DstOverlap | undefined;
  readonly startAt?: Timestamp | undefined;
  readonly endAt?: Timestamp | undefined;
  readonly spreadSeconds?: number | undefined;
  readonly jitterSeconds?: number | undefined;
  readonly expireAfterSeconds?: number | undefined;
  readonly pauseAfterFailures?: number | undefined;
  readonly startGraceSeconds?: number | undefined;
  readonly finishGraceSeconds?: number | undefined;
}

/** The policies that a request gives. @throws Refusal FIELD_INVALID */
export function schedulePolicies(req: PolicyFields): SchedulePolicies {
  const policies = {
    dst_gap: storedName(DST_GAPS, req.dstGap) ?? CRON_JOB_DEFAULTS.dst_gap,
    dst_overlap: storedName(DST_OVERLAPS, req.dstOverlap) ?? CRON_JOB_DEFAULTS.dst_overlap,
    start_at: instantOrNull("start_at", req.startAt),
    end_at: instantOrNull("end_at", req.endAt),
    spread_seconds: req.spreadSeconds ?? CRON_JOB_DEFAULTS.spread_seconds,
    jitter_seconds: req.jitterSeconds ?? CRON_JOB_DEFAULTS.jitter_seconds,
    expire_after_seconds: req.expireAfterSeconds ?? null,
    pause_after_failures: req.pauseAfterFailures ?? null,
    start_grace_seconds: req.startGraceSeconds ?? null,
    finish_grace_seconds: req.finishGraceSeconds ?? null,
  };
  checkBounds(policies);
  checkGraces(policies);
  return policies;
}

/** The policies of a job after an update that writes the `written` fields. @throws Refusal FIELD_INVALID */
export function updatedPolicies(
  req: PolicyFields,
  written: ReadonlySet<string>,
  job: SchedulePolicies,
): SchedulePolicies {
  // What bounds each other is checked with what stays.
  const bounds = { startAt: undefined, endAt: undefined, startGraceSeconds: undefined, finishGraceSeconds: undefined };
  const given = schedulePolicies({ ...req, ...bounds });
  const pick = <Name extends keyof SchedulePolicies>(name: Name) => (written.has(name) ? given[name] : job[name]);
  const policies = {
    dst_gap: pick("dst_gap"),
    dst_overlap: pick("dst_overlap"),
    start_at: written.has("start_at") ? instantOrNull("start_at", req.startAt) : job.start_at,
    end_at: written.has("end_at") ? instantOrNull("end_at", req.endAt) : job.end_at,
    spread_seconds: pick("spread_seconds"),
    jitter_seconds: pick("jitter_seconds"),
    expire_after_seconds: pick("expire_after_seconds"),
    pause_after_failures: pick("pause_after_failures"),
    start_grace_seconds: written.has("start_grace_seconds") ? (req.startGraceSeconds ?? null) : job.start_grace_seconds,
    finish_grace_seconds: written.has("finish_grace_seconds")
      ? (req.finishGraceSeconds ?? null)
      : job.finish_grace_seconds,
  };
  checkBounds(policies);
  checkGraces(policies);
  return policies;
}

/** The rules of a schedule under these policies. */
export function rulesOf(policies: SchedulePolicies): schedule.ScheduleRules {
  return {
    dstGap: policies.dst_gap,
    dstOverlap: policies.dst_overlap,
    startAt: policies.start_at,
    endAt: policies.end_at,
  };
}

/** The contract's value of a stored rule for gaps. */
export function toDstGap(gap: schedule.DstGap): DstGap {
  return DST_GAPS[gap];
}

/** The contract's value of a stored rule for overlaps. */
export function toDstOverlap(overlap: schedule.DstOverlap): DstOverlap {
  return DST_OVERLAPS[overlap];
}

function instantOrNull(field: string, timestamp: Timestamp | undefined): Date | null {
  return timestamp === undefined ? null : instantOf(field, timestamp);
}

function checkBounds({ start_at: startAt, end_at: endAt }: Pick<SchedulePolicies, "start_at" | "end_at">): void {
  if (startAt !== null && endAt !== null && startAt > endAt)
    throw Refusal.field("end_at", "must not be before start_at");
}

function checkGraces({
  start_grace_seconds: start,
  finish_grace_seconds: finish,
}: Pick<SchedulePolicies, "start_grace_seconds" | "finish_grace_seconds">): void {
  if (start !== null && finish !== null && finish < start)
    throw Refusal.field("finish_grace_seconds", "must not be less than start_grace_seconds");
}
