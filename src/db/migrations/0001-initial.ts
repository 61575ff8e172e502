import { type Kysely, sql } from "kysely";

/**
 * The first schema.
 *
 * Every growing table begins its primary key with the project, and the message tables with the project and the queue,
 * so that each hot statement touches one such value and the tables can be distributed by it. No foreign key points at
 * a queue or project row: it would lock that row at every insert.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // The one clock. A function, so that a test can move it; a plain SQL one, so that the planner inlines it.
  `create function carillon_now() returns timestamptz language sql stable parallel safe as $$ select now() $$`,

  // An id whose order is the order of creation: 48 bits of milliseconds, 12 bits of the microseconds within, the rest
  // random. The bit layout is that of a ULID.
  `create function carillon_id() returns uuid language sql volatile parallel safe as $$
     select (lpad(to_hex(us / 1000), 12, '0') || lpad(to_hex(us % 1000), 3, '0') || substr(md5(gen_random_uuid()::text), 16))::uuid
     from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as us) as clock
   $$`,

  // Numbers the turns at lanes: whoever holds a lane's lock draws one, so the order of a lane is the order of its commits
  // without a look at what the lane holds.
  `create sequence lane_turns`,

  `create table projects (
     project_id uuid primary key default carillon_id(),
     name text not null unique,
     signing_secret text not null,
     strict_path_body boolean not null default false,
     strict_fields boolean not null default false,
     created_at timestamptz not null default now()
   )`,

  `create table api_keys (
     key_hash bytea primary key,
     key_id uuid not null unique default carillon_id(),
     project_id uuid not null references projects,
     name text not null,
     hint text not null,
     created_at timestamptz not null default now(),
     revoked_at timestamptz
   )`,

  `create table idempotency_keys (
     project_id uuid not null,
     operation text not null,
     resource text not null,
     key text not null,
     fingerprint bytea not null,
     reply bytea,
     warning text,
     expires_at timestamptz not null,
     primary key (project_id, operation, resource, key)
   )`,
  `create index idempotency_keys_expiry_idx on idempotency_keys (expires_at)`,

  `create table queues (
     project_id uuid not null,
     queue_id uuid not null default carillon_id(),
     name text collate "C" not null,
     type text not null constraint queue_type_known check (type in ('standard', 'fifo')),
     dead_letter_queue_id uuid,
     graveyard_id uuid not null default carillon_id(),
     max_retries int not null,
     message_retention_days int not null,
     visibility_timeout_seconds int not null,
     enable_priority boolean not null,
     paused boolean not null default false,
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     primary key (project_id, queue_id),
     unique (project_id, name)
   )`,
  `create index queues_dead_letter_idx on queues (project_id, dead_letter_queue_id) where dead_letter_queue_id is not null`,

  // One row a message, without its payload. queue_id names the lane that holds it: a queue, or a queue's graveyard.
  // Available: visible_at has come and there is no lease. Leased: lease_expires_at is set.
  `create table messages (
     project_id uuid not null,
     queue_id uuid not null,
     message_id uuid not null,
     seq bigint not null,
     group_id text not null,
     rank timestamptz not null,
     priority smallint not null,
     visible_at timestamptz not null,
     lease_token uuid,
     lease_expires_at timestamptz,
     lease_request text,
     receive_count int not null default 0,
     failure_count int not null default 0,
     expiry_count int not null default 0,
     acked boolean not null default false,
     error text,
     published_at timestamptz not null,
     expires_at timestamptz not null,
     source_queue_id uuid,
     dead_reason text,
     dead_lettered_at timestamptz,
     primary key (project_id, queue_id, message_id),
     constraint lease_has_token check (lease_expires_at is null or lease_token is not null)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,
  `create index messages_ready_idx on messages (project_id, queue_id, rank, seq) where lease_expires_at is null`,
  `create index messages_group_idx on messages (project_id, queue_id, group_id, seq)`,
  `create index messages_leased_idx on messages (project_id, queue_id, lease_expires_at) where lease_expires_at is not null`,
  `create index messages_lease_request_idx on messages (project_id, queue_id, lease_request) where lease_request is not null`,
  `create index messages_source_idx on messages (project_id, source_queue_id, dead_lettered_at, seq) where source_queue_id is not null`,
  `create index messages_source_id_idx on messages (project_id, source_queue_id, message_id) where source_queue_id is not null`,
  `create index messages_dead_idx on messages (project_id, queue_id, dead_lettered_at, seq) where source_queue_id is not null`,
  `create index messages_expiry_idx on messages (expires_at)`,

  `create table message_bodies (
     project_id uuid not null,
     queue_id uuid not null,
     message_id uuid not null,
     payload bytea not null,
     content_type text not null,
     headers jsonb not null,
     primary key (project_id, queue_id, message_id)
   )`,

  // What was acked in the last day, so that a second ack gets a true answer.
  `create table acked_messages (
     project_id uuid not null,
     queue_id uuid not null,
     message_id uuid not null,
     published_at timestamptz not null,
     acked_at timestamptz not null,
     primary key (project_id, queue_id, message_id)
   )`,
  `create index acked_messages_time_idx on acked_messages (project_id, queue_id, acked_at)`,
  `create index acked_messages_expiry_idx on acked_messages (acked_at)`,

  // Lanes whose queue is deleted; the pruner empties them, and looks again for a while at what came in late.
  `create table dropped_lanes (
     project_id uuid not null,
     queue_id uuid not null,
     dropped_at timestamptz not null default carillon_now(),
     primary key (project_id, queue_id)
   )`,

  `create table push_subscriptions (
     project_id uuid not null,
     subscription_id uuid not null default carillon_id(),
     queue_id uuid not null,
     url text not null,
     mode text not null constraint push_mode_known check (mode in ('compete', 'fanout')),
     secret text,
     previous_secret text,
     previous_valid_until timestamptz,
     max_retries int,
     visibility_timeout_seconds int,
     dead_letter_queue_id uuid,
     paused boolean not null default false,
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     primary key (project_id, subscription_id),
     unique (project_id, queue_id, url)
   )`,
  `create index push_subscriptions_dead_letter_idx on push_subscriptions (project_id, dead_letter_queue_id) where dead_letter_queue_id is not null`,

  `create table cron_jobs (
     project_id uuid not null,
     cron_id uuid not null default carillon_id(),
     name text not null,
     cron_expr text not null,
     timezone text not null,
     url text not null,
     payload bytea,
     content_type text not null,
     headers jsonb not null,
     secret text,
     retries int not null,
     timeout_seconds int not null,
     overlap_policy text not null,
     max_runs int,
     on_failure_webhook text,
     retention_days int not null,
     retention_pending boolean not null default false,
     misfire_policy text not null,
     misfire_window_seconds int not null,
     state text not null constraint cron_job_state_known check (state in ('active', 'paused', 'completed', 'deleted')),
     next_run_at timestamptz,
     run_count int not null default 0,
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     deleted_at timestamptz,
     primary key (project_id, cron_id)
   ) with (fillfactor = 70)`,
  `create index cron_jobs_due_idx on cron_jobs (next_run_at) where state = 'active'`,
  `create index cron_jobs_retention_idx on cron_jobs (project_id, cron_id) where retention_pending`,
  `create index cron_jobs_deleted_idx on cron_jobs (deleted_at) where state = 'deleted'`,

  `create table tasks (
     project_id uuid not null,
     task_id uuid not null default carillon_id(),
     name text not null,
     url text not null,
     payload bytea,
     content_type text not null,
     headers jsonb not null,
     secret text,
     retries int not null,
     timeout_seconds int not null,
     grace_seconds int,
     run_at timestamptz not null,
     state text not null constraint task_state_known
       check (state in ('scheduled', 'running', 'retrying', 'succeeded', 'failed', 'canceled', 'expired')),
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     primary key (project_id, task_id)
   )`,

  // Failure events on their way to a webhook. Each has a run of kind 'callback', so that one engine sends everything.
  `create table callbacks (
     project_id uuid not null,
     callback_id uuid not null default carillon_id(),
     url text not null,
     body bytea not null,
     secret text,
     primary key (project_id, callback_id)
   )`,

  `create table runs (
     project_id uuid not null,
     run_id uuid not null default carillon_id(),
     kind text not null constraint run_kind_known check (kind in ('cron', 'task', 'push', 'callback')),
     cron_id uuid,
     task_id uuid,
     callback_id uuid,
     subscription_id uuid,
     message_id uuid,
     state text not null constraint run_state_known
       check (state in ('pending', 'running', 'retrying', 'succeeded', 'failed', 'skipped', 'missed', 'canceled')),
     trigger text not null,
     fire_at timestamptz not null,
     run_at timestamptz not null,
     waiting boolean not null default false,
     attempt int not null default 0,
     lease_token uuid,
     lease_expires_at timestamptz,
     response_status int,
     error text,
     fire_count int not null default 1,
     created_at timestamptz not null default carillon_now(),
     started_at timestamptz,
     finished_at timestamptz,
     expires_at timestamptz,
     primary key (project_id, run_id),
     constraint leased_while_running check ((state = 'running') = (lease_token is not null))
   ) with (fillfactor = 80)`,
  `create unique index runs_fire_idx on runs (project_id, cron_id, fire_at) where cron_id is not null and trigger <> 'manual'`,
  `create unique index runs_push_idx on runs (project_id, subscription_id, message_id) where subscription_id is not null`,
  `create index runs_due_idx on runs (run_at) where state in ('pending', 'retrying') and not waiting and kind <> 'push'`,
  `create index runs_pushing_idx on runs (project_id, run_id) where kind = 'push' and state in ('running', 'retrying')`,
  `create index runs_leased_idx on runs (lease_expires_at) where state = 'running'`,
  `create index runs_live_idx on runs (project_id, cron_id, run_id) where cron_id is not null and state in ('pending', 'running', 'retrying')`,
  `create index runs_cron_idx on runs (project_id, cron_id, run_id) where cron_id is not null`,
  `create index runs_task_idx on runs (project_id, task_id, run_id) where task_id is not null`,
  `create index runs_expiry_idx on runs (expires_at) where expires_at is not null`,

  `create table run_attempts (
     project_id uuid not null,
     run_id uuid not null,
     attempt int not null,
     started_at timestamptz not null default carillon_now(),
     finished_at timestamptz,
     response_status int,
     error text,
     duration_ms int,
     response_body bytea,
     primary key (project_id, run_id, attempt)
   )`,
];
