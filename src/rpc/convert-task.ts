import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type TaskSchema, TaskState } from "../../gen/scheduling/v1/task_service_pb.js";
import type * as rows from "../db/schema.ts";
import { hideCredentials } from "../domain/credentials.ts";
import { formatId } from "../domain/ids.ts";
import type { TaskView } from "../store/tasks.ts";
import { storedName, toRun } from "./convert-run.ts";
import { toRetryPolicy } from "./retry-policy.ts";

const STATES = {
  scheduled: TaskState.SCHEDULED,
  running: TaskState.RUNNING,
  retrying: TaskState.RETRYING,
  succeeded: TaskState.SUCCEEDED,
  failed: TaskState.FAILED,
  canceled: TaskState.CANCELED,
  expired: TaskState.EXPIRED,
} as const;

/** The stored task state, or undefined for unspecified. */
export function fromTaskState(state: TaskState): rows.TaskState | undefined {
  return storedName(STATES, state);
}

/** The contract's value of a stored task state. */
export function toTaskState(state: rows.TaskState): TaskState {
  return STATES[state];
}

/** A task as callers see it. */
export function toTask({ task, lastRun }: TaskView): MessageInitShape<typeof TaskSchema> {
  return {
    taskId: formatId("task", task.task_id),
    name: task.name,
    url: task.url,
    runAt: timestampFromDate(task.run_at),
    state: STATES[task.state],
    ...(task.payload !== null && { payload: task.payload }),
    contentType: task.content_type,
    headers: hideCredentials(task.headers),
    retries: task.retries,
    ...(task.backoff !== null && { retryPolicy: toRetryPolicy(task.backoff) }),
    timeoutSeconds: task.timeout_seconds,
    ...(task.grace_seconds !== null && { graceSeconds: task.grace_seconds }),
    ...(task.on_failure_webhook !== null && { onFailureWebhook: task.on_failure_webhook }),
    ...(lastRun !== undefined && { lastRun: toRun(lastRun) }),
    labels: task.labels,
    ...(task.debounce_key !== null && {
      debounce: {
        key: task.debounce_key,
        ...(task.debounce_max_wait_seconds !== null && { maxWaitSeconds: task.debounce_max_wait_seconds }),
      },
    }),
    createdAt: timestampFromDate(task.created_at),
    updatedAt: timestampFromDate(task.updated_at),
  };
}
