import { type Kysely, sql } from "kysely";
import { AVAILABLE, IN_LANE } from "./0004-groups-upkeep.ts";
import { BY_INDEX, BY_KEY, BY_RANK, HEAD, IN_QUEUE, LEVELS, waiting } from "./0007-group-upkeep.ts";

/** Handing out by group: one statement for each thing that a turn does for all groups that it serves. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/** Rounds over the groups that one hand-out makes at most. */
const ROUNDS = 20;

/** Whether the queue q, if it may hand out at all, has a line that is to be emptied first. */
const IS_DRAINING = `exists (
  select from line_messages m where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1)`;

const STATEMENTS = [
  "drop function carillon_serve_groups(queues, int, int, text, timestamptz)",

  // Leases those of the messages that are still free, and returns them and their groups in the order given.
  `create or replace function carillon_lease(q queues, p_ids uuid[], p_seconds int, p_request text, p_clock timestamptz,
                                             out ids uuid[], out groups text[]) language plpgsql as $$
   begin
     perform set_config('carillon.handing_out', 'on', true);
     with free as materialized (
       select u.place, l.at from unnest(p_ids) with ordinality as u (message_id, place)
       cross join lateral (
         select m.ctid as at, m.lease_expires_at, m.visible_at, m.expires_at from messages m
         where ${BY_KEY} limit 1 for update skip locked) l
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

  // One round over the groups that are ready: those with the least in flight first, and of these the one that came to it
  // first. Each gets as many as bring the groups nearest to having equally many in flight; in a FIFO queue that is one.
  // Returns what was leased; null when no group is ready.
  `create function carillon_serve_groups(q queues, p_room int, p_seconds int, p_request text, p_clock timestamptz,
                                         inout mark group_marks, out leased uuid[]) language plpgsql as $$
   declare
     base bigint := nextval('group_turns') * 100000;
     is_fifo boolean := q.type = 'fifo';
     has_room boolean := q.group_max_in_flight = 0 and q.group_rate_limit = 0;
     tried message_groups[];
     places tid[];
     ids uuid[];
     groups text[];
   begin
     select array_agg(p.g order by p.n), array_agg(p.at order by p.n) into tried, places
     from (
       select g, g.at, row_number() over () as n from unnest(mark.turns) with ordinality as l (turn, place)
       cross join lateral (
         select g, g.ctid as at from message_groups g
         where ${IN_QUEUE} and g.ready and g.level = l.place - 1 and g.turn > l.turn order by g.turn limit p_room) g
       limit p_room) p;
     if not is_fifo and coalesce(cardinality(tried), 0) < p_room then
       select tried || array_agg(p.g order by p.level, p.turn), places || array_agg(p.at order by p.level, p.turn)
       into tried, places
       from (
         select g, g.ctid as at, g.level, g.turn from message_groups g where ${IN_QUEUE} and g.ready and g.level >= ${LEVELS}
         order by g.level, g.turn limit p_room - coalesce(cardinality(tried), 0)) p;
     end if;
     mark.turns := array(
       select case when f.turn is not null then f.turn - 1 when l.place <= n.level + 1 or n.count < p_room then base else l.turn end
       from unnest(mark.turns) with ordinality as l (turn, place)
       cross join (select coalesce(max(t.level), 0) as level, count(*) as count from unnest(tried) t) n
       left join lateral (select min(t.turn) as turn from unnest(tried) t where t.level = l.place - 1) f on true
       order by l.place);
     if tried is null then return; end if;
     if is_fifo then
       -- All that were tried go to the end, or out of it.
       mark.turns := array[tried[cardinality(tried)].turn];
       ids := array(
         select h.message_id from unnest(tried) with ordinality as k
         cross join lateral (${HEAD}) h
         where has_room or carillon_group_room(q, k.group_id, k.in_flight, p_clock) > 0
         order by k.ordinality);
     else
       with known as materialized (select t.*, t.ordinality as place from unnest(tried) with ordinality as t),
       level as materialized (
         select ceil(min((p_room + l.upto)::numeric / l.place)) as level
         from (select t.place, sum(t.in_flight) over (order by t.place) as upto from known t) l
       ),
       quotas as materialized (
         select t.*, least(level.level - t.in_flight, case when not has_room
                  then carillon_group_room(q, t.group_id, t.in_flight, p_clock) end)::int as quota
         from known t, level where level.level > t.in_flight
       ),
       lines as (
         select h.message_id, row_number() over (partition by t.group_id order by h.rank, h.seq) as k, t.in_flight, t.place
         from quotas t cross join lateral (
           select m.message_id, m.rank, m.seq from messages m
           where ${waiting("t.group_id", "t.from_rank", "p_clock")} and ${AVAILABLE} ${BY_RANK}
           limit greatest(t.quota, 0)) h
       )
       select array(select n.message_id from lines n order by n.in_flight + n.k, n.k > 1, n.place limit p_room),
              (select array_agg(tried[t.place] order by t.place) from quotas t),
              (select array_agg(places[t.place] order by t.place) from quotas t)
       into ids, tried, places;
     end if;
     select l.ids, l.groups into leased, groups
     from carillon_lease(q, coalesce(ids, '{}'), p_seconds, p_request, p_clock) l;
     with served as materialized (
       select t.*, coalesce(l.n, 0)::int as n, t.in_flight + coalesce(l.n, 0)::int as now_in_flight
       from unnest(tried) with ordinality as t
       left join (select g.group_id, count(*) as n from unnest(groups) as g (group_id) group by g.group_id) l using (group_id)
     ),
     looked as materialized (
       select s.*, coalesce(r.from_rank, s.from_rank) as now_from_rank,
              case when is_fifo then case when s.n = 0 then p_clock end else r.ready_at end as now_ready_at
       from served s left join lateral (
         select r.* from (select where not is_fifo offset 0) other
         cross join lateral carillon_group_ready_at(q, s.group_id, s.now_in_flight, p_clock, s.from_seq, s.from_rank) r) r on true
     ),
     gone as (delete from message_groups where ctid = any(places))
     insert into message_groups (project_id, queue_id, group_id, version, depth, in_flight, level, ready, ready_at, turn,
                                 from_seq, from_rank)
     select q.project_id, q.queue_id, l.group_id, base + l.ordinality, l.depth, l.now_in_flight,
            case when is_fifo then 0 else l.now_in_flight end, not is_fifo and coalesce(l.now_ready_at <= p_clock, false),
            l.now_ready_at, base + l.ordinality, l.from_seq, l.now_from_rank
     from looked l;
     if q.group_rate_limit > 0 then
       perform carillon_count_against_rate(q, u.groups, u.counts, q.group_rate_period_seconds, p_clock)
       from (select array_agg(c.group_id) as groups, array_agg(c.n) as counts
             from (select g.group_id, count(*)::int as n from unnest(groups) as g (group_id) group by g.group_id) c) u
       where u.groups is not null;
     end if;
   end $$`,

  // Hands out up to p_limit messages of a queue that is grouped or metered, and returns their ids in order. Hand-outs of
  // a queue take turns until they commit, so that what they count is exact.
  `create or replace function carillon_hand_out(p_project uuid, p_queue_id uuid, p_limit int, p_seconds int, p_request text)
   returns uuid[] language plpgsql ${BY_INDEX} as $$
   declare
     q queues%rowtype;
     clock timestamptz;
     room int;
     leased uuid[] := '{}';
     read group_marks%rowtype;
     mark group_marks%rowtype;
     folded int;
     step record;
   begin
     perform carillon_take_turn(p_queue_id);
     select * into q from queues where project_id = p_project and queue_id = p_queue_id;
     if not found or q.paused then return leased; end if;
     clock := carillon_clock();
     room := least(p_limit, carillon_queue_room(q, clock));
     if q.grouped then
       read := carillon_group_mark(q);
       select * into step from carillon_refresh_groups(q, clock, read);
       mark := step.mark;
       folded := step.folded;
       for round in 1..${ROUNDS} loop
         exit when cardinality(leased) >= room;
         select * into step from carillon_serve_groups(q, room - cardinality(leased), p_seconds, p_request, clock, mark);
         mark := step.mark;
         leased := leased || step.leased;
         continue when step.leased is not null;
         exit when folded = 0;
         select * into step from carillon_refresh_groups(q, clock, mark);
         mark := step.mark;
         folded := step.folded;
       end loop;
       perform carillon_keep_group_mark(read, mark);
     elsif room > 0 then
       leased := carillon_serve_line(q, room, p_seconds, p_request, clock);
     end if;
     if q.rate_limit > 0 then
       perform carillon_count_against_rate(q, array[null::text], array[cardinality(leased)], q.rate_period_seconds, clock);
     end if;
     return leased;
   end $$`,

  // Hands out messages of a queue that is grouped or metered: to each request up to its limit, in the order of the
  // requests. The first row tells of the queue and has no request; no row where the queue is missing.
  //   own_turn: the queue is grouped or metered; without it nothing is handed out here.
  //   draining, expired: as of carillon_line_claim; with either nothing is handed out, as both are to be seen to before.
  `create function carillon_hand_out_in_turn(
     p_project uuid, p_queue text, p_limits int[], p_seconds int[], p_requests text[], p_expired_since timestamptz
   ) returns table (
     own_turn boolean, draining boolean, expired boolean, asked_at timestamptz, request int,
     message_id uuid, payload bytea, content_type text, headers jsonb, group_id text, priority smallint, receive_count int,
     failure_count int, return_count int, expiry_count int, published_at timestamptz, visible_at timestamptz,
     lease_token uuid, lease_expires_at timestamptz, error text, dead_reason text, dead_lettered_at timestamptz
   ) language plpgsql ${BY_INDEX} as $$
   #variable_conflict use_column
   declare
     q queues%rowtype;
     leased uuid[];
   begin
     select * into q from queues where queues.project_id = p_project and queues.name = p_queue;
     if not found then return; end if;
     own_turn := q.grouped or q.metered;
     asked_at := carillon_now();
     draining := own_turn and ${IS_DRAINING};
     expired := own_turn and exists (
       select from messages m where ${IN_LANE} and m.lease_expires_at <= carillon_now()
         and m.lease_expires_at > p_expired_since order by m.lease_expires_at limit 1);
     return next;
     if q.paused or draining or expired or not own_turn then return; end if;
     for nth in 1..cardinality(p_limits) loop
       leased := carillon_hand_out(p_project, q.queue_id, p_limits[nth],
                                   coalesce(p_seconds[nth], q.visibility_timeout_seconds), p_requests[nth]);
       return query
       select null::boolean, null::boolean, null::boolean, null::timestamptz, nth,
              m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
              m.return_count, m.expiry_count, m.published_at, m.visible_at, m.lease_token, m.lease_expires_at, m.error,
              m.dead_reason, m.dead_lettered_at
       from unnest(leased) with ordinality as u (message_id, place)
       cross join lateral (select m.* from messages m where ${BY_KEY} limit 1) m
       cross join lateral (
         select b.* from message_bodies b
         where b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id limit 1) b
       order by u.place;
       exit when cardinality(leased) < p_limits[nth];
     end loop;
   end $$`,

  // When a hand-out of a queue that is grouped or metered may find something: now or before, or later, or null where only
  // a change can make it so. Leases that ran out are not looked for.
  `create or replace function carillon_next_hand_out_at(q queues) returns timestamptz language plpgsql stable ${BY_INDEX} as $$
   declare
     p_clock timestamptz := carillon_now();
     mark group_marks%rowtype;
     next_at timestamptz;
     used int;
     free_at timestamptz;
   begin
     if q.grouped then
       mark := carillon_group_mark(q);
       select coalesce(
         (select p_clock from unnest(mark.turns) with ordinality as l (turn, place)
          cross join lateral (
            select from message_groups g
            where ${IN_QUEUE} and g.ready and g.level = l.place - 1 and g.turn > l.turn order by g.turn limit 1) g
          limit 1),
         (select p_clock from message_groups g where ${IN_QUEUE} and g.ready and g.level >= ${LEVELS} order by g.level limit 1),
         (select p_clock from group_changes c
          where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id > mark.floor limit 1),
         (select g.ready_at from message_groups g
          where ${IN_QUEUE} and not g.ready and g.ready_at is not null and (g.ready_at > mark.due_after or p_clock < mark.due_after)
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
