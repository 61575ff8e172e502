import { type Kysely, sql } from "kysely";

/** What is due has one order, so that a look can go on where the one before it ended. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `drop index runs_due_idx`,
  `create index runs_due_idx on runs (run_at, run_id)
     where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'`,
];
