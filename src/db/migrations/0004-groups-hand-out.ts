import { type Kysely, sql } from "kysely";

/** Handing out by group and under limits. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/**
 * The planner may know nothing of tables that fill and empty: it may take a whole queue for two rows. So nothing here
 * joins with a table; rows are looked up one key at a time, in the order of an index. Set on what is called from outside.
 */
const BY_INDEX =
  "set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off set jit = off";

/** Changes that one hand-out takes into the groups' rows, and groups whose time has come that it looks at. */
const FOLD_STEP = 300;
const LOOK_STEP = 200;

/** Slices of a rate's period. What was handed out in one counts until a whole period after the last of it. */
const SLICES = 60;

const IN_LANE = "m.project_id = q.project_id and m.queue_id = q.queue_id";
const AVAILABLE = "m.lease_expires_at is null and m.visible_at <= p_clock and m.expires_at > p_clock";

const STATEMENTS = [
  // The clock as it is when asked, not as it was when the transaction began: hand-outs may have waited for their turn.
  `create function carillon_clock() returns timestamptz language sql volatile as $$
     select carillon_now() + (clock_timestamp() - now())
   $$`,

  // What counts against a rate at this instant, and when the first of it counts no more. The group is null for the queue.
  `create function carillon_rate_use(q queues, p_group text, p_period int, p_clock timestamptz, out used int, out free_at timestamptz)
   language sql stable as $$
     select coalesce(sum(s.handed_out), 0)::int, min(s.last_at) + make_interval(secs => p_period) from rate_slices s
     where s.project_id = q.project_id and s.queue_id = q.queue_id
       and s.of_queue = (p_group is null) and s.group_id = coalesce(p_group, '')
       and s.begins_at > p_clock - make_interval(secs => p_period * ${SLICES + 1} / ${SLICES}.0)
       and s.last_at > p_clock - make_interval(secs => p_period)
   $$`,

  `create function carillon_count_against_rate(q queues, p_groups text[], p_counts int[], p_period int, p_clock timestamptz)
   returns void language sql as $$
     insert into rate_slices as s (project_id, queue_id, of_queue, group_id, begins_at, last_at, handed_out, expires_at)
     select q.project_id, q.queue_id, u.group_id is null, coalesce(u.group_id, ''), slice.begins_at, p_clock, u.n,
            p_clock + make_interval(secs => p_period)
     from unnest(p_groups, p_counts) as u (group_id, n), (
       select to_timestamp(floor(extract(epoch from p_clock) * ${SLICES} / p_period) * p_period / ${SLICES}) as begins_at
     ) slice
     where u.n > 0
     on conflict (project_id, queue_id, of_queue, group_id, begins_at) do update
     set handed_out = s.handed_out + excluded.handed_out, last_at = excluded.last_at, expires_at = excluded.expires_at
   $$`,

  // How many more messages the limits of the queue as a whole allow at this instant.
  `create function carillon_queue_room(q queues, p_clock timestamptz) returns int language plpgsql as $$
   declare
     room int := 2147483647;
   begin
     if q.max_in_flight > 0 then
       select least(room, q.max_in_flight - count(*)) into room from (
         select from messages m where ${IN_LANE} and m.lease_expires_at is not null limit q.max_in_flight) leases;
     end if;
     if q.rate_limit > 0 then
       select least(room, q.rate_limit - u.used) into room
       from carillon_rate_use(q, null, q.rate_period_seconds, p_clock) u;
     end if;
     return greatest(room, 0);
   end $$`,

  // How many more messages of a group the limits of each group allow at this instant.
  `create function carillon_group_room(q queues, p_group text, p_in_flight int, p_clock timestamptz)
   returns int language plpgsql as $$
   declare
     room int := 2147483647;
   begin
     if q.group_max_in_flight > 0 then room := q.group_max_in_flight - p_in_flight; end if;
     if q.group_rate_limit > 0 then
       select least(room, q.group_rate_limit - u.used) into room
       from carillon_rate_use(q, p_group, q.group_rate_period_seconds, p_clock) u;
     end if;
     return greatest(room, 0);
   end $$`,

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
   begin
     if not exists (select from group_changes c where c.project_id = q.project_id and c.queue_id = q.queue_id) then
       return 0;
     end if;
     base := nextval('group_turns') * 100000;
     with taken as (
       delete from group_changes c
       where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id = any(array(
         select n.change_id from group_changes n where n.project_id = q.project_id and n.queue_id = q.queue_id
         order by n.change_id limit p_step))
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

  // Leases those of the messages that are still free, and returns them and their groups in the order given.
  `create function carillon_lease(q queues, p_ids uuid[], p_seconds int, p_request text, p_clock timestamptz,
                                  out ids uuid[], out groups text[]) language plpgsql as $$
   begin
     perform set_config('carillon.handing_out', 'on', true);
     with free as materialized (
       select l.place, l.at from unnest(p_ids) with ordinality as u (message_id, place)
       cross join lateral (
         select u.place, m.ctid as at from messages m
         where ${IN_LANE} and m.message_id = u.message_id and ${AVAILABLE} for update skip locked) l
     ),
     leased as (
       update messages m
       set lease_token = gen_random_uuid(), lease_expires_at = p_clock + make_interval(secs => p_seconds),
           lease_request = nullif(p_request, ''), receive_count = m.receive_count + 1
       from free f where m.ctid = f.at
       returning f.place, m.message_id, m.group_id
     )
     select coalesce(array_agg(l.message_id order by l.place), '{}'), coalesce(array_agg(l.group_id order by l.place), '{}')
     into ids, groups from leased l;
     perform set_config('carillon.handing_out', 'off', true);
   end $$`,

  // Leases the next messages of the queue, whatever their group.
  `create function carillon_serve_line(q queues, p_room int, p_seconds int, p_request text, p_clock timestamptz)
   returns uuid[] language sql as $$
     select l.ids from carillon_lease(q, array(
       select m.message_id from messages m where ${IN_LANE} and ${AVAILABLE} and m.rank <= p_clock
       order by m.rank, m.seq limit p_room for update skip locked), p_seconds, p_request, p_clock) l
   $$`,

  // One round over the groups that are ready: those with the least in flight first, and of these the one that has waited
  // longest for its turn. Each gets as many as bring the groups nearest to having equally many in flight; in a FIFO queue
  // that is one. Returns what was leased; null when no group is ready.
  `create function carillon_serve_groups(q queues, p_room int, p_seconds int, p_request text, p_clock timestamptz)
   returns uuid[] language plpgsql as $$
   declare
     base bigint := nextval('group_turns') * 100000;
     served text[];
     counts int[];
     ids uuid[];
     leased uuid[];
     groups text[];
   begin
     with tried as materialized (
       select g.group_id, g.in_flight, row_number() over (order by g.in_flight, g.turn) as place
       from message_groups g where g.project_id = q.project_id and g.queue_id = q.queue_id and g.ready
       order by g.in_flight, g.turn limit p_room
     ),
     level as (
       select ceil(min((p_room + l.upto)::numeric / l.place)) as level
       from (select t.place, sum(t.in_flight) over (order by t.place) as upto from tried t) l
     ),
     quotas as materialized (
       select t.*, least(case when q.type = 'fifo' then 1 else level.level - t.in_flight end,
                         carillon_group_room(q, t.group_id, t.in_flight, p_clock))::int as quota
       from tried t, level where q.type = 'fifo' or level.level > t.in_flight
     ),
     heads as (
       select h.message_id, 1 as k, t.in_flight, t.place from quotas t cross join lateral (
         select m.message_id, m.lease_expires_at from messages m
         where ${IN_LANE} and m.group_id = t.group_id and (m.lease_expires_at is not null or m.expires_at > p_clock)
         order by m.seq limit 1) h
       where q.type = 'fifo' and t.quota > 0
     ),
     lines as (
       select h.message_id, row_number() over (partition by t.group_id order by h.rank, h.seq) as k, t.in_flight, t.place
       from quotas t cross join lateral (
         select m.message_id, m.rank, m.seq from messages m
         where ${IN_LANE} and m.group_id = t.group_id and ${AVAILABLE} and m.rank <= p_clock
         order by m.rank, m.seq limit greatest(t.quota, 0)) h
       where q.type <> 'fifo'
     ),
     next as (
       select n.message_id, row_number() over (order by n.in_flight + n.k, n.k > 1, n.place) as place
       from (select * from heads union all select * from lines) n
       order by n.in_flight + n.k, n.k > 1, n.place limit p_room
     )
     select (select array_agg(t.group_id order by t.place) from quotas t),
            (select array_agg(n.message_id order by n.place) from next n)
     into served, ids;
     if served is null then return null; end if;
     select l.ids, l.groups into leased, groups
     from carillon_lease(q, coalesce(ids, '{}'), p_seconds, p_request, p_clock) l;
     select array_agg(coalesce(l.n, 0) order by u.place) into counts
     from unnest(served) with ordinality as u (group_id, place)
     left join (select g.group_id, count(*)::int as n from unnest(groups) as g (group_id) group by g.group_id) l using (group_id);
     update message_groups g
     set in_flight = g.in_flight + counts[array_position(served, g.group_id)],
         turn = base + array_position(served, g.group_id)
     where g.project_id = q.project_id and g.queue_id = q.queue_id and g.group_id = any(served);
     if q.group_rate_limit > 0 then
       perform carillon_count_against_rate(q, served, counts, q.group_rate_period_seconds, p_clock);
     end if;
     perform carillon_look_at_groups(q, served, p_clock);
     return leased;
   end $$`,

  // Hands out up to p_limit messages of a queue that is grouped or metered, and returns their ids in order. Hand-outs of
  // a queue take turns until they commit, so that what they count is exact.
  `create function carillon_hand_out(p_project uuid, p_queue_id uuid, p_limit int, p_seconds int, p_request text)
   returns uuid[] language plpgsql ${BY_INDEX} as $$
   declare
     q queues%rowtype;
     clock timestamptz;
     room int;
     leased uuid[] := '{}';
     more uuid[];
   begin
     perform carillon_take_turn(p_queue_id);
     select * into q from queues where project_id = p_project and queue_id = p_queue_id;
     if not found or q.paused then return leased; end if;
     clock := carillon_clock();
     room := least(p_limit, carillon_queue_room(q, clock));
     if q.grouped then
       perform carillon_refresh_groups(q, clock);
       for round in 1..10 loop
         exit when cardinality(leased) >= room;
         more := carillon_serve_groups(q, room - cardinality(leased), p_seconds, p_request, clock);
         exit when more is null;
         leased := leased || more;
       end loop;
     elsif room > 0 then
       leased := carillon_serve_line(q, room, p_seconds, p_request, clock);
     end if;
     if q.rate_limit > 0 then
       perform carillon_count_against_rate(q, array[null::text], array[cardinality(leased)], q.rate_period_seconds, clock);
     end if;
     return leased;
   end $$`,

  `create function carillon_take_turn(p_queue_id uuid) returns void language plpgsql as $$
   begin
     perform pg_advisory_xact_lock_shared(carillon_shape_lock(p_queue_id));
     perform pg_advisory_xact_lock(carillon_turn_lock(p_queue_id));
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
];
