import { type Kysely, sql } from "kysely";

/** How far apart failed attempts are made again, where the owner chose: a Backoff of domain/backoff.ts. Null: the default. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const table of ["cron_jobs", "tasks", "push_subscriptions"]) {
    await sql.raw(`alter table ${table} add column backoff jsonb`).execute(db);
  }
}
