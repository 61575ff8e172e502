import { type Kysely, sql } from "kysely";
import { AVAILABLE, BY_INDEX, IN_LANE, SLICES } from "./0004-groups-upkeep.ts";

/** Handing out by group and under limits. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/** Rounds over the groups that one hand-out makes at most. */
const ROUNDS = 20;

const STATEMENTS = [
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
         select from messages m where ${IN_LANE} and m.lease_expires_at is not null
           order by m.lease_expires_at limit q.max_in_flight) leases;
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

  // Leases those of the messages that are still free (each is looked up by its key first: the planner would look through
  // all free ones of the queue), and returns them and their groups in the order given.
  `create function carillon_lease(q queues, p_ids uuid[], p_seconds int, p_request text, p_clock timestamptz,
                                  out ids uuid[], out groups text[]) language plpgsql as $$
   begin
     perform set_config('carillon.handing_out', 'on', true);
     with free as materialized (
       select u.place, l.at from unnest(p_ids) with ordinality as u (message_id, place)
       cross join lateral (
         select m.ctid as at, m.lease_expires_at, m.visible_at, m.expires_at from messages m
         where ${IN_LANE} and m.message_id = u.message_id limit 1 for update skip locked) l
       where l.lease_expires_at is null and l.visible_at <= p_clock and l.expires_at > p_clock
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
     level as materialized (
       select ceil(min((p_room + l.upto)::numeric / l.place)) as level
       from (select t.place, sum(t.in_flight) over (order by t.place) as upto from tried t) l
     ),
     quotas as materialized (
       select t.*, least(case when q.type = 'fifo' then 1 else level.level - t.in_flight end,
                         case when q.group_max_in_flight > 0 or q.group_rate_limit > 0
                           then carillon_group_room(q, t.group_id, t.in_flight, p_clock) end)::int as quota
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
     folded int;
   begin
     perform carillon_take_turn(p_queue_id);
     select * into q from queues where project_id = p_project and queue_id = p_queue_id;
     if not found or q.paused then return leased; end if;
     clock := carillon_clock();
     room := least(p_limit, carillon_queue_room(q, clock));
     if q.grouped then
       folded := carillon_refresh_groups(q, clock);
       for round in 1..${ROUNDS} loop
         exit when cardinality(leased) >= room;
         more := carillon_serve_groups(q, room - cardinality(leased), p_seconds, p_request, clock);
         exit when more is null and folded = 0;
         if more is null then folded := carillon_refresh_groups(q, clock); end if;
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

  // When a hand-out of a queue that is grouped or metered may find something: now or before, or later, or null where only
  // a change can make it so. Leases that ran out are not looked for.
  `create function carillon_next_hand_out_at(q queues) returns timestamptz language plpgsql stable ${BY_INDEX} as $$
   declare
     p_clock timestamptz := carillon_now();
     next_at timestamptz;
     used int;
     free_at timestamptz;
   begin
     if q.grouped then
       select coalesce(
         (select p_clock from message_groups g where g.project_id = q.project_id and g.queue_id = q.queue_id and g.ready limit 1),
         (select p_clock from group_changes c where c.project_id = q.project_id and c.queue_id = q.queue_id limit 1),
         (select g.ready_at from message_groups g
          where g.project_id = q.project_id and g.queue_id = q.queue_id and not g.ready and g.ready_at is not null
          order by g.ready_at limit 1)) into next_at;
     else
       select coalesce(
         (select m.visible_at from messages m where ${IN_LANE} and ${AVAILABLE} and m.rank <= p_clock order by m.rank limit 1),
         (select m.rank from messages m where ${IN_LANE} and m.lease_expires_at is null and m.rank > p_clock
          order by m.rank limit 1)) into next_at;
     end if;
     if q.metered and next_at is not null then
       if q.max_in_flight > 0 and q.max_in_flight <= (
         select count(*) from (
           select from messages m where ${IN_LANE} and m.lease_expires_at is not null
           order by m.lease_expires_at limit q.max_in_flight) leases)
       then return null; end if;
       if q.rate_limit > 0 then
         select r.used, r.free_at into used, free_at from carillon_rate_use(q, null, q.rate_period_seconds, p_clock) r;
         if used >= q.rate_limit then return greatest(next_at, free_at); end if;
       end if;
     end if;
     return next_at;
   end $$`,
];
