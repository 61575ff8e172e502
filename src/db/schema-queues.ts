import type { ColumnType, Generated } from "kysely";
import type { Headers, Stamp, StoredBackoff } from "./schema-columns.ts";

export type QueueType = "standard" | "fifo";

export interface QueuesTable {
  project_id: string;
  queue_id: Generated<string>;
  name: string;
  type: QueueType;
  dead_letter_queue_id: string | null;
  /** The lane of its own dead letters. Nothing consumes from it. */
  graveyard_id: Generated<string>;
  max_retries: number;
  message_retention_days: number;
  visibility_timeout_seconds: number;
  enable_priority: boolean;
  /** Whether messages of equal content and group count as one, as those with equal deduplication keys do. */
  content_deduplication: Generated<boolean>;
  /** How long a message stands for later ones with its key, in seconds. */
  deduplication_window_seconds: Generated<number>;
  /** Whether a delivery can only be settled by its receipt. */
  require_receipt: Generated<boolean>;
  /** Whether groups with fewer messages in flight come first. */
  fair: Generated<boolean>;
  /** Limits of the whole queue, and of each group. 0 is none. */
  max_in_flight: Generated<number>;
  rate_limit: Generated<number>;
  rate_period_seconds: Generated<number>;
  group_max_in_flight: Generated<number>;
  group_rate_limit: Generated<number>;
  group_rate_period_seconds: Generated<number>;
  /** Whether it is handed out group by group, which its type and settings say. */
  grouped: ColumnType<boolean, never, never>;
  /** Whether limits of the whole queue count, which its settings say. */
  metered: ColumnType<boolean, never, never>;
  paused: Generated<boolean>;
  /** The lane of messages that subscriptions have, each with its own progress. Nothing consumes from it. */
  push_lane_id: Generated<string>;
  /** Numbers the queue's line. Never used again. */
  lane_id: Generated<string>;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

export interface MessagesTable {
  project_id: string;
  queue_id: string;
  message_id: string;
  seq: ColumnType<string, number | string, number | string>;
  /** Empty: none, which in a FIFO queue is a group like any other. */
  group_id: string;
  /** Place in line: visible_at, less a minute for each step of priority. */
  rank: Date;
  priority: number;
  visible_at: Date;
  /** Token of the newest hand-out. It outlives the lease, so that a late ack can be told from a stale one. */
  lease_token: string | null;
  lease_expires_at: Date | null;
  lease_request: string | null;
  receive_count: Generated<number>;
  failure_count: Generated<number>;
  /** How many leases ran out. */
  expiry_count: Generated<number>;
  /** How many times it was given back without a failure. */
  return_count: Generated<number>;
  /** Acked while somebody else might hold it: gone for everyone, but its FIFO group waits for the lease to end. */
  acked: Generated<boolean>;
  error: string | null;
  published_at: Date;
  expires_at: Date;
  /** Set on a dead letter: the queue that it died in. */
  source_queue_id: string | null;
  dead_reason: string | null;
  dead_lettered_at: Date | null;
}

export interface MessageBodiesTable {
  project_id: string;
  queue_id: string;
  message_id: string;
  payload: Buffer;
  content_type: string;
  headers: Headers;
  /** Every death that it has died, oldest first, as far as they are kept. Null: none. */
  deaths: ColumnType<DeathRecord[] | null, string | null, string | null>;
}

/** One death of a message, as it was recorded. */
export interface DeathRecord {
  /** Name that the queue had in which it died. */
  readonly queue: string;
  readonly reason: string;
  readonly error: string | null;
  /** RFC 3339. */
  readonly died_at: string;
  /** Hand-outs over its whole life by then. */
  readonly attempts: number;
  /** In that queue since it came there, the last one included. */
  readonly failures: number;
  readonly returns: number;
  readonly expiries: number;
}

/** One row: what carillon_publish holds messages to. */
export interface PublishLimitsTable {
  max_payload_bytes: number;
  auto_create_queues: boolean;
}

export interface AckedMessagesTable {
  project_id: string;
  queue_id: string;
  message_id: string;
  published_at: Date;
  acked_at: Date;
}

/** A group, as of the last look; group_changes has what happened since. The newest version counts. */
export interface MessageGroupsTable {
  project_id: string;
  queue_id: string;
  group_id: string;
  version: string;
  depth: number;
  in_flight: number;
  level: number;
  ready: boolean;
  ready_at: Date | null;
  turn: string;
  from_seq: string;
  from_rank: Date;
  /** Null while the group has messages. */
  emptied_at: Date | null;
}

export interface GroupChangesTable {
  project_id: string;
  queue_id: string;
  change_id: Generated<string>;
  group_id: string;
  depth: number;
  in_flight: number;
  from_seq: string | null;
  from_rank: Date | null;
}

/** How far the hand-outs of a queue have come. The newest counts. */
export interface GroupMarksTable {
  project_id: string;
  queue_id: string;
  mark_id: Generated<string>;
  floor: string;
  next_floor: string;
  next_xid: string;
  due_after: Date;
  turns: string[];
}

/** Hand-outs of a group, or of the whole queue, in one slice of a rate's period. */
export interface RateSlicesTable {
  project_id: string;
  queue_id: string;
  of_queue: boolean;
  group_id: string;
  begins_at: Date;
  last_at: Date;
  handed_out: number;
  expires_at: Date;
}

export interface DroppedLanesTable {
  project_id: string;
  queue_id: string;
  dropped_at: Generated<Date>;
  /** The queue's line. Null for a graveyard, which has none. */
  lane_id?: string | null;
}

export interface DroppedSubscriptionsTable {
  project_id: string;
  subscription_id: string;
  queue_id: string;
  push_lane_id: string;
  /** The last message that was forgotten. */
  after_id: Generated<string>;
}

export type RedriveState = "running" | "succeeded" | "canceled" | "failed";

export interface RedrivesTable {
  project_id: string;
  redrive_id: Generated<string>;
  /** The queue that the dead letters died in. */
  queue_id: string;
  queue_name: string;
  to_queue_id: string;
  to_queue_name: string;
  /** A DeadLetterFilter of the store. */
  filter: ColumnType<unknown, string, never>;
  messages_per_second: number | null;
  /** Dead letters with a seq above it died after the start. */
  cut_seq: string;
  state: Generated<RedriveState>;
  /** Dead letters found at the start. */
  matched: number;
  moved: Generated<number>;
  /** Where the walk through the dead letters has come to. Both null: nowhere yet. */
  walked_at: Date | null;
  walked_seq: string | null;
  /** Walks that came to the end. */
  walks: Generated<number>;
  /** Dead letters that this walk found and could not have, because somebody else was at them. */
  missed: Generated<number>;
  next_step_at: Generated<Date>;
  error: string | null;
  started_at: Stamp;
  finished_at: Date | null;
}

export type PushMode = "compete" | "fanout";
export type PushBody = "raw" | "wrapped";
export type GroupFailurePolicy = "block" | "skip" | "park";

export interface PushSubscriptionsTable {
  project_id: string;
  subscription_id: Generated<string>;
  queue_id: string;
  url: string;
  mode: PushMode;
  max_retries: number | null;
  backoff: StoredBackoff;
  visibility_timeout_seconds: number | null;
  dead_letter_queue_id: string | null;
  paused: Generated<boolean>;
  created_at: Stamp;
  updated_at: Generated<Date>;
  headers: ColumnType<Record<string, string>, string | undefined, string>;
  /** Null: the length of the lease, up to 900. */
  timeout_seconds: number | null;
  /** Most requests that a node has under way. Null: no limit. */
  max_concurrency: number | null;
  /** Null: raw, or wrapped where batch_size is above 1. */
  body: PushBody | null;
  batch_size: Generated<number>;
  batch_window_ms: Generated<number>;
  /** What becomes of a FIFO queue's group when one of its messages has failed too often. */
  group_failure_policy: Generated<GroupFailurePolicy>;
}
