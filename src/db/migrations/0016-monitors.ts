import { type Kysely, sql } from "kysely";

/** Monitors: cron jobs whose runs are made elsewhere and told of by pings. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // Sealed. Null for jobs that are no monitors, which have a url or a queue.
  `alter table cron_jobs
     add ping_token text,
     drop constraint cron_job_has_one_target,
     add constraint cron_job_has_one_target check (num_nonnulls(url, queue, ping_token) = 1)`,

  // By hash, as keys are: whoever pings names nothing else. The jobs' own columns have the tokens, sealed.
  `create table ping_tokens (
     token_hash bytea primary key,
     project_id uuid not null,
     cron_id uuid not null,
     created_at timestamptz not null default carillon_now(),
     valid_until timestamptz
   )`,
  `create index ping_tokens_job_idx on ping_tokens (project_id, cron_id)`,
  `create index ping_tokens_end_idx on ping_tokens (valid_until) where valid_until is not null`,

  `alter table runs add ping_rid uuid, add exit_code smallint`,
  `create index runs_rid_idx on runs (project_id, cron_id, ping_rid) where ping_rid is not null`,
  `create table run_pings (
     project_id uuid not null,
     run_id uuid not null,
     ping_id uuid not null default carillon_id(),
     kind text not null constraint ping_kind_known check (kind in ('start', 'success', 'fail', 'log')),
     exit_code smallint,
     body text,
     received_at timestamptz not null default carillon_now(),
     primary key (project_id, run_id, ping_id)
   )`,
];
