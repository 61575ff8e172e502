import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  OverlapPolicy,
  type RunAttemptSchema,
  RunDisposition,
  RunKind,
  RunPingKind,
  type RunPingSchema,
  type RunSchema,
  RunState,
  RunTrigger,
  RunWait,
} from "../../gen/scheduling/v1/run_pb.js";
import type * as rows from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import type * as overlap from "../domain/overlap.ts";

/** The contract's values of the stored run kinds. */
export const STORED_KINDS = {
  cron: RunKind.CRON,
  task: RunKind.TASK,
  push: RunKind.PUSH,
  callback: RunKind.EVENT,
} as const;
/** The contract's values of the stored run states. */
export const STORED_STATES = {
  pending: RunState.PENDING,
  running: RunState.RUNNING,
  retrying: RunState.RETRYING,
  succeeded: RunState.SUCCEEDED,
  failed: RunState.FAILED,
  skipped: RunState.SKIPPED,
  missed: RunState.MISSED,
  canceled: RunState.CANCELED,
} as const;
const TRIGGERS = {
  schedule: RunTrigger.SCHEDULE,
  catch_up: RunTrigger.CATCH_UP,
  manual: RunTrigger.MANUAL,
  message: RunTrigger.MESSAGE,
  test: RunTrigger.TEST,
  backfill: RunTrigger.BACKFILL,
  ping: RunTrigger.PING,
} as const;
const PING_KINDS = {
  start: RunPingKind.START,
  success: RunPingKind.SUCCESS,
  fail: RunPingKind.FAIL,
  log: RunPingKind.LOG,
} as const;
/** The longest duration that is shown, in milliseconds (24 days). */
const MAX_DURATION_MS = 2 ** 31 - 1;
const DISPOSITIONS = {
  ran: RunDisposition.RAN,
  caught_up: RunDisposition.CAUGHT_UP,
  skipped_overlap: RunDisposition.SKIPPED_OVERLAP,
  missed: RunDisposition.MISSED,
  dst_gap: RunDisposition.DST_GAP,
  paused: RunDisposition.PAUSED,
  max_runs: RunDisposition.MAX_RUNS,
  expired: RunDisposition.EXPIRED,
  canceled: RunDisposition.CANCELED,
} as const;
const OVERLAP_POLICIES = {
  allow: OverlapPolicy.ALLOW,
  skip: OverlapPolicy.SKIP,
  queue: OverlapPolicy.QUEUE,
  cancel_previous: OverlapPolicy.CANCEL_PREVIOUS,
} as const;

/** The key that a value of the contract's enum is stored as, or undefined for unspecified. */
export function storedName<Name extends string>(
  names: Readonly<Record<Name, number>>,
  value: number | undefined,
): Name | undefined {
  if (value === undefined || value === 0) return undefined;
  return (Object.keys(names) as Name[]).find((name) => names[name] === value);
}

/** The stored run kind, or undefined for unspecified. */
export function fromRunKind(kind: RunKind): rows.RunKind | undefined {
  return storedName(STORED_KINDS, kind);
}

/** The stored run state, or undefined for unspecified. */
export function fromRunState(state: RunState): rows.RunState | undefined {
  return storedName(STORED_STATES, state);
}

/** The stored disposition, or undefined for unspecified. */
export function fromRunDisposition(disposition: RunDisposition): rows.RunDisposition | undefined {
  return storedName(DISPOSITIONS, disposition);
}

/** The contract's value of a stored disposition. */
export function toRunDisposition(disposition: rows.RunDisposition | undefined): RunDisposition {
  return disposition === undefined ? RunDisposition.UNSPECIFIED : DISPOSITIONS[disposition];
}

/** The stored overlap policy, or undefined for unspecified. */
export function fromOverlapPolicy(policy: OverlapPolicy | undefined): overlap.OverlapPolicy | undefined {
  return storedName(OVERLAP_POLICIES, policy);
}

/** The contract's value of a stored overlap policy. */
export function toOverlapPolicy(policy: overlap.OverlapPolicy): OverlapPolicy {
  return OVERLAP_POLICIES[policy];
}

/** The contract's value of what caused a run. */
export function toRunTrigger(run: Pick<rows.RunRow, "trigger" | "replay_of">): RunTrigger {
  return run.replay_of === null ? TRIGGERS[run.trigger] : RunTrigger.REPLAY;
}

/** The contract's value of what a run is of. A push that is made once more is stored as a callback with a message. */
export function toRunKind({ kind, message_id }: Pick<rows.RunRow, "kind" | "message_id">): RunKind {
  return kind === "callback" && message_id !== null ? RunKind.PUSH : STORED_KINDS[kind];
}

/** A run as callers see it; lists leave `attempts` and `pings` out. */
export function toRun(
  run: rows.RunRow,
  attempts: readonly rows.RunAttemptRow[] = [],
  pings: readonly rows.RunPingRow[] = [],
): MessageInitShape<typeof RunSchema> {
  const hasNext = (run.state === "pending" || run.state === "retrying") && !run.waiting;
  return {
    runId: formatId("run", run.run_id),
    kind: toRunKind(run),
    ...(run.cron_id !== null && { cronId: formatId("cron", run.cron_id) }),
    ...(run.task_id !== null && { taskId: formatId("task", run.task_id) }),
    ...(run.subscription_id !== null && { subscriptionId: formatId("sub", run.subscription_id) }),
    ...(run.message_id !== null && { messageId: formatId("msg", run.message_id) }),
    state: STORED_STATES[run.state],
    trigger: toRunTrigger(run),
    scheduledAt: timestampFromDate(run.fire_at),
    startedAt: timestampFromDate(run.started_at ?? run.created_at),
    ...(run.finished_at !== null && { finishedAt: timestampFromDate(run.finished_at) }),
    ...(hasNext && { nextAttemptAt: timestampFromDate(run.run_at) }),
    attempt: run.attempt,
    ...(run.response_status !== null && { responseStatus: run.response_status }),
    ...(run.error !== null && { error: run.error }),
    fireCount: run.fire_count,
    effectiveAt: timestampFromDate(run.effective_at ?? run.fire_at),
    disposition: toRunDisposition(run.disposition ?? undefined),
    ...(run.fire_until !== null && { fireUntil: timestampFromDate(run.fire_until) }),
    attempts: attempts.map(toAttempt),
    ...(run.replay_of !== null && { replayOf: formatId("run", run.replay_of) }),
    ...(run.waiting && { waitingFor: run.trigger === "ping" ? RunWait.PING : RunWait.OVERLAP }),
    ...(run.parked && { waitingFor: RunWait.ENDPOINT }),
    ...(run.endpoint_id !== null && { endpointId: formatId("ep", run.endpoint_id) }),
    ...(run.exit_code !== null && { exitCode: run.exit_code }),
    ...(run.ping_rid !== null && { rid: run.ping_rid }),
    ...durationOf(run),
    pings: pings.map(toPing),
  };
}

/** Of what was told of at its end only, start and end are one instant. */
function durationOf({ started_at: start, finished_at: end }: rows.RunRow): { durationMs?: number } {
  if (start === null || end === null || end <= start) return {};
  return { durationMs: Math.min(end.getTime() - start.getTime(), MAX_DURATION_MS) };
}

function toPing(ping: rows.RunPingRow): MessageInitShape<typeof RunPingSchema> {
  return {
    kind: PING_KINDS[ping.kind],
    receivedAt: timestampFromDate(ping.received_at),
    ...(ping.exit_code !== null && { exitCode: ping.exit_code }),
    ...(ping.body !== null && { body: ping.body }),
  };
}

function toAttempt(attempt: rows.RunAttemptRow): MessageInitShape<typeof RunAttemptSchema> {
  return {
    attempt: attempt.attempt,
    startedAt: timestampFromDate(attempt.started_at),
    ...(attempt.finished_at !== null && { finishedAt: timestampFromDate(attempt.finished_at) }),
    ...(attempt.response_status !== null && { responseStatus: attempt.response_status }),
    ...(attempt.error !== null && { error: attempt.error }),
    ...(attempt.duration_ms !== null && { durationMs: attempt.duration_ms }),
    // What is not UTF-8 shows as replacement characters: a text field carries nothing else.
    ...(attempt.response_body !== null && { responseBody: attempt.response_body.toString("utf8") }),
  };
}
