import type { ColumnType, Generated, JSONColumnType, Kysely, Selectable } from "kysely";

/** A connection pool, or an open transaction: every store function takes either as its first argument. */
export type Db = Kysely<Database>;

/** Row types. Property names are the column names; see migrations/0001-initial.ts for what each constraint means. */
export interface Database {
  projects: ProjectsTable;
  api_keys: ApiKeysTable;
  idempotency_keys: IdempotencyKeysTable;
  queues: QueuesTable;
  messages: MessagesTable;
  message_bodies: MessageBodiesTable;
  acked_messages: AckedMessagesTable;
  publish_limits: PublishLimitsTable;
  message_groups: MessageGroupsTable;
  group_changes: GroupChangesTable;
  group_change_floors: GroupChangeFloorsTable;
  rate_slices: RateSlicesTable;
  dropped_lanes: DroppedLanesTable;
  redrives: RedrivesTable;
  push_subscriptions: PushSubscriptionsTable;
  cron_jobs: CronJobsTable;
  tasks: TasksTable;
  callbacks: CallbacksTable;
  runs: RunsTable;
  run_attempts: RunAttemptsTable;
}

type Headers = JSONColumnType<Record<string, string>>;
/** An instant that the database fills in and nobody changes. */
type Stamp = ColumnType<Date, Date | undefined, never>;

interface ProjectsTable {
  project_id: Generated<string>;
  name: string;
  /** Signs what has no secret of its own. */
  signing_secret: string;
  strict_path_body: Generated<boolean>;
  strict_fields: Generated<boolean>;
  created_at: Stamp;
}

interface ApiKeysTable {
  /** SHA-256 of the whole key. Keys are random, so no slow hash is needed. */
  key_hash: Buffer;
  key_id: Generated<string>;
  project_id: string;
  name: string;
  /** The key's first characters, for people. */
  hint: string;
  created_at: Stamp;
  revoked_at: Date | null;
}

interface IdempotencyKeysTable {
  project_id: string;
  operation: string;
  resource: string;
  key: string;
  fingerprint: Buffer;
  reply: Buffer | null;
  warning: string | null;
  expires_at: Date;
}

export type QueueType = "standard" | "fifo";

interface QueuesTable {
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
  /** Numbers the queue's line. Never used again. */
  lane_id: Generated<string>;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

interface MessagesTable {
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

interface MessageBodiesTable {
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
interface PublishLimitsTable {
  max_payload_bytes: number;
  auto_create_queues: boolean;
}

interface AckedMessagesTable {
  project_id: string;
  queue_id: string;
  message_id: string;
  published_at: Date;
  acked_at: Date;
}

/** A group with messages, as of the last look; group_changes has what happened since. */
interface MessageGroupsTable {
  project_id: string;
  queue_id: string;
  group_id: string;
  depth: number;
  in_flight: number;
  ready: boolean;
  ready_at: Date | null;
  turn: string;
}

interface GroupChangesTable {
  project_id: string;
  queue_id: string;
  change_id: Generated<string>;
  group_id: string;
  depth: number;
  in_flight: number;
}

/** How far the changes of a queue's groups have been taken in. */
interface GroupChangeFloorsTable {
  project_id: string;
  queue_id: string;
  floor_id: Generated<string>;
  floor: string;
  next_floor: string;
  next_xid: string;
}

/** Hand-outs of a group, or of the whole queue, in one slice of a rate's period. */
interface RateSlicesTable {
  project_id: string;
  queue_id: string;
  of_queue: boolean;
  group_id: string;
  begins_at: Date;
  last_at: Date;
  handed_out: number;
  expires_at: Date;
}

interface DroppedLanesTable {
  project_id: string;
  queue_id: string;
  dropped_at: Generated<Date>;
  /** The queue's line. Null for a graveyard, which has none. */
  lane_id?: string | null;
}

export type RedriveState = "running" | "succeeded" | "canceled" | "failed";

interface RedrivesTable {
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

interface PushSubscriptionsTable {
  project_id: string;
  subscription_id: Generated<string>;
  queue_id: string;
  url: string;
  mode: PushMode;
  secret: string | null;
  previous_secret: string | null;
  previous_valid_until: Date | null;
  max_retries: number | null;
  visibility_timeout_seconds: number | null;
  dead_letter_queue_id: string | null;
  paused: Generated<boolean>;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

export type CronJobState = "active" | "paused" | "completed" | "deleted";

interface CronJobsTable {
  project_id: string;
  cron_id: Generated<string>;
  name: string;
  cron_expr: string;
  timezone: string;
  url: string;
  payload: Buffer | null;
  content_type: string;
  headers: Headers;
  secret: string | null;
  retries: number;
  timeout_seconds: number;
  overlap_policy: "allow" | "skip" | "queue" | "cancel_previous";
  max_runs: number | null;
  on_failure_webhook: string | null;
  retention_days: number;
  /** retention_days has changed and finished runs still carry expiry times by the old value. */
  retention_pending: Generated<boolean>;
  misfire_policy: "skip" | "once" | "all";
  misfire_window_seconds: number;
  state: CronJobState;
  next_run_at: Date | null;
  run_count: Generated<number>;
  created_at: Stamp;
  updated_at: Generated<Date>;
  deleted_at: Date | null;
}

export type TaskState = "scheduled" | "running" | "retrying" | "succeeded" | "failed" | "canceled" | "expired";

interface TasksTable {
  project_id: string;
  task_id: Generated<string>;
  name: string;
  url: string;
  payload: Buffer | null;
  content_type: string;
  headers: Headers;
  secret: string | null;
  retries: number;
  timeout_seconds: number;
  grace_seconds: number | null;
  run_at: Date;
  state: TaskState;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

interface CallbacksTable {
  project_id: string;
  callback_id: Generated<string>;
  url: string;
  body: Buffer;
  secret: string | null;
}

export type RunKind = "cron" | "task" | "push" | "callback";
export type RunState = "pending" | "running" | "retrying" | "succeeded" | "failed" | "skipped" | "missed" | "canceled";
export type RunTrigger = "schedule" | "catch_up" | "manual" | "message";

interface RunsTable {
  project_id: string;
  run_id: Generated<string>;
  kind: RunKind;
  cron_id: string | null;
  task_id: string | null;
  callback_id: string | null;
  subscription_id: string | null;
  message_id: string | null;
  state: RunState;
  trigger: RunTrigger;
  /** The instant that the run stands for. */
  fire_at: Date;
  /** Earliest instant of the next attempt. */
  run_at: Date;
  /** Held back by overlap policy queue until an earlier run is done. */
  waiting: Generated<boolean>;
  attempt: Generated<number>;
  lease_token: string | null;
  lease_expires_at: Date | null;
  response_status: number | null;
  error: string | null;
  fire_count: Generated<number>;
  created_at: Stamp;
  started_at: Date | null;
  finished_at: Date | null;
  expires_at: Date | null;
}

interface RunAttemptsTable {
  project_id: string;
  run_id: string;
  attempt: number;
  started_at: Generated<Date>;
  finished_at: Date | null;
  response_status: number | null;
  error: string | null;
  duration_ms: number | null;
  response_body: Buffer | null;
}

export type ProjectRow = Selectable<ProjectsTable>;
export type QueueRow = Selectable<QueuesTable>;
export type PushSubscriptionRow = Selectable<PushSubscriptionsTable>;
export type RedriveRow = Selectable<RedrivesTable>;
export type CronJobRow = Selectable<CronJobsTable>;
export type TaskRow = Selectable<TasksTable>;
export type RunRow = Selectable<RunsTable>;
export type RunAttemptRow = Selectable<RunAttemptsTable>;
