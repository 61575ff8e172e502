import { type Kysely, sql } from "kysely";

/** Deleted push subscriptions that were still to be given messages, which are forgotten in steps. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // A row from the deletion until the last of its push_deliveries has gone. after_id: the last message that was forgotten.
  `create table dropped_subscriptions (
     project_id uuid not null,
     subscription_id uuid not null,
     queue_id uuid not null,
     push_lane_id uuid not null,
     after_id uuid not null default '00000000-0000-0000-0000-000000000000',
     primary key (project_id, subscription_id)
   )`,
];
