import type { ColumnType, Generated, Kysely, Selectable } from "kysely";
import type { EndpointState } from "../domain/breaker.ts";
import type { SigningAlgorithm } from "../domain/signing-key.ts";
import type { Stamp } from "./schema-columns.ts";
import type {
  CallbacksTable,
  CronJobsTable,
  CronWatchesTable,
  EventWebhooksTable,
  PingTokensTable,
  TaskLabelsTable,
  TasksTable,
  TaskThrottlesTable,
} from "./schema-jobs.ts";
import type {
  AckedMessagesTable,
  DroppedLanesTable,
  DroppedSubscriptionsTable,
  GroupChangesTable,
  GroupMarksTable,
  MessageBodiesTable,
  MessageGroupsTable,
  MessagesTable,
  PublishLimitsTable,
  PushSubscriptionsTable,
  QueuesTable,
  RateSlicesTable,
  RedrivesTable,
} from "./schema-queues.ts";
import type { BackfillsTable, ReplaysTable, RunAttemptsTable, RunPingsTable, RunsTable } from "./schema-runs.ts";

export type * from "./schema-jobs.ts";
export type * from "./schema-queues.ts";
export type * from "./schema-runs.ts";

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
