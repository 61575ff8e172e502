import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { TaskState } from "../../gen/scheduling/v1/task_service_pb.js";
import { Refusal } from "../errors.ts";
import type { TaskFilter } from "../store/task-filter.ts";
import { fromTaskState } from "./convert-task.ts";
import { instantOf } from "./instant.ts";

/** The fields of a filter, as a message of their own or among those of a request. */
interface FilterFields {
  readonly state: TaskState;
  readonly labels: readonly string[];
  readonly since?: Timestamp | undefined;
  readonly until?: Timestamp | undefined;
}

/**
 * The store's filter; undefined when it can find nothing, because a label is to have two values. `prefix` leads to the
 * fields in the request, for refusals.
 *
 * @throws Refusal FIELD_INVALID
 */
export function toTaskFilter(prefix: string, given: FilterFields): TaskFilter | undefined {
  const since = given.since && instantOf(`${prefix}since`, given.since);
  const until = given.until && instantOf(`${prefix}until`, given.until);
  if (since !== undefined && until !== undefined && until <= since) {
    throw Refusal.field(`${prefix}until`, `must be after ${prefix}since`);
  }
  const labels = new Map<string, string>();
  for (const label of given.labels) {
    const at = label.indexOf("=");
    const [name, value] = [label.slice(0, at), label.slice(at + 1)];
    if ((labels.get(name) ?? value) !== value) return undefined;
    labels.set(name, value);
  }
  const state = fromTaskState(given.state);
  return {
    ...(state !== undefined && { states: [state] }),
    ...(labels.size > 0 && { labels: Object.fromEntries(labels) }),
    ...(since !== undefined && { since }),
    ...(until !== undefined && { until }),
  };
}
