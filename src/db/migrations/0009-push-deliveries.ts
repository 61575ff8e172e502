import { type Kysely, sql } from "kysely";

/** The progress of each subscription with each message that several of them are to be given. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // Where messages lie while their subscriptions have them. No row of queues has this id.
  `alter table queues add column push_lane_id uuid not null default carillon_id()`,

  // A row until the subscription is done with the message. due_at: when it may be tried; while it is leased, the end of the
  // lease; infinity, while it stands behind another of its group or the group is parked.
  `create table push_deliveries (
     project_id uuid not null,
     subscription_id uuid not null,
     message_id uuid not null,
     queue_id uuid not null,
     group_id text,
     seq bigint not null,
     due_at timestamptz not null,
     failure_count int not null default 0,
     lease_token uuid,
     error text,
     expires_at timestamptz not null,
     primary key (project_id, subscription_id, message_id)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,
  `create index push_deliveries_due_idx on push_deliveries (project_id, subscription_id, due_at)`,
  // Only messages of FIFO queues have a group here.
  `create index push_deliveries_group_idx on push_deliveries (project_id, subscription_id, group_id, seq) where group_id is not null`,
  `create index push_deliveries_message_idx on push_deliveries (project_id, queue_id, message_id)`,
  `create index push_deliveries_expiry_idx on push_deliveries (expires_at)`,

  // Makes the first messages of groups due, and only those. Callers hold the turn of the subscription.
  `create function carillon_push_heads(p_project uuid, p_subscription uuid, p_groups text[]) returns void
   language sql as $$
     update push_deliveries d set due_at = carillon_now()
     from unnest(p_groups) as g (group_id)
     cross join lateral (
       select h.message_id from push_deliveries h
       where h.project_id = p_project and h.subscription_id = p_subscription and h.group_id = g.group_id
       order by h.seq limit 1) head
     where d.project_id = p_project and d.subscription_id = p_subscription and d.message_id = head.message_id
       and d.due_at = 'infinity' and d.failure_count = 0
   $$`,

  // Lets the settling, the fan-out and the pruning of a subscription's ordered messages take turns until they commit.
  `create function carillon_push_turn(p_subscription uuid) returns void language sql as $$
     select pg_advisory_xact_lock(hashtextextended(p_subscription::text, 4))
   $$`,
];
