import { type Kysely, sql } from "kysely";

/** Every fire of a cron job is accounted for: a row each, or one for a stretch of fires that did not run. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // cause: why it did not run, where the state does not say. fire_until: the last fire time of the stretch that the row
  // stands for, null for the one at fire_at. disposition: what became of the fire, said once for whoever lists or reads.
  `alter table runs
     add cause text constraint run_cause_known check (cause in ('dst_gap', 'paused', 'max_runs', 'expired')),
     add fire_until timestamptz,
     add disposition text generated always as (
       case
         when kind not in ('cron', 'task') then null
         when cause is not null then cause
         when state = 'skipped' then 'skipped_overlap'
         when state = 'missed' then 'missed'
         when state = 'canceled' then 'canceled'
         when trigger in ('catch_up', 'backfill') then 'caught_up'
         else 'ran'
       end) stored`,
  // One row for each fire, beside which a stretch may stand.
  `drop index runs_fire_idx`,
  `create unique index runs_fire_idx on runs (project_id, cron_id, fire_at)
     where cron_id is not null and trigger <> 'manual' and fire_until is null`,
  `create index runs_stretch_idx on runs (project_id, cron_id, fire_at) where fire_until is not null`,

  // Up to this instant every fire has its row; after it, the state says what becomes of them.
  `alter table cron_jobs
     add accounted_until timestamptz not null default carillon_now(),
     add pause_reason text`,
];
