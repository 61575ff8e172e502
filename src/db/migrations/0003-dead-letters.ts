import { type Kysely, sql } from "kysely";

/** What is remembered of deaths, and redrives. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // Beside the payload, because it is as rarely read and goes wherever the message goes.
  `alter table message_bodies add column deaths jsonb`,

  // A row's lock is the lease on a redrive: each step holds it, moves and counts in one transaction, which ends with the
  // connection of the node that makes it.
  `create table redrives (
     project_id uuid not null,
     redrive_id uuid not null default carillon_id(),
     queue_id uuid not null,
     queue_name text not null,
     to_queue_id uuid not null,
     to_queue_name text not null,
     filter jsonb not null,
     messages_per_second int,
     cut_seq bigint not null,
     state text not null default 'running'
       constraint redrive_state_known check (state in ('running', 'succeeded', 'canceled', 'failed')),
     matched int not null,
     moved int not null default 0,
     walked_at timestamptz,
     walked_seq bigint,
     walks int not null default 0,
     missed int not null default 0,
     next_step_at timestamptz not null default carillon_now(),
     error text,
     started_at timestamptz not null default carillon_now(),
     finished_at timestamptz,
     primary key (project_id, redrive_id),
     constraint finished_unless_running check ((state = 'running') = (finished_at is null))
   ) with (fillfactor = 80)`,
  `create unique index redrives_running_idx on redrives (project_id, queue_id) where state = 'running'`,
  `create index redrives_due_idx on redrives (next_step_at) where state = 'running'`,
  `create index redrives_queue_idx on redrives (project_id, queue_id, redrive_id)`,
  `create index redrives_expiry_idx on redrives (finished_at) where finished_at is not null`,
];
