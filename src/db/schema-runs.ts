import type { ColumnType, Generated } from "kysely";
import type { NullableHeaders, Stamp } from "./schema-columns.ts";

export type RunKind = "cron" | "task" | "push" | "callback";
export type RunState = "pending" | "running" | "retrying" | "succeeded" | "failed" | "skipped" | "missed" | "canceled";
export type RunTrigger = "schedule" | "catch_up" | "manual" | "backfill" | "message" | "test" | "ping";
export type RunCause = "dst_gap" | "paused" | "max_runs" | "expired";
export type RunDisposition = RunCause | "ran" | "caught_up" | "skipped_overlap" | "missed" | "canceled";

export interface RunsTable {
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

export interface RunPingsTable {
  project_id: string;
  run_id: string;
  /** In the order in which they came. */
  ping_id: Generated<string>;
  kind: PingKind;
  exit_code: number | null;
  body: string | null;
  received_at: Stamp;
}

export interface RunAttemptsTable {
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

export interface ReplaysTable {
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

export interface BackfillsTable {
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
