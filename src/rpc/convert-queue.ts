import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  type QueueActivitySchema,
  type QueueMessageSchema,
  type QueueSchema,
  type QueueStatsSchema,
  QueueType,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { formatId } from "../domain/ids.ts";
import type { MessageRow } from "../store/messages.ts";
import type { ActivityRow } from "../store/queue-history.ts";
import type { QueueStatsRow } from "../store/queue-stats.ts";
import type { NamedQueueRow } from "../store/queues.ts";
import { toFlow } from "./flow-limits.ts";

const QUEUE_TYPES = { standard: QueueType.STANDARD, fifo: QueueType.FIFO } as const;

export function toQueue(row: NamedQueueRow): MessageInitShape<typeof QueueSchema> {
  return {
    queue: row.name,
    type: QUEUE_TYPES[row.type],
    ...(row.dead_letter_queue === null ? {} : { deadLetterQueue: row.dead_letter_queue }),
    maxRetries: row.max_retries,
    messageRetentionDays: row.message_retention_days,
    visibilityTimeoutDefault: row.visibility_timeout_seconds,
    enablePriority: row.enable_priority,
    ...toFlow(row),
    paused: row.paused,
    createdAt: timestampFromDate(row.created_at),
    updatedAt: timestampFromDate(row.updated_at),
    requireReceipt: row.require_receipt,
    contentDeduplication: row.content_deduplication,
    deduplicationWindowSeconds: row.deduplication_window_seconds,
  };
}

/** Messages that were handed out together. They share most of their instants, which are made once each. */
export function toMessages(rows: readonly MessageRow[]): MessageInitShape<typeof QueueMessageSchema>[] {
  const made = new Map<Date, Timestamp>();
  const timestamp = (at: Date): Timestamp => {
    const known = made.get(at) ?? timestampFromDate(at);
    made.set(at, known);
    return known;
  };
  return rows.map((row) => toMessage(row, timestamp));
}

export function toMessage(
  row: MessageRow,
  timestamp: (at: Date) => Timestamp = timestampFromDate,
): MessageInitShape<typeof QueueMessageSchema> {
  return {
    messageId: formatId("msg", row.message_id),
    payload: row.payload,
    contentType: row.content_type,
    attempts: row.receive_count,
    enqueuedAt: timestamp(row.published_at),
    availableAt: timestamp(row.visible_at),
    priority: row.priority,
    failures: row.failure_count,
    returns: row.return_count,
    expiries: row.expiry_count,
    headers: row.headers,
    ...(row.group_id === "" ? {} : { groupId: row.group_id }),
    ...(row.lease_token === null ? {} : { receipt: row.lease_token }),
    ...(row.lease_expires_at === null ? {} : { leaseExpiresAt: timestamp(row.lease_expires_at) }),
    ...(row.dead_reason === null ? {} : { reason: row.dead_reason }),
    ...(row.dead_reason === null || row.error === null ? {} : { error: row.error }),
    ...(row.dead_lettered_at === null ? {} : { deadLetteredAt: timestamp(row.dead_lettered_at) }),
    ...(row.source_queue === null ? {} : { sourceQueue: row.source_queue }),
  };
}

/** Rates are over the 60 seconds that the counts cover. */
export function toStats(
  queue: NamedQueueRow,
  row: QueueStatsRow,
  lastHour: ActivityRow,
): MessageInitShape<typeof QueueStatsSchema> {
  return {
    queue: queue.name,
    available: row.available,
    delayed: row.delayed,
    inFlight: row.in_flight,
    dlq: row.dead,
    ...(row.oldest_age_seconds === null ? {} : { oldestAgeSeconds: row.oldest_age_seconds }),
    paused: queue.paused,
    lastHour: toActivity(lastHour),
    rates: { publishedPerSecond: row.published / 60, ackedPerSecond: row.acked / 60 },
  };
}

export function toActivity(row: ActivityRow): MessageInitShape<typeof QueueActivitySchema> {
  const { published, delivered, acked, nacked, expired, dead } = row;
  return { published, delivered, acked, nacked, expired, dead };
}
