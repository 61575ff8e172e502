import { type Kysely, sql } from "kysely";

/** Tasks that calls with one key share: debounced and throttled ones. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table tasks add debounce_key text, add debounce_max_wait_seconds int`,

  // A key is free again when its task starts or is over. Whoever makes a task that is over scheduled once more takes its
  // key away.
  `create unique index tasks_debounce_idx on tasks (project_id, debounce_key)
     where debounce_key is not null and state = 'scheduled'`,

  `create table task_throttles (
     project_id uuid not null,
     throttle_key text not null,
     task_id uuid not null,
     ends_at timestamptz not null,
     primary key (project_id, throttle_key)
   )`,
  `create index task_throttles_end_idx on task_throttles (ends_at)`,
];
