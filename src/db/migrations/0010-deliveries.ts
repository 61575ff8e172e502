import { type Kysely, sql } from "kysely";

/** The record of attempts as a log that is searched, and runs that are replays of others. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // delivery_id: in the order in which attempts were begun. url: where it went, whatever its owner says today.
  `alter table run_attempts
     add column delivery_id uuid not null default carillon_id(),
     add column url text not null default '',
     add column request_headers jsonb,
     add column response_headers jsonb,
     add column dns_ms real,
     add column connect_ms real,
     add column tls_ms real,
     add column first_byte_ms real,
     add column next_attempt_at timestamptz`,
  `create unique index run_attempts_delivery_idx on run_attempts (project_id, delivery_id)`,
  `create index run_attempts_age_idx on run_attempts using brin (started_at) with (autosummarize = on)`,

  // replay_of: the run that was first, also of a replay's replay.
  `alter table runs add column replay_of uuid`,
  `create index runs_message_idx on runs (project_id, message_id) where message_id is not null`,

  // A push that is replayed goes as a callback, with a copy of the message: pushes are settled with their messages, which a
  // replay is not.
  `alter table callbacks
     add column content_type text,
     add column headers jsonb,
     add column subscription_id uuid`,

  // cut_id: deliveries above it were begun after the start. walked_id: how far down the walk has come; null: nowhere yet.
  `create table replays (
     project_id uuid not null,
     replay_id uuid not null default carillon_id(),
     filter jsonb not null,
     runs_per_second int,
     cut_id uuid not null,
     state text not null default 'running'
       constraint replay_state_known check (state in ('running', 'succeeded', 'canceled')),
     matched int not null,
     replayed int not null default 0,
     refused int not null default 0,
     walked_id uuid,
     next_step_at timestamptz not null default carillon_now(),
     started_at timestamptz not null default carillon_now(),
     finished_at timestamptz,
     primary key (project_id, replay_id)
   )`,
  `create unique index replays_running_idx on replays (project_id) where state = 'running'`,
  `create index replays_due_idx on replays (next_step_at) where state = 'running'`,
  `create index replays_end_idx on replays (finished_at) where finished_at is not null`,
];
