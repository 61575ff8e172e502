import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type EndpointSchema, EndpointState } from "../../gen/scheduling/v1/endpoint_service_pb.js";
import { currentRate } from "../domain/admission.ts";
import type * as breaker from "../domain/breaker.ts";
import { formatId } from "../domain/ids.ts";
import { controlOf, type EndpointView } from "../store/endpoints.ts";
import { storedName } from "./convert-run.ts";

const STATES = {
  closed: EndpointState.CLOSED,
  open: EndpointState.OPEN,
  half_open: EndpointState.HALF_OPEN,
  disabled: EndpointState.DISABLED,
} as const;

/** The stored state, or undefined for unspecified. */
export function fromEndpointState(state: EndpointState): breaker.EndpointState | undefined {
  return storedName(STATES, state);
}

/** An endpoint as callers see it. */
export function toEndpoint(row: EndpointView): MessageInitShape<typeof EndpointSchema> {
  const rate = currentRate(controlOf(row), row.now.getTime());
  const paused = row.paused_until !== null && row.paused_until > row.now;
  return {
    endpointId: formatId("ep", row.endpoint_id),
    url: row.address,
    state: STATES[row.state],
    ...(row.reason !== null && { reason: row.reason }),
    changedAt: timestampFromDate(row.changed_at),
    ...(row.max_concurrency !== null && { maxConcurrency: row.max_concurrency }),
    ...(row.max_rate !== null && { maxRate: row.max_rate }),
    ...(rate !== undefined && { currentRate: rate }),
    ...(paused && row.paused_until !== null && { pausedUntil: timestampFromDate(row.paused_until) }),
    ...(row.next_probe_at !== null && { nextProbeAt: timestampFromDate(row.next_probe_at) }),
    succeeded: row.succeeded,
    failed: row.failed,
    throttled: row.throttled,
    inFlight: row.in_flight,
    waiting: row.waiting,
    createdAt: timestampFromDate(row.created_at),
    updatedAt: timestampFromDate(row.updated_at),
  };
}
