import { type Kysely, sql } from "kysely";

/**
 * Endpoints: one receiver of one project each. Their limits and breakers are shared by all nodes, and what waits for one of
 * them is set apart from what may go, so that nobody walks over it.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // The same id as endpointOf of domain/endpoint.ts gives: a digest of the URL without query and fragment.
  `create function carillon_endpoint_id(url text) returns uuid language sql immutable parallel safe as $$
     select encode(substr(sha256(convert_to(split_part(split_part(url, '#', 1), '?', 1), 'UTF8')), 1, 16), 'hex')::uuid
   $$`,

  // guarded: requests have to be admitted one batch at a time. ready_at: before it no request can go, so what is parked is
  // not looked at. next_slot_ms: in milliseconds since 1970, finer than a timestamp.
  `create table endpoints (
     project_id uuid not null,
     endpoint_id uuid not null,
     address text not null,
     max_concurrency int,
     max_rate float8,
     state text not null default 'closed'
       constraint endpoint_state_known check (state in ('closed', 'open', 'half_open', 'disabled')),
     reason text,
     changed_at timestamptz not null default carillon_now(),
     next_probe_at timestamptz,
     probe_wait_ms int not null default 30000,
     probes_succeeded int not null default 0,
     probes_failed int not null default 0,
     counted_since timestamptz not null default 'epoch',
     told_stage int not null default 0,
     pace_rate float8,
     pace_since timestamptz,
     paused_until timestamptz,
     next_slot_ms float8 not null default 0,
     ready_at timestamptz not null default carillon_now(),
     parked_since timestamptz,
     guarded boolean not null generated always as (
       state <> 'closed' or max_concurrency is not null or max_rate is not null or pace_rate is not null
       or paused_until is not null) stored,
     used_at timestamptz not null default carillon_now(),
     created_at timestamptz not null default carillon_now(),
     updated_at timestamptz not null default carillon_now(),
     primary key (project_id, endpoint_id)
   ) with (fillfactor = 70)`,
  `create index endpoints_parked_idx on endpoints (ready_at) where parked_since is not null and state <> 'disabled'`,
  `create index endpoints_use_idx on endpoints (used_at)`,

  // What each node has seen, in rows of its own, so that no two of them wait for each other.
  `create table endpoint_counts (
     project_id uuid not null,
     endpoint_id uuid not null,
     slice timestamptz not null,
     part uuid not null,
     succeeded int not null,
     failed int not null,
     throttled int not null,
     primary key (project_id, endpoint_id, slice, part)
   )`,
  `create index endpoint_counts_slice_idx on endpoint_counts (slice)`,

  // parked: due, and set apart because its endpoint takes no more for now.
  `alter table runs add column endpoint_id uuid, add column parked boolean not null default false`,
  `drop index runs_due_idx`,
  `create index runs_due_idx on runs (run_at)
     where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'`,
  `create index runs_parked_idx on runs (project_id, endpoint_id, run_at) where parked and state in ('pending', 'retrying')`,

  // A trigger, so that no way of making a run can forget it.
  `create function carillon_run_endpoint() returns trigger language plpgsql as $$
   begin
     new.endpoint_id := carillon_endpoint_id(case new.kind
       when 'cron' then (select url from cron_jobs c where c.project_id = new.project_id and c.cron_id = new.cron_id)
       when 'task' then (select url from tasks t where t.project_id = new.project_id and t.task_id = new.task_id)
       when 'callback' then (select url from callbacks b where b.project_id = new.project_id and b.callback_id = new.callback_id)
       when 'push' then (select url from push_subscriptions s
                         where s.project_id = new.project_id and s.subscription_id = new.subscription_id)
     end);
     return new;
   end $$`,
  `create trigger run_endpoint before insert on runs for each row when (new.endpoint_id is null)
     execute function carillon_run_endpoint()`,

  `update runs r set endpoint_id = carillon_endpoint_id(coalesce(
       (select url from cron_jobs c where c.project_id = r.project_id and c.cron_id = r.cron_id),
       (select url from tasks t where t.project_id = r.project_id and t.task_id = r.task_id),
       (select url from callbacks b where b.project_id = r.project_id and b.callback_id = r.callback_id),
       (select url from push_subscriptions s where s.project_id = r.project_id and s.subscription_id = r.subscription_id)))
     where state in ('pending', 'running', 'retrying')`,
];
