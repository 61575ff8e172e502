import { type FlowLimits, QueueType } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { QueueRow, QueueType as StoredType } from "../db/schema.ts";
import { Refusal } from "../errors.ts";
import type { QueueChanges } from "../store/queues.ts";

interface FlowFields {
  readonly fair?: boolean | undefined;
  readonly flow?: FlowLimits | undefined;
  readonly groupFlow?: FlowLimits | undefined;
}

type FlowColumns = Pick<QueueChanges, "fair"> & ReturnType<typeof queueColumns> & ReturnType<typeof groupColumns>;

/**
 * How a new queue is to be handed out: what a request leaves out is not limited.
 *
 * @throws Refusal FIELD_INVALID of group_flow.max_in_flight
 */
export function flowSettings(req: FlowFields & { readonly type: QueueType }): FlowColumns {
  assertGroupFlow(req.groupFlow, req.type === QueueType.FIFO ? "fifo" : "standard");
  return { fair: req.fair ?? false, ...queueColumns(req.flow), ...groupColumns(req.groupFlow) };
}

/** The changes of an update, which writes the fields named. @throws Refusal FIELD_INVALID of group_flow.max_in_flight */
export function flowChanges(req: FlowFields, written: ReadonlySet<string>, type: StoredType): Partial<FlowColumns> {
  assertGroupFlow(req.groupFlow, type);
  return {
    ...(written.has("fair") && { fair: req.fair ?? false }),
    ...(written.has("flow") && queueColumns(req.flow)),
    ...(written.has("group_flow") && groupColumns(req.groupFlow)),
  };
}

function assertGroupFlow(limits: FlowLimits | undefined, type: StoredType): void {
  if (type === "fifo" && (limits?.maxInFlight ?? 0) > 1) {
    throw Refusal.field(
      "group_flow.max_in_flight",
      "must be 0 or 1 in a FIFO queue: a group has one message in flight",
    );
  }
}

const queueColumns = (limits: FlowLimits | undefined) => ({
  max_in_flight: limits?.maxInFlight ?? 0,
  rate_limit: limits?.rateLimit ?? 0,
  rate_period_seconds: limits?.ratePeriodSeconds ?? 1,
});

const groupColumns = (limits: FlowLimits | undefined) => ({
  group_max_in_flight: limits?.maxInFlight ?? 0,
  group_rate_limit: limits?.rateLimit ?? 0,
  group_rate_period_seconds: limits?.ratePeriodSeconds ?? 1,
});

/** What a request to create says of the flow, beside what the queue has: fields and two values each, to be compared. */
export function saidOfFlow(req: FlowFields, queue: QueueRow): (readonly [field: string, said: unknown, is: unknown])[] {
  const compare = (field: string, columns: Readonly<Record<string, number>>, limits: FlowLimits | undefined) =>
    Object.entries(columns).map(([column, said]) => [field, limits && said, queue[column as keyof QueueRow]] as const);
  return [
    ["fair", req.fair || undefined, queue.fair],
    ...compare("flow", queueColumns(req.flow), req.flow),
    ...compare("group_flow", groupColumns(req.groupFlow), req.groupFlow),
  ];
}

/** The flow settings of a queue as answers show them: limits only where there are any. */
export function toFlow(row: QueueRow) {
  const flow = limits(row.max_in_flight, row.rate_limit, row.rate_period_seconds);
  const groupFlow = limits(row.group_max_in_flight, row.group_rate_limit, row.group_rate_period_seconds);
  return { fair: row.fair, ...(flow && { flow }), ...(groupFlow && { groupFlow }) };
}

function limits(maxInFlight: number, rateLimit: number, ratePeriodSeconds: number) {
  return maxInFlight > 0 || rateLimit > 0 ? { maxInFlight, rateLimit, ratePeriodSeconds } : undefined;
}
