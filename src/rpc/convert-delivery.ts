import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type DeliverySchema, type ReplaySchema, ReplayState } from "../../gen/scheduling/v1/delivery_service_pb.js";
import type { ReplayRow } from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import type { DeliveryRow } from "../store/deliveries.ts";
import { filterOfReplay } from "../store/replays.ts";
import { STORED_STATES, toRunKind, toRunTrigger } from "./convert-run.ts";
import { fromDeliveryFilter } from "./delivery-filter.ts";

const REPLAY_STATES = {
  running: ReplayState.RUNNING,
  succeeded: ReplayState.SUCCEEDED,
  canceled: ReplayState.CANCELED,
} as const;

/** A delivery as callers see it; lists read no bodies. */
export function toDelivery(row: DeliveryRow): MessageInitShape<typeof DeliverySchema> {
  return {
    deliveryId: formatId("dlv", row.delivery_id),
    runId: formatId("run", row.run_id),
    attempt: row.attempt,
    kind: toRunKind(row),
    trigger: toRunTrigger(row),
    state: STORED_STATES[row.state],
    ...(row.cron_id !== null && { cronId: formatId("cron", row.cron_id) }),
    ...(row.task_id !== null && { taskId: formatId("task", row.task_id) }),
    ...(row.subscription_id !== null && { subscriptionId: formatId("sub", row.subscription_id) }),
    ...(row.message_id !== null && { messageId: formatId("msg", row.message_id) }),
    ...(row.webhook_id !== null && { webhookId: formatId("wh", row.webhook_id) }),
    ...(row.replay_of !== null && { replayOf: formatId("run", row.replay_of) }),
    url: row.url,
    startedAt: timestampFromDate(row.started_at),
    ...(row.finished_at !== null && { finishedAt: timestampFromDate(row.finished_at) }),
    ...(row.response_status !== null && { responseStatus: row.response_status }),
    ...(row.error !== null && { error: row.error }),
    ...(row.duration_ms !== null && { durationMs: row.duration_ms }),
    ...(row.dns_ms !== null && { dnsMs: row.dns_ms }),
    ...(row.connect_ms !== null && { connectMs: row.connect_ms }),
    ...(row.tls_ms !== null && { tlsMs: row.tls_ms }),
    ...(row.first_byte_ms !== null && { firstByteMs: row.first_byte_ms }),
    requestHeaders: row.request_headers ?? {},
    responseHeaders: row.response_headers ?? {},
    // What is not UTF-8 shows as replacement characters: a text field carries nothing else.
    ...(row.response_body !== null && { responseBody: row.response_body.toString("utf8") }),
    ...(row.next_attempt_at !== null && { nextAttemptAt: timestampFromDate(row.next_attempt_at) }),
  };
}

/** A replay as callers see it. */
export function toReplay(row: ReplayRow): MessageInitShape<typeof ReplaySchema> {
  return {
    replayId: formatId("rpl", row.replay_id),
    filter: fromDeliveryFilter(filterOfReplay(row)),
    ...(row.runs_per_second !== null && { ratePerSecond: row.runs_per_second }),
    state: REPLAY_STATES[row.state],
    matched: row.matched,
    replayed: row.replayed,
    refused: row.refused,
    startedAt: timestampFromDate(row.started_at),
    ...(row.finished_at !== null && { finishedAt: timestampFromDate(row.finished_at) }),
  };
}
