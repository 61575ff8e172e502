import { setImmediate } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import type {
  PreviewCronJobRequest,
  PreviewCronJobResponseSchema,
  PreviewedFireSchema,
} from "../../gen/scheduling/v1/schedule_pb.js";
import type { Db } from "../db/schema.ts";
import { type ClockNote, clockNoteOf, skippedInGaps } from "../domain/clock-changes.ts";
import { describeSchedule } from "../domain/describe-schedule.ts";
import { Herd } from "../domain/herd.ts";
import { nextFireAt, parseSchedule, type Schedule } from "../domain/schedule.ts";
import { effectiveAt, type Spreading } from "../domain/spreading.ts";
import { localTimeOf } from "../domain/time-zone.ts";
import { Refusal } from "../errors.ts";
import { cronHerds, readableScheduleOf, scheduleNow, scheduleOf } from "../store/cron-jobs.ts";
import { type AppContext, projectOf } from "./context.ts";
import { rulesOf, schedulePolicies } from "./cron-policies.ts";
import { requireCronJob } from "./find-cron-job.ts";
import { instantOf } from "./instant.ts";

const PREVIEWED_FIRES = 10;
/** Most fires of one answer; more than an hourly job has in a year. */
const MAX_PREVIEWED_FIRES = 10_000;
/** Fires after which other calls get their turn. */
const FIRES_A_TURN = 200;
/** An answer with this many fires ends after these years, each of which has to be searched for changes of the clock. */
const FAR_FIRES = 100;
const FAR_MS = 10 * 366 * 86_400_000;
const HERD_HOURS = 24;
const HERD_BUCKET_SECONDS = 300;
/** Different schedules that a herd is counted from. */
const MAX_HERDS = 20_000;
/** Schedules after which other calls get their turn. */
const HERDS_A_TURN = 50;

/** The calls that look ahead. */
export function cronPreviewHandlers(
  app: AppContext,
): Pick<ServiceImpl<typeof CronService>, "previewCronJob" | "getCronHerd"> {
  return {
    async previewCronJob(req, ctx) {
      const job = req.cronId === "" ? undefined : await requireCronJob(app.db, ctx, req.cronId);
      const isStored = job !== undefined && req.cronExpr === "";
      if (isStored) requireNoSchedule(req);
      else if (req.cronExpr === "") throw Refusal.field("cron_expr", "is needed where cron_id is not given");
      const policies = isStored ? job : schedulePolicies(req);
      const seed = job?.cron_id ?? "";
      const schedule = isStored
        ? scheduleOf(job)
        : parseSchedule({ expression: req.cronExpr, timezone: req.timezone, seed, rules: rulesOf(policies) });
      const spreading = { spreadSeconds: policies.spread_seconds, jitterSeconds: policies.jitter_seconds };
      const after = req.after === undefined ? await scheduleNow(app.db) : instantOf("after", req.after);
      const until = req.until === undefined ? undefined : instantOf("until", req.until);
      const count = req.count ?? (until === undefined ? PREVIEWED_FIRES : MAX_PREVIEWED_FIRES);
      const answer = await preview({ schedule, spreading, seed }, { after, until, count });
      return { ...answer, warnings: [...schedule.warnings, ...seedWarnings(schedule, spreading, seed)] };
    },

    async getCronHerd(req, ctx) {
      const bucketSeconds = req.bucketSeconds ?? HERD_BUCKET_SECONDS;
      const now = await scheduleNow(app.db);
      const until = new Date(now.getTime() + (req.hours ?? HERD_HOURS) * 3_600_000);
      return herdOf(app.db, projectOf(ctx), { now, until, bucketSeconds });
    },
  };
}

/** @throws Refusal FIELD_INVALID for a field that would not be used. */
function requireNoSchedule(req: PreviewCronJobRequest): void {
  const given = [
    ["timezone", req.timezone !== ""],
    ["dst_gap", req.dstGap !== 0],
    ["dst_overlap", req.dstOverlap !== 0],
    ["start_at", req.startAt !== undefined],
    ["end_at", req.endAt !== undefined],
    ["spread_seconds", req.spreadSeconds !== undefined],
    ["jitter_seconds", req.jitterSeconds !== undefined],
  ] as const;
  for (const [field, isGiven] of given) {
    if (isGiven) throw Refusal.field(field, "is that of the cron job where cron_expr is not given");
  }
}

interface Previewed {
  readonly schedule: Schedule;
  readonly spreading: Spreading;
  readonly seed: string;
}

interface PreviewedRange {
  readonly after: Date;
  readonly until: Date | undefined;
  readonly count: number;
}

async function preview(
  { schedule, spreading, seed }: Previewed,
  { after, until, count }: PreviewedRange,
): Promise<MessageInitShape<typeof PreviewCronJobResponseSchema>> {
  const fires: MessageInitShape<typeof PreviewedFireSchema>[] = [];
  const isWanted = (at: Date | undefined): at is Date => at !== undefined && (until === undefined || at <= until);
  const isFull = (at: Date) =>
    fires.length >= count || (fires.length >= FAR_FIRES && at.getTime() - after.getTime() > FAR_MS);
  let last = after;
  let fireAt = nextFireAt(schedule, after);
  while (isWanted(fireAt) && !isFull(fireAt)) {
    const next = nextFireAt(schedule, fireAt);
    const note = clockNoteOf(schedule, fireAt);
    fires.push({
      fireAt: timestampFromDate(fireAt),
      effectiveAt: timestampFromDate(effectiveAt(spreading, seed, fireAt, next)),
      localTime: localTimeOf(schedule.timezone, fireAt),
      ...(note !== undefined && { dstNote: noteText(note) }),
    });
    last = fireAt;
    fireAt = next;
    if (fires.length % FIRES_A_TURN === 0) await setImmediate();
  }
  return {
    cronExpr: schedule.expression,
    timezone: schedule.timezone,
    description: describeSchedule(schedule),
    fires,
    skipped: skippedInGaps(schedule, after, last).map(({ from, to, count: times }) => ({
      from: timestampFromDate(from),
      to: timestampFromDate(to),
      count: times,
    })),
    ...(isWanted(fireAt) && { nextAfter: timestampFromDate(last) }),
  };
}

function noteText(note: ClockNote): string {
  switch (note.kind) {
    case "after_gap": {
      const time = new Date(note.skippedWallMs).toISOString().slice(11, 19);
      return `the clock skips ${time} on this day, so it fires later by the length of the gap`;
    }
    case "first_of_two":
      return "the clock shows this time twice; this is the first time";
    case "second_of_two":
      return "the clock shows this time twice; this is the second time";
  }
}

function seedWarnings(schedule: Schedule, { spreadSeconds, jitterSeconds }: Spreading, seed: string): string[] {
  if (seed !== "") return [];
  const warnings: string[] = [];
  if (/(^| |,)H/.test(schedule.expression)) {
    warnings.push("H is drawn from a job's id: a job that is created fires at other times than these");
  }
  if (spreadSeconds > 0 || jitterSeconds > 0) {
    warnings.push("delays are drawn from a job's id: those of a job that is created are others");
  }
  return warnings;
}

async function herdOf(
  db: Db,
  projectId: string,
  { now, until, bucketSeconds }: { readonly now: Date; readonly until: Date; readonly bucketSeconds: number },
) {
  const herds = await cronHerds(db, projectId, until, MAX_HERDS + 1);
  const herd = new Herd(now, until, bucketSeconds);
  let jobs = 0;
  for (const [index, stored] of herds.slice(0, MAX_HERDS).entries()) {
    if (herd.isTruncated) break;
    if (index % HERDS_A_TURN === HERDS_A_TURN - 1) await setImmediate();
    const schedule = readableScheduleOf(stored);
    if (schedule === undefined) continue;
    const spreading = { spreadSeconds: stored.spread_seconds, jitterSeconds: stored.jitter_seconds };
    const member = { schedule, spreading, seed: stored.cron_id, jobs: stored.jobs };
    for (const _ of herd.counting(member)) await setImmediate();
    jobs += stored.jobs;
  }
  return {
    bucketSeconds,
    buckets: herd.buckets.map(({ startsAt, fires }) => ({ startsAt: timestampFromDate(startsAt), fires })),
    fires: herd.buckets.reduce((sum, { fires }) => sum + fires, 0),
    peaks: herd.peaks.map(({ at, fires }) => ({ at: timestampFromDate(at), fires })),
    cronJobs: jobs,
    truncated: herd.isTruncated || herds.length > MAX_HERDS,
  };
}
