import type { Generated } from "kysely";
import type { Headers, Labels, NullableHeaders, Stamp, StoredBackoff } from "./schema-columns.ts";

export type CronJobState = "active" | "paused" | "completed" | "deleted";

export interface CronJobsTable {
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

export interface CronWatchesTable {
  project_id: string;
  cron_id: string;
  fire_at: Date;
  awaits: "start" | "success";
  /** When what it waits for has to have come. */
  due_at: Date;
  /** Of a fire whose run is to start: when it has to have succeeded. Null: that is not watched. */
  success_due_at: Date | null;
}

export interface PingTokensTable {
  /** SHA-256 of the whole token. Tokens are random, so no slow hash is needed. */
  token_hash: Buffer;
  project_id: string;
  cron_id: string;
  created_at: Stamp;
  /** Until when one that was replaced is good. Null for the current one. */
  valid_until: Date | null;
}

export type TaskState = "scheduled" | "running" | "retrying" | "succeeded" | "failed" | "canceled" | "expired";

export interface TasksTable {
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
export interface TaskLabelsTable {
  project_id: string;
  name: string;
  value: string;
  task_id: string;
}

/** Keys that stand for a task for a while. */
export interface TaskThrottlesTable {
  project_id: string;
  throttle_key: string;
  task_id: string;
  ends_at: Date;
}

export interface EventWebhooksTable {
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
export interface CallbacksTable {
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
