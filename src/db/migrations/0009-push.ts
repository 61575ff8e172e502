import { type Kysely, sql } from "kysely";

/** How a subscription pushes: its time limit, its concurrency, the form of its requests, and what its failures do to a group. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  `alter table push_subscriptions
     add column headers jsonb not null default '{}',
     add column timeout_seconds int,
     add column max_concurrency int,
     add column body text constraint push_body_known check (body in ('raw', 'wrapped')),
     add column batch_size int not null default 1,
     add column batch_window_ms int not null default 0,
     add column group_failure_policy text not null default 'block'
       constraint group_failure_policy_known check (group_failure_policy in ('block', 'skip', 'park'))`,

  // Test deliveries, which are counted against their rate.
  `create index runs_tests_idx on runs (project_id, run_id) where trigger = 'test'`,
];
