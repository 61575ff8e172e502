import { type Kysely, sql } from "kysely";

/** Who is told of what happens in a project, and what is on its way to them. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // event_types: names of events, or everything under a name (`endpoint.*`). Empty: all events.
  `create table event_webhooks (
     project_id uuid not null,
     webhook_id uuid not null default carillon_id(),
     name text not null,
     url text not null,
     event_types text[] not null,
     secret text not null,
     enabled boolean not null default true,
     disabled_reason text,
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     primary key (project_id, webhook_id)
   )`,

  // An event on its way: to a webhook of the project, whose address and secret it takes, or to the address in the row.
  `alter table callbacks add column webhook_id uuid`,
  `create index callbacks_webhook_idx on callbacks (project_id, webhook_id) where webhook_id is not null`,
  `create index runs_callback_idx on runs (project_id, callback_id) where callback_id is not null`,

  `alter table tasks add column on_failure_webhook text`,
];
