import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { DeliveryFilterSchema, ListDeliveriesRequest } from "../../gen/scheduling/v1/delivery_service_pb.js";
import { formatId, type IdPrefix, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import type { DeliveryFilter } from "../store/deliveries.ts";
import { fromRunKind, fromRunState, STORED_KINDS, STORED_STATES } from "./convert-run.ts";
import { instantOf } from "./instant.ts";

/** The fields of a filter, as a message of their own or among those of a request. */
type FilterFields = Pick<
  ListDeliveriesRequest,
  | "runId"
  | "messageId"
  | "cronId"
  | "taskId"
  | "subscriptionId"
  | "queue"
  | "webhookId"
  | "kind"
  | "state"
  | "responseStatus"
  | "statusClass"
  | "error"
  | "url"
  | "since"
  | "until"
>;

/** The fields that name something, and what their ids begin with. */
const IDS = {
  runId: "run",
  messageId: "msg",
  cronId: "cron",
  taskId: "task",
  subscriptionId: "sub",
  webhookId: "wh",
} as const satisfies Record<string, IdPrefix>;

/**
 * The store's filter; undefined when it can find nothing, because it names what cannot exist. `prefix` leads to the fields
 * in the request, for refusals.
 *
 * @throws Refusal FIELD_INVALID
 */
export function toDeliveryFilter(prefix: string, given: FilterFields): DeliveryFilter | undefined {
  const since = given.since && instantOf(`${prefix}since`, given.since);
  const until = given.until && instantOf(`${prefix}until`, given.until);
  if (since !== undefined && until !== undefined && until <= since) {
    throw Refusal.field(`${prefix}until`, `must be after ${prefix}since`);
  }
  const ids: { -readonly [Field in keyof typeof IDS]?: string } = {};
  for (const [field, idPrefix] of Object.entries(IDS) as [keyof typeof IDS, IdPrefix][]) {
    if (given[field] === "") continue;
    const id = parseId(idPrefix, given[field]);
    if (id === undefined) return undefined;
    ids[field] = id;
  }
  const kind = fromRunKind(given.kind);
  const state = fromRunState(given.state);
  return {
    ...ids,
    ...(given.queue !== "" && { queue: given.queue }),
    ...(kind !== undefined && { kind }),
    ...(state !== undefined && { state }),
    ...(given.responseStatus !== undefined && { responseStatus: given.responseStatus }),
    ...(given.statusClass !== undefined && { statusClass: given.statusClass }),
    ...(given.error !== "" && { error: given.error }),
    ...(given.url !== "" && { url: given.url }),
    ...(since !== undefined && { since }),
    ...(until !== undefined && { until }),
  };
}

/** The contract's filter. */
export function fromDeliveryFilter(filter: DeliveryFilter): MessageInitShape<typeof DeliveryFilterSchema> {
  const { kind, state, since, until, runId, messageId, cronId, taskId, subscriptionId, webhookId, ...rest } = filter;
  const ids = { runId, messageId, cronId, taskId, subscriptionId, webhookId };
  const said = Object.entries(ids).flatMap(([field, id]) =>
    id === undefined ? [] : [[field, formatId(IDS[field as keyof typeof IDS], id)]],
  );
  return {
    ...Object.fromEntries(said),
    ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined)),
    ...(kind && { kind: STORED_KINDS[kind] }),
    ...(state && { state: STORED_STATES[state] }),
    ...(since && { since: timestampFromDate(since) }),
    ...(until && { until: timestampFromDate(until) }),
  };
}
