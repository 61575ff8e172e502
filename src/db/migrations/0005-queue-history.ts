import { type Kysely, sql } from "kysely";

/**
 * What a queue holds, counted without a look at its messages, and what went through it minute by minute.
 *
 * Nothing here makes two callers wait for each other: whoever changes messages only appends what changed, and nodes
 * write down what they did in rows of their own. The worker folds both.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/** The minute of an instant. */
const minuteOf = (instant: string) => `date_bin('1 minute', ${instant}, 'epoch')`;

/** What a row of messages adds to the counts: of its lane, and of the queue that it died in. */
const contributions = (rows: string, sign: string) => `
  select r.project_id, r.queue_id,
         case when r.lease_expires_at is null and r.visible_at > r.published_at
                and r.visible_at >= ${minuteOf("carillon_now()")} then ${minuteOf("r.visible_at")} end as due_at,
         ${sign} (r.lease_expires_at is null)::int as waiting, ${sign} (r.lease_expires_at is not null)::int as leased, 0 as dead
  from ${rows} r where not r.acked
  union all
  select r.project_id, r.source_queue_id, null, 0, 0, ${sign} 1 from ${rows} r
  where not r.acked and r.source_queue_id is not null`;

const note = (contributed: string) => `
  insert into lane_changes (project_id, queue_id, due_at, waiting, leased, dead)
  select c.project_id, c.queue_id, c.due_at, sum(c.waiting), sum(c.leased), sum(c.dead)
  from (${contributed}) c
  group by c.project_id, c.queue_id, c.due_at
  having sum(c.waiting) <> 0 or sum(c.leased) <> 0 or sum(c.dead) <> 0;`;

const STATEMENTS = [
  // waiting and leased count the messages of the lane with and without a lease, dead those that died in the queue.
  `create table lane_counts (
     project_id uuid not null,
     queue_id uuid not null,
     waiting int not null,
     leased int not null,
     dead int not null,
     primary key (project_id, queue_id)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)`,

  // How many of the waiting come due in each minute. Only of those that had to wait at some time.
  `create table lane_dues (
     project_id uuid not null,
     queue_id uuid not null,
     due_at timestamptz not null,
     waiting int not null,
     primary key (project_id, queue_id, due_at)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)`,
  `create index lane_dues_time_idx on lane_dues (due_at)`,

  `create table lane_changes (
     project_id uuid not null,
     queue_id uuid not null,
     change_id bigint generated always as identity,
     due_at timestamptz,
     waiting int not null,
     leased int not null,
     dead int not null,
     primary key (project_id, queue_id, change_id)
   ) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1)`,

  note(contributions("messages", "+")),

  `create function carillon_note_insert() returns trigger language plpgsql as $$
   begin ${note(contributions("new_rows", "+"))} return null; end $$`,
  `create function carillon_note_delete() returns trigger language plpgsql as $$
   begin ${note(contributions("old_rows", "-"))} return null; end $$`,
  `create function carillon_note_update() returns trigger language plpgsql as $$
   begin ${note(`${contributions("new_rows", "+")} union all ${contributions("old_rows", "-")}`)} return null; end $$`,
  `create trigger messages_count_insert after insert on messages referencing new table as new_rows
     for each statement execute function carillon_note_insert()`,
  `create trigger messages_count_update after update on messages referencing old table as old_rows new table as new_rows
     for each statement execute function carillon_note_update()`,
  `create trigger messages_count_delete after delete on messages referencing old table as old_rows
     for each statement execute function carillon_note_delete()`,

  // The messages that come due one after the other. Those that never had to wait are not in it.
  `create index messages_due_idx on messages (project_id, queue_id, visible_at)
     where lease_expires_at is null and visible_at > published_at`,

  // The lowest id that carillon_id makes at the instant.
  `create function carillon_first_id(p_at timestamptz) returns uuid language sql immutable parallel safe as $$
     select rpad(lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0'), 32, '0')::uuid
   $$`,

  // What a lane holds at this instant. Reads the counts, and singly only what time changes: what comes due within this
  // minute, and what the reaper and the pruner have yet to take away.
  //   oldest_published_at: of the first thousand that are available, and of those whose lease ran out.
  //   published: in the last minute. Found by the ids, which begin with the time of the server's own clock; ids of
  //   messages that come from a line begin with zeros.
  `create function carillon_lane_stats(
     p_project uuid, p_queue_id uuid, out available int, out delayed int, out in_flight int, out dead int,
     out oldest_published_at timestamptz, out published int
   ) language sql stable set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
     with counted as (
       select coalesce(sum(waiting), 0) as waiting, coalesce(sum(leased), 0) as leased, coalesce(sum(dead), 0) as dead
       from (
         select waiting, leased, dead from lane_counts where project_id = p_project and queue_id = p_queue_id
         union all
         select waiting, leased, dead from lane_changes where project_id = p_project and queue_id = p_queue_id
       ) c
     ),
     later as (
       select coalesce(sum(waiting), 0) as count
       from (
         select due_at, waiting from lane_dues where project_id = p_project and queue_id = p_queue_id
         union all
         select due_at, waiting from lane_changes where project_id = p_project and queue_id = p_queue_id
       ) d where d.due_at > carillon_now()
     ),
     soon as (
       select count(*) as count from messages
       where project_id = p_project and queue_id = p_queue_id and lease_expires_at is null and visible_at > published_at
         and visible_at > carillon_now() and visible_at < ${minuteOf("carillon_now()")} + interval '1 minute' and not acked
     ),
     lapsed as (
       select count(*) as count, count(*) filter (where expires_at > carillon_now()) as fresh from messages
       where project_id = p_project and queue_id = p_queue_id and lease_expires_at <= carillon_now() and not acked
     ),
     -- Of all queues together, because this is found by index only so; the pruner keeps it small.
     overdue as materialized (
       select project_id, queue_id, visible_at, lease_expires_at is null and not acked as waits from messages
       where expires_at <= carillon_now()
     ),
     stale as (
       select count(*) filter (where visible_at <= carillon_now()) as due, count(*) filter (where visible_at > carillon_now()) as later
       from overdue where project_id = p_project and queue_id = p_queue_id and waits
     ),
     first_in_line as (
       select published_at from messages
       where project_id = p_project and queue_id = p_queue_id and lease_expires_at is null and rank <= carillon_now()
         and visible_at <= carillon_now() and expires_at > carillon_now() and not acked
       order by rank, seq limit 1000
     ),
     back_in_line as (
       select published_at from messages
       where project_id = p_project and queue_id = p_queue_id and lease_expires_at <= carillon_now() and not acked
         and expires_at > carillon_now() limit 1000
     ),
     recent as (
       select count(*)::int as count from messages
       where project_id = p_project and queue_id = p_queue_id
         and message_id >= carillon_first_id(statement_timestamp() - interval '61 seconds')
         and published_at > carillon_now() - interval '60 seconds'
     )
     select (counted.waiting - later.count - soon.count - stale.due + lapsed.fresh)::int,
            (later.count + soon.count - stale.later)::int, (counted.leased - lapsed.count)::int, counted.dead::int,
            least((select min(published_at) from first_in_line), (select min(published_at) from back_in_line)), recent.count
     from counted, later, soon, lapsed, stale, recent
   $$`,

  // What went through a queue in a minute, in parts: of each node one, of what is counted with its transaction one each,
  // and once the minute is over one that the others are folded into, whose id is zeros. The sample is the part of f's.
  `create table queue_history (
     project_id uuid not null,
     queue_id uuid not null,
     minute timestamptz not null default ${minuteOf("carillon_now()")},
     part uuid not null default gen_random_uuid(),
     published int not null default 0,
     delivered int not null default 0,
     acked int not null default 0,
     nacked int not null default 0,
     expired int not null default 0,
     dead int not null default 0,
     depth int,
     oldest_age_seconds int,
     primary key (project_id, queue_id, minute, part)
   ) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02)`,
  `create index queue_history_open_idx on queue_history (minute)
     where part <> '00000000-0000-0000-0000-000000000000' and part <> 'ffffffff-ffff-ffff-ffff-ffffffffffff'`,
  `create index queue_history_age_idx on queue_history using brin (minute) with (autosummarize = on)`,

  // The minute that was sampled last, by whatever node.
  `create table history_samples (only_row boolean primary key default true check (only_row), minute timestamptz not null)`,
  `insert into history_samples (minute) values ('epoch')`,
];
