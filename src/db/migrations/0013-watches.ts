import { type Kysely, sql } from "kysely";

/** Cron jobs whose fires have to be kept in time: what is waited for, and which jobs are overdue. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table cron_jobs
     add start_grace_seconds int,
     add finish_grace_seconds int,
     add overdue_since timestamptz,
     add overdue_fire_at timestamptz,
     add overdue_reason text constraint overdue_reason_known check (overdue_reason in ('not_started', 'not_succeeded')),
     add overdue_fires int not null default 0`,

  // A row for each fire that has not been kept yet and whose time is not up. Written and deleted under the job's lock.
  `create table cron_watches (
     project_id uuid not null,
     cron_id uuid not null,
     fire_at timestamptz not null,
     awaits text not null constraint watch_awaits_known check (awaits in ('start', 'success')),
     due_at timestamptz not null,
     success_due_at timestamptz,
     primary key (project_id, cron_id, fire_at)
   )`,
  `create index cron_watches_due_idx on cron_watches (due_at)`,
];
