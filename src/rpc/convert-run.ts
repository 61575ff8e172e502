import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  OverlapPolicy,
  type RunAttemptSchema,
  RunKind,
  type RunSchema,
  RunState,
  RunTrigger,
} from "../../gen/scheduling/v1/run_pb.js";
import type * as rows from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import type * as overlap from "../domain/overlap.ts";

const KINDS = { cron: RunKind.CRON, task: RunKind.TASK, push: RunKind.PUSH, callback: RunKind.UNSPECIFIED } as const;
const STATES = {
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
  return storedName(KINDS, kind);
}

/** The stored run state, or undefined for unspecified. */
export function fromRunState(state: RunState): rows.RunState | undefined {
  return storedName(STATES, state);
}

/** The stored overlap policy, or undefined for unspecified. */
export function fromOverlapPolicy(policy: OverlapPolicy | undefined): overlap.OverlapPolicy | undefined {
  return storedName(OVERLAP_POLICIES, policy);
}

/** The contract's value of a stored overlap policy. */
export function toOverlapPolicy(policy: overlap.OverlapPolicy): OverlapPolicy {
  return OVERLAP_POLICIES[policy];
}

/** A run as callers see it; lists leave `attempts` out. */
export function toRun(
  run: rows.RunRow,
  attempts: readonly rows.RunAttemptRow[] = [],
): MessageInitShape<typeof RunSchema> {
  const hasNext = (run.state === "pending" || run.state === "retrying") && !run.waiting;
  return {
    runId: formatId("run", run.run_id),
    kind: KINDS[run.kind],
    ...(run.cron_id !== null && { cronId: formatId("cron", run.cron_id) }),
    ...(run.task_id !== null && { taskId: formatId("task", run.task_id) }),
    ...(run.subscription_id !== null && { subscriptionId: formatId("sub", run.subscription_id) }),
    ...(run.message_id !== null && { messageId: formatId("msg", run.message_id) }),
    state: STATES[run.state],
    trigger: TRIGGERS[run.trigger],
    scheduledAt: timestampFromDate(run.fire_at),
    startedAt: timestampFromDate(run.started_at ?? run.created_at),
    ...(run.finished_at !== null && { finishedAt: timestampFromDate(run.finished_at) }),
    ...(hasNext && { nextAttemptAt: timestampFromDate(run.run_at) }),
    attempt: run.attempt,
    ...(run.response_status !== null && { responseStatus: run.response_status }),
    ...(run.error !== null && { error: run.error }),
    fireCount: run.fire_count,
    attempts: attempts.map(toAttempt),
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
