import { type Kysely, sql } from "kysely";

/** Jobs that run the fires of a cron job afterwards, in steps: those of a range that did not run. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // walked_to: the fire time that the walk has come to; null: nowhere yet.
  `create table backfills (
     project_id uuid not null,
     backfill_id uuid not null default carillon_id(),
     cron_id uuid not null,
     since timestamptz not null,
     until timestamptz not null,
     overlap_policy text not null,
     runs_per_second int,
     state text not null default 'running'
       constraint backfill_state_known check (state in ('running', 'succeeded', 'canceled', 'failed')),
     matched int not null,
     started int not null default 0,
     passed_over int not null default 0,
     walked_to timestamptz,
     next_step_at timestamptz not null default carillon_now(),
     error text,
     started_at timestamptz not null default carillon_now(),
     finished_at timestamptz,
     primary key (project_id, backfill_id)
   )`,
  `create unique index backfills_running_idx on backfills (project_id, cron_id) where state = 'running'`,
  `create index backfills_cron_idx on backfills (project_id, cron_id, backfill_id)`,
  `create index backfills_due_idx on backfills (next_step_at) where state = 'running'`,
  `create index backfills_end_idx on backfills (finished_at) where finished_at is not null`,
];
