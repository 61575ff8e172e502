import { type Kysely, sql } from "kysely";

/** Keeping the rows of groups up to date. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/**
 * The planner may know nothing of tables that fill and empty: it may take a whole queue for two rows. So nothing here
 * joins with a table; rows are looked up one key at a time, in the order of an index. Set on what is called from outside.
 */
export const BY_INDEX =
  "set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off set jit = off";

/** Changes that one hand-out takes into the groups' rows, and groups whose time has come that it looks at. */
const FOLD_STEP = 300;
const LOOK_STEP = 200;

/** By how many numbers of changes the floor is raised at a time. */
const FLOOR_STEP = 1_000;

/** Slices of a rate's period. What was handed out in one counts until a whole period after the last of it. */
export const SLICES = 60;

/** The messages m of the queue q. */
export const IN_LANE = "m.project_id = q.project_id and m.queue_id = q.queue_id";
/** Those that can be handed out, as far as the message goes. */
export const AVAILABLE = "m.lease_expires_at is null and m.visible_at <= p_clock and m.expires_at > p_clock";

const STATEMENTS = [
  // The clock as it is when asked, not as it was when the transaction began: hand-outs may have waited for their turn.
  `create function carillon_clock() returns timestamptz language sql volatile as $$
     select carillon_now() + (clock_timestamp() - now())
   $$`,

  `create function carillon_take_turn(p_queue_id uuid) returns void language plpgsql as $$
   begin
     perform pg_advisory_xact_lock_shared(carillon_shape_lock(p_queue_id));
     perform pg_advisory_xact_lock(carillon_turn_lock(p_queue_id));
   end $$`,

  // What counts against a rate at this instant, and when the first of it counts no more. The group is null for the queue.
  `create function carillon_rate_use(q queues, p_group text, p_period int, p_clock timestamptz, out used int, out free_at timestamptz)
   language sql stable as $$
     select coalesce(sum(s.handed_out), 0)::int, min(s.last_at) + make_interval(secs => p_period) from rate_slices s
     where s.project_id = q.project_id and s.queue_id = q.queue_id
       and s.of_queue = (p_group is null) and s.group_id = coalesce(p_group, '')
       and s.begins_at > p_clock - make_interval(secs => p_period * ${SLICES + 1} / ${SLICES}.0)
       and s.last_at > p_clock - make_interval(secs => p_period)
   $$`,

  // When a message of the group can be handed out, limits counted in; null where only a change can make it so. In a FIFO
  // queue the first message decides. Elsewhere it may say a little too early where priority counts.
  `create function carillon_group_ready_at(q queues, p_group text, p_in_flight int, p_clock timestamptz)
   returns timestamptz language plpgsql as $$
   declare
     free_at timestamptz;
     used int;
     spent_until timestamptz;
   begin
     if q.type = 'fifo' then
       select case when m.lease_expires_at is null then m.visible_at end into free_at from messages m
       where ${IN_LANE} and m.group_id = p_group and (m.lease_expires_at is not null or m.expires_at > p_clock)
       order by m.seq limit 1;
     else
       select m.visible_at into free_at from messages m
       where ${IN_LANE} and m.group_id = p_group and ${AVAILABLE} and m.rank <= p_clock order by m.rank, m.seq limit 1;
       if not found then
         select greatest(m.rank, p_clock + interval '1 second') into free_at from messages m
         where ${IN_LANE} and m.group_id = p_group and m.lease_expires_at is null and m.expires_at > p_clock
         order by m.rank, m.seq limit 1;
       end if;
     end if;
     if q.group_max_in_flight > 0 and p_in_flight >= q.group_max_in_flight then return null; end if;
     if q.group_rate_limit > 0 and free_at is not null then
       select r.used, r.free_at into used, spent_until
       from carillon_rate_use(q, p_group, q.group_rate_period_seconds, p_clock) r;
       if used >= q.group_rate_limit then return greatest(free_at, spent_until); end if;
     end if;
     return free_at;
   end $$`,

  // Writes down which of the groups are ready. Needs the queue's turn.
  `create function carillon_look_at_groups(q queues, p_groups text[], p_clock timestamptz)
   returns void language plpgsql as $$
   begin
     update message_groups g
     set (ready, ready_at) = (select coalesce(r.ready_at <= p_clock, false), r.ready_at
                              from carillon_group_ready_at(q, g.group_id, g.in_flight, p_clock) as r (ready_at))
     where g.project_id = q.project_id and g.queue_id = q.queue_id and g.group_id = any(p_groups);
   end $$`,

  // Takes up to p_step of the oldest changes into the groups' rows, and returns how many. A group without messages has no
  // row. Needs the queue's turn.
  `create function carillon_fold_groups(q queues, p_step int, p_clock timestamptz)
   returns int language plpgsql as $$
   declare
     folded int;
     touched text[];
     base bigint;
     newest group_change_floors%rowtype;
     is_over boolean;
     ids bigint[];
   begin
     select * into newest from group_change_floors f where f.project_id = q.project_id and f.queue_id = q.queue_id
     order by f.floor_id desc limit 1;
     is_over := newest is null or newest.next_xid <= pg_snapshot_xmin(pg_current_snapshot());
     ids := array(
       select c.change_id from group_changes c
       where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id > coalesce(newest.floor, 0)
       order by c.change_id limit p_step);
     if ids = '{}' then return 0; end if;
     -- What has committed late, below the next floor, is still to be taken in before that becomes the floor.
     if is_over and ids[1] > coalesce(newest.next_floor, 0) + ${FLOOR_STEP} then
       insert into group_change_floors (project_id, queue_id, floor, next_floor, next_xid)
       values (q.project_id, q.queue_id, coalesce(newest.next_floor, 0), ids[1] - 1, pg_snapshot_xmax(pg_current_snapshot()));
       delete from group_change_floors f
       where f.project_id = q.project_id and f.queue_id = q.queue_id and f.floor_id <= newest.floor_id;
     end if;
     base := nextval('group_turns') * 100000;
     with taken as (
       delete from group_changes c
       where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id = any(ids)
       returning c.change_id, c.group_id, c.depth, c.in_flight
     ),
     summed as materialized (
       select t.group_id, sum(t.depth)::int as depth, sum(t.in_flight)::int as in_flight,
              row_number() over (order by min(t.change_id)) as place, count(*) as changes
       from taken t group by t.group_id
     ),
     known as materialized (
       select s.*, s.depth + coalesce((
         select g.depth from message_groups g
         where g.project_id = q.project_id and g.queue_id = q.queue_id and g.group_id = s.group_id), 0) as now_depth
       from summed s
     ),
     emptied as (
       delete from message_groups g
       where g.project_id = q.project_id and g.queue_id = q.queue_id
         and g.group_id = any(array(select k.group_id from known k where k.now_depth = 0))
     ),
     changed as (
       insert into message_groups as g (project_id, queue_id, group_id, depth, in_flight, ready, turn)
       select q.project_id, q.queue_id, k.group_id, k.depth, k.in_flight, false, base + k.place
       from known k where k.now_depth > 0
       on conflict (project_id, queue_id, group_id)
       do update set depth = g.depth + excluded.depth, in_flight = g.in_flight + excluded.in_flight
     )
     select sum(k.changes), array_agg(k.group_id) filter (where k.now_depth > 0) into folded, touched from known k;
     perform carillon_look_at_groups(q, touched, p_clock);
     return folded;
   end $$`,

  // Brings the groups' rows up to date as far as one step goes: with what changed, and with what has come due.
  `create function carillon_refresh_groups(q queues, p_clock timestamptz) returns int language plpgsql ${BY_INDEX} as $$
   declare
     due text[];
     folded int;
   begin
     folded := carillon_fold_groups(q, ${FOLD_STEP}, p_clock);
     select array_agg(w.group_id) into due from (
       select g.group_id from message_groups g
       where g.project_id = q.project_id and g.queue_id = q.queue_id and not g.ready and g.ready_at <= p_clock
       order by g.ready_at limit ${LOOK_STEP}) w;
     if due is not null then perform carillon_look_at_groups(q, due, p_clock); end if;
     return folded;
   end $$`,

  // Brings the rows of a queue's groups up to date as far as one step goes, and returns how many changes it took in.
  `create function carillon_refresh_queue_groups(p_project uuid, p_queue_id uuid) returns int language plpgsql ${BY_INDEX} as $$
   declare
     q queues%rowtype;
   begin
     perform carillon_take_turn(p_queue_id);
     select * into q from queues where project_id = p_project and queue_id = p_queue_id;
     if not found or not q.grouped then return 0; end if;
     return carillon_refresh_groups(q, carillon_clock());
   end $$`,
];
