import { type Kysely, sql } from "kysely";

/** Runs of cron jobs that are too late to start, and cron jobs that are paused when their runs fail. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table cron_jobs
     add expire_after_seconds int,
     add pause_after_failures int,
     add failures_in_a_row int not null default 0`,

  // The last instant at which the first attempt may begin; null for no such instant.
  `alter table runs add start_by timestamptz`,
  `create index runs_start_by_idx on runs (start_by) where start_by is not null and state = 'pending' and attempt = 0`,
];
