import { type Kysely, sql } from "kysely";

/** An attempt is recorded once, when it ends. While it is under way its run knows of it. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // When the newest attempt was begun, and where it went; null for pushes and pings, which are recorded otherwise, and for attempts
  // that were begun before, which have a record already.
  `alter table runs add column attempt_at timestamptz, add column attempt_url text`,

  // Recorded or under way.
  `create view attempts as
   select project_id, run_id, attempt, delivery_id, url, started_at, finished_at, response_status, error, duration_ms,
     dns_ms, connect_ms, tls_ms, first_byte_ms, request_headers, response_headers, response_body, next_attempt_at
   from run_attempts
   union all
   select project_id, run_id, attempt, lease_token, attempt_url, attempt_at, null::timestamptz, null::int, null::text, null::int,
     null::real, null::real, null::real, null::real, null::jsonb, null::jsonb, null::bytea, null::timestamptz
   from runs where state = 'running' and attempt_url is not null`,
];
