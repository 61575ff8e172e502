import type { ColumnType, Generated, JSONColumnType, Kysely, Selectable } from "kysely";
import type { Backoff } from "../domain/backoff.ts";
import type { EndpointState } from "../domain/breaker.ts";
import type { SigningAlgorithm } from "../domain/signing-key.ts";

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
  group_marks: GroupMarksTable;
  rate_slices: RateSlicesTable;
  dropped_lanes: DroppedLanesTable;
  dropped_subscriptions: DroppedSubscriptionsTable;
  redrives: RedrivesTable;
  signing_keys: SigningKeysTable;
  push_subscriptions: PushSubscriptionsTable;
  cron_jobs: CronJobsTable;
  cron_watches: CronWatchesTable;
  ping_tokens: PingTokensTable;
  tasks: TasksTable;
  task_labels: TaskLabelsTable;
  task_throttles: TaskThrottlesTable;
  event_webhooks: EventWebhooksTable;
  callbacks: CallbacksTable;
  runs: RunsTable;
  run_attempts: RunAttemptsTable;
  /** Those and, without an end, the attempts under way, which are recorded when they end. */
  attempts: RunAttemptsTable;
  run_pings: RunPingsTable;
  replays: ReplaysTable;
  backfills: BackfillsTable;
  endpoints: EndpointsTable;
  endpoint_counts: EndpointCountsTable;
}

/** How far apart failed attempts are made again. Null: the default. */
type StoredBackoff = ColumnType<Backoff | null, string | null | undefined, string | null>;
type Headers = JSONColumnType<Record<string, string>>;
type Labels = ColumnType<Record<string, string>, string | undefined, string>;
type NullableHeaders = ColumnType<Record<string, string> | null, string | null | undefined, string | null>;
/** An instant that the database fills in and nobody changes. */
type Stamp = ColumnType<Date, Date | undefined, never>;

interface ProjectsTable {
  project_id: Generated<string>;
  name: string;
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
  /** The lane of messages that subscriptions have, each with its own progress. Nothing consumes from it. */
  push_lane_id: Generated<string>;
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

/** A group, as of the last look; group_changes has what happened since. The newest version counts. */
interface MessageGroupsTable {
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

interface GroupChangesTable {
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
interface GroupMarksTable {
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

interface DroppedSubscriptionsTable {
  project_id: string;
  subscription_id: string;
  queue_id: string;
  push_lane_id: string;
  /** The last message that was forgotten. */
  after_id: Generated<string>;
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

interface SigningKeysTable {
  project_id: string;
  /** The project itself, or what of it has a key of its own. */
  owner_id: string;
  key_id: Generated<string>;
  algorithm: SigningAlgorithm;
  /** What src/vault/ makes of a secret, or of a private key. */
  sealed: string;
  /** Of a key pair: its 32 bytes. */
  public_key: Buffer | null;
  created_at: Stamp;
  /** When a key that was replaced stops signing; null for the current one. */
  valid_until: Date | null;
}

export type PushMode = "compete" | "fanout";
export type PushBody = "raw" | "wrapped";
export type GroupFailurePolicy = "block" | "skip" | "park";

interface PushSubscriptionsTable {
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

export type CronJobState = "active" | "paused" | "completed" | "deleted";

interface CronJobsTable {
  project_id: string;
  cron_id: Generated<string>;
  name: string;
  cron_expr: string;
  timezone: string;
  /** The target: either this or `queue` is null; both are of a monitor. */
  url: string | null;
  payload: Buffer | null;
  content_type: string;
  headers: Headers;
  retries: number;
  backoff: StoredBackoff;
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
  dst_gap: Generated<"run_after" | "skip">;
  dst_overlap: Generated<"auto" | "once" | "twice">;
  start_at: Date | null;
  end_at: Date | null;
  spread_seconds: Generated<number>;
  jitter_seconds: Generated<number>;
  /** Every fire up to here has its row among the runs. */
  accounted_until: Generated<Date>;
  pause_reason: string | null;
  expire_after_seconds: number | null;
  pause_after_failures: number | null;
  /** Counted only while pause_after_failures is set. */
  failures_in_a_row: Generated<number>;
  /** From the effective time of a fire to when its run has to have started, or succeeded; null for no such instant. */
  start_grace_seconds: number | null;
  finish_grace_seconds: number | null;
  /** The end of the grace of the first fire that was not kept; null while the job is not overdue. */
  overdue_since: Date | null;
  /** The newest fire that was not kept. */
  overdue_fire_at: Date | null;
  overdue_reason: OverdueReason | null;
  overdue_fires: Generated<number>;
  /** The name of the queue that is published to. */
  queue: string | null;
  /** What the messages have; null where nobody said. */
  group_id: string | null;
  priority: number | null;
  ttl_seconds: number | null;
  /** What a monitor is pinged by, sealed. Null for jobs that are no monitors. */
  ping_token: string | null;
}

export type OverdueReason = "not_started" | "not_succeeded";

interface CronWatchesTable {
  project_id: string;
  cron_id: string;
  fire_at: Date;
  awaits: "start" | "success";
  /** When what it waits for has to have come. */
  due_at: Date;
  /** Of a fire whose run is to start: when it has to have succeeded. Null: that is not watched. */
  success_due_at: Date | null;
}

interface PingTokensTable {
  /** SHA-256 of the whole token. Tokens are random, so no slow hash is needed. */
  token_hash: Buffer;
  project_id: string;
  cron_id: string;
  created_at: Stamp;
  /** Until when one that was replaced is good. Null for the current one. */
  valid_until: Date | null;
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
  retries: number;
  backoff: StoredBackoff;
  timeout_seconds: number;
  grace_seconds: number | null;
  on_failure_webhook: string | null;
  run_at: Date;
  state: TaskState;
  labels: Labels;
  /** Calls with the same key change this task, for as long as it is scheduled and nobody has let it run by hand. */
  debounce_key: string | null;
  /** Longest that they put it off, from created_at on; null for as long as they come. */
  debounce_max_wait_seconds: number | null;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

/** The labels of tasks once more, a row each. */
interface TaskLabelsTable {
  project_id: string;
  name: string;
  value: string;
  task_id: string;
}

/** Keys that stand for a task for a while. */
interface TaskThrottlesTable {
  project_id: string;
  throttle_key: string;
  task_id: string;
  ends_at: Date;
}

interface EventWebhooksTable {
  project_id: string;
  webhook_id: Generated<string>;
  name: string;
  url: string;
  /** Names of events, or everything under a name (`endpoint.*`). Empty: all events. */
  event_types: string[];
  enabled: Generated<boolean>;
  /** Why the server disabled it. Null when it did not. */
  disabled_reason: string | null;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

/** An event on its way. */
interface CallbacksTable {
  project_id: string;
  callback_id: Generated<string>;
  /** The webhook that it is for, whose url and secret are used. Null: those of the row are. */
  webhook_id: string | null;
  url: string;
  body: Buffer;
  /** Whose keys sign: a cron job's; null for the project's. */
  signer_id: string | null;
  /** Null: JSON. */
  content_type: string | null;
  headers: NullableHeaders;
  /** The subscription whose push it makes once more. */
  subscription_id: string | null;
}

export type RunKind = "cron" | "task" | "push" | "callback";
export type RunState = "pending" | "running" | "retrying" | "succeeded" | "failed" | "skipped" | "missed" | "canceled";
export type RunTrigger = "schedule" | "catch_up" | "manual" | "backfill" | "message" | "test" | "ping";
export type RunCause = "dst_gap" | "paused" | "max_runs" | "expired";
export type RunDisposition = RunCause | "ran" | "caught_up" | "skipped_overlap" | "missed" | "canceled";

interface RunsTable {
  project_id: string;
  run_id: Generated<string>;
  kind: RunKind;
  cron_id: string | null;
  task_id: string | null;
  callback_id: string | null;
  subscription_id: string | null;
  /** The message that is pushed, or that the fire of a cron job has published. */
  message_id: string | null;
  state: RunState;
  trigger: RunTrigger;
  /** The instant that the run stands for. */
  fire_at: Date;
  /** Earliest instant of the next attempt. */
  run_at: Date;
  /** Held back by overlap policy queue until an earlier run is done; of a monitor, until it is pinged. */
  waiting: Generated<boolean>;
  attempt: Generated<number>;
  /** The run that this one replays: the first, also of a replay's replay. */
  replay_of: string | null;
  /** The delivery_id of the attempt under way, of runs with an attempt_url. */
  lease_token: string | null;
  lease_expires_at: Date | null;
  /** When the newest attempt was begun; null for pushes and pings, which are recorded otherwise. */
  attempt_at: Date | null;
  /** Where the newest attempt went or goes, likewise. */
  attempt_url: string | null;
  response_status: number | null;
  error: string | null;
  fire_count: Generated<number>;
  created_at: Stamp;
  started_at: Date | null;
  finished_at: Date | null;
  expires_at: Date | null;
  /** When the first attempt is due; null for at fire_at. */
  effective_at: Date | null;
  /** The last instant at which the first attempt may begin; null for no such instant. */
  start_by: Date | null;
  /** Why it did not run, where the state does not say. */
  cause: RunCause | null;
  /** The last fire time of the stretch that the row stands for; null for the one at fire_at. */
  fire_until: Date | null;
  /** What became of the fire, of cron jobs and tasks. The database makes it from the columns beside it. */
  disposition: ColumnType<RunDisposition | null, never, never>;
  /** Of the URL that the run is sent to. Null for runs that were over before endpoints were known. */
  endpoint_id: Generated<string | null>;
  /** Due, and set apart because its endpoint takes no more for now. */
  parked: Generated<boolean>;
  /** What the pings of one run of a monitor share. */
  ping_rid: string | null;
  /** That of a monitor's program. */
  exit_code: number | null;
}

export type PingKind = "start" | "success" | "fail" | "log";

interface RunPingsTable {
  project_id: string;
  run_id: string;
  /** In the order in which they came. */
  ping_id: Generated<string>;
  kind: PingKind;
  exit_code: number | null;
  body: string | null;
  received_at: Stamp;
}

interface RunAttemptsTable {
  project_id: string;
  run_id: string;
  attempt: number;
  /** In the order in which attempts were begun. */
  delivery_id: Generated<string>;
  /** Where it went, whatever its owner says today. */
  url: Generated<string>;
  started_at: Generated<Date>;
  finished_at: Date | null;
  response_status: number | null;
  error: string | null;
  duration_ms: number | null;
  dns_ms: number | null;
  connect_ms: number | null;
  tls_ms: number | null;
  first_byte_ms: number | null;
  /** As far as they may be shown. */
  request_headers: NullableHeaders;
  response_headers: NullableHeaders;
  response_body: Buffer | null;
  /** As decided when it ended. */
  next_attempt_at: Date | null;
}

export type ReplayState = "running" | "succeeded" | "canceled";

interface ReplaysTable {
  project_id: string;
  replay_id: Generated<string>;
  /** A DeliveryFilter of the store. */
  filter: ColumnType<unknown, string, never>;
  runs_per_second: number | null;
  /** Deliveries above it were begun after the start. */
  cut_id: string;
  state: Generated<ReplayState>;
  /** Runs found at the start. */
  matched: number;
  replayed: Generated<number>;
  refused: Generated<number>;
  /** How far down the walk has come. Null: nowhere yet. */
  walked_id: string | null;
  next_step_at: Generated<Date>;
  started_at: Stamp;
  finished_at: Date | null;
}

export type BackfillState = "running" | "succeeded" | "canceled" | "failed";

interface BackfillsTable {
  project_id: string;
  backfill_id: Generated<string>;
  cron_id: string;
  since: Date;
  until: Date;
  overlap_policy: "allow" | "skip" | "queue" | "cancel_previous";
  runs_per_second: number | null;
  state: Generated<BackfillState>;
  /** Fires that did not run, when it started. */
  matched: number;
  started: Generated<number>;
  passed_over: Generated<number>;
  /** The fire time that the walk has come to. Null: nowhere yet. */
  walked_to: Date | null;
  next_step_at: Generated<Date>;
  error: string | null;
  started_at: Stamp;
  finished_at: Date | null;
}

interface EndpointsTable {
  project_id: string;
  endpoint_id: string;
  /** Origin and path. */
  address: string;
  max_concurrency: number | null;
  /** Requests a second. */
  max_rate: number | null;
  state: Generated<EndpointState>;
  /** Why it is in that state. */
  reason: string | null;
  /** Since when it is in that state. */
  changed_at: Generated<Date>;
  next_probe_at: Date | null;
  probe_wait_ms: Generated<number>;
  probes_succeeded: Generated<number>;
  probes_failed: Generated<number>;
  /** Requests that ended before do not count for the breaker. */
  counted_since: Generated<Date>;
  /** The highest stage of spent attempts that was told of since the last success, in percent. */
  told_stage: Generated<number>;
  /** The pace that it is held to: requests a second at the start, and when that was. */
  pace_rate: number | null;
  pace_since: Date | null;
  /** Until then the receiver wants nothing. */
  paused_until: Date | null;
  /** When the next request may go under the rate, in milliseconds since 1970. */
  next_slot_ms: Generated<number>;
  /** Before it no request can go, so that what is parked is not looked at. */
  ready_at: Generated<Date>;
  /** Since when something is parked for it. */
  parked_since: Date | null;
  /** Requests have to be admitted: it has a limit, a pace or a pause, or is not closed. */
  guarded: ColumnType<boolean, never, never>;
  /** When a request to it last ended, an hour more or less. */
  used_at: Generated<Date>;
  created_at: Stamp;
  updated_at: Generated<Date>;
}

interface EndpointCountsTable {
  project_id: string;
  endpoint_id: string;
  /** Start of the ten seconds that are counted. */
  slice: Date;
  /** The node that counted. */
  part: string;
  succeeded: number;
  failed: number;
  throttled: number;
}

export type ProjectRow = Selectable<ProjectsTable>;
export type QueueRow = Selectable<QueuesTable>;
export type PushSubscriptionRow = Selectable<PushSubscriptionsTable>;
export type SigningKeyRow = Selectable<SigningKeysTable>;
export type RedriveRow = Selectable<RedrivesTable>;
export type EventWebhookRow = Selectable<EventWebhooksTable>;
export type CronJobRow = Selectable<CronJobsTable>;
export type TaskRow = Selectable<TasksTable>;
export type ReplayRow = Selectable<ReplaysTable>;
export type BackfillRow = Selectable<BackfillsTable>;
export type RunRow = Selectable<RunsTable>;
export type RunPingRow = Selectable<RunPingsTable>;
export type RunAttemptRow = Selectable<RunAttemptsTable>;
export type EndpointRow = Selectable<EndpointsTable>;
