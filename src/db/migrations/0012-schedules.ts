import { type Kysely, sql } from "kysely";

/** Cron jobs say what they do where the clock changes, have bounds in time, and are spread. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table cron_jobs
     add dst_gap text not null default 'run_after' constraint dst_gap_known check (dst_gap in ('run_after', 'skip')),
     add dst_overlap text not null default 'auto'
       constraint dst_overlap_known check (dst_overlap in ('auto', 'once', 'twice')),
     add start_at timestamptz,
     add end_at timestamptz,
     add spread_seconds int not null default 0,
     add jitter_seconds int not null default 0`,

  // When the first attempt is due; null for at fire_at.
  `alter table runs add effective_at timestamptz`,
];
