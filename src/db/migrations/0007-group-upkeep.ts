import { type Kysely, sql } from "kysely";
import { AVAILABLE, IN_LANE } from "./0004-groups-upkeep.ts";

/** Keeping the rows of groups up to date, a step at a time and each step in one statement. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

/**
 * The planner may know nothing of tables that fill and empty. So nothing here joins with a table; rows are looked up one
 * key at a time, in the order of an index, and plans are made once, because they are always the same.
 */
export const BY_INDEX = [
  "enable_seqscan = off",
  "enable_bitmapscan = off",
  "enable_sort = off",
  "enable_incremental_sort = off",
  "plan_cache_mode = force_generic_plan",
  "jit = off",
]
  .map((setting) => `set ${setting}`)
  .join(" ");

/**
 * The message m of the queue q that u names. As a comparison of rows, for which there is only one index: a plan that was
 * made while the table was empty might take any that begins with the queue.
 */
export const BY_KEY = `(m.project_id, m.queue_id, m.message_id)
  between (q.project_id, q.queue_id, u.message_id) and (q.project_id, q.queue_id, u.message_id)`;

/** The messages m of a group of q without a lease, from one rank to another, and their order. Likewise for one index only. */
export const waiting = (group: string, from: string, to: string) => `
  m.project_id = q.project_id and m.lease_expires_at is null
  and (m.queue_id, m.group_id, m.rank) between (q.queue_id, ${group}, ${from}) and (q.queue_id, ${group}, ${to})`;
export const BY_RANK = "order by m.queue_id, m.group_id, m.rank, m.seq";

/** Changes that one step takes into the groups' rows, and groups whose time has come that it looks at. */
const FOLD_STEP = 500;
const LOOK_STEP = 200;

/** Levels that have a mark of their own. Groups with more in flight are looked up without one. */
export const LEVELS = 32;

/** How far a clock may step back without a group being overlooked. */
const CLOCK_STEP = "interval '5 seconds'";

/** The rows g of groups of the queue q. */
export const IN_QUEUE = "g.project_id = q.project_id and g.queue_id = q.queue_id";

/** The first message of group k in the FIFO queue q, from where the group is known to begin. */
export const HEAD = `
  select m.message_id, m.seq, m.rank, m.lease_expires_at, m.visible_at from messages m
  where ${IN_LANE} and m.group_id = k.group_id and m.seq >= k.from_seq
    and (m.lease_expires_at is not null or m.expires_at > p_clock)
  order by m.seq limit 1`;

const STATEMENTS = [
  "drop function carillon_fold_groups(queues, int, timestamptz)",
  "drop function carillon_look_at_groups(queues, text[], timestamptz)",
  "drop function carillon_refresh_groups(queues, timestamptz)",
  "drop function carillon_group_ready_at(queues, text, int, timestamptz)",

  // The mark of a queue; where it has none, one from which everything is looked at.
  `create function carillon_group_mark(q queues) returns group_marks language plpgsql stable as $$
   declare
     mark group_marks%rowtype;
   begin
     select * into mark from group_marks g where ${IN_QUEUE} order by g.mark_id desc limit 1;
     if not found then
       mark := row(q.project_id, q.queue_id, 0, 0, 0, pg_snapshot_xmax(pg_current_snapshot()), '-infinity',
                   array_fill(0::bigint, array[case when q.type = 'fifo' then 1 else ${LEVELS} end]));
     end if;
     return mark;
   end $$`,

  // Writes down how far it has come since the mark was read. Needs the queue's turn.
  `create function carillon_keep_group_mark(p_read group_marks, p_mark group_marks) returns void language plpgsql as $$
   begin
     if p_mark = p_read and p_read.mark_id > 0 then return; end if;
     insert into group_marks (project_id, queue_id, floor, next_floor, next_xid, due_after, turns)
     values (p_mark.project_id, p_mark.queue_id, p_mark.floor, p_mark.next_floor, p_mark.next_xid, p_mark.due_after, p_mark.turns);
     delete from group_marks g
     where g.project_id = p_read.project_id and g.queue_id = p_read.queue_id and g.mark_id = p_read.mark_id;
   end $$`,

  // When a message of the group can be handed out, limits counted in; null where only a change can make it so. And from
  // where on there is something in it. In a FIFO queue the first message decides. Elsewhere it may say a little too early
  // where priority counts.
  `create function carillon_group_ready_at(
     q queues, p_group text, p_in_flight int, p_clock timestamptz, inout from_seq bigint, inout from_rank timestamptz,
     out ready_at timestamptz
   ) language plpgsql stable as $$
   declare
     first record;
     used int;
     spent_until timestamptz;
   begin
     if q.type = 'fifo' then
       select h.* into first from (select p_group as group_id, from_seq) k cross join lateral (${HEAD}) h;
       if found then
         from_seq := first.seq;
         if first.lease_expires_at is null then ready_at := first.visible_at; end if;
       end if;
     else
       select m.rank, m.visible_at, m.expires_at into first from messages m
       where ${waiting("p_group", "from_rank", "'infinity'")} ${BY_RANK} limit 1;
       if found then
         from_rank := first.rank;
         if first.rank <= p_clock and first.visible_at <= p_clock and first.expires_at > p_clock then
           ready_at := first.visible_at;
         else
           select m.visible_at into ready_at from messages m
           where ${waiting("p_group", "from_rank", "p_clock")} and ${AVAILABLE} ${BY_RANK} limit 1;
           if not found then
             select greatest(m.rank, p_clock + interval '1 second') into ready_at from messages m
             where ${waiting("p_group", "from_rank", "'infinity'")} and m.expires_at > p_clock ${BY_RANK} limit 1;
           end if;
         end if;
       end if;
     end if;
     if q.group_max_in_flight > 0 and p_in_flight >= q.group_max_in_flight then
       ready_at := null;
     elsif q.group_rate_limit > 0 and ready_at is not null then
       select r.used, r.free_at into used, spent_until
       from carillon_rate_use(q, p_group, q.group_rate_period_seconds, p_clock) r;
       if used >= q.group_rate_limit then ready_at := greatest(ready_at, spent_until); end if;
     end if;
   end $$`,

  // Brings the groups' rows up to date as far as one step goes, with what changed and with what has come due, and returns
  // how many changes it took in. Needs the queue's turn.
  `create function carillon_refresh_groups(q queues, p_clock timestamptz, inout mark group_marks, out folded int)
   language plpgsql as $$
   declare
     is_over boolean := mark.next_xid <= pg_snapshot_xmin(pg_current_snapshot());
     is_plain boolean := q.type = 'fifo' and q.group_rate_limit = 0;
     ids bigint[];
     due text[];
     base bigint;
   begin
     ids := array(
       select c.change_id from group_changes c
       where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id > mark.floor
       order by c.change_id limit ${FOLD_STEP});
     -- What has committed late, below the next floor, is still to be taken in before that becomes the floor.
     if is_over and ids[1] > mark.next_floor + 1 then
       mark.floor := mark.next_floor;
       mark.next_floor := ids[1] - 1;
       mark.next_xid := pg_snapshot_xmax(pg_current_snapshot());
     end if;
     if p_clock < mark.due_after then mark.due_after := '-infinity'; end if;
     due := array(
       select g.group_id from message_groups g
       where ${IN_QUEUE} and not g.ready and g.ready_at > mark.due_after and g.ready_at <= p_clock
       order by g.ready_at limit ${LOOK_STEP});
     if cardinality(due) < ${LOOK_STEP} then mark.due_after := greatest(mark.due_after, p_clock - ${CLOCK_STEP}); end if;
     folded := cardinality(ids);
     if folded = 0 and due = '{}' then return; end if;
     base := nextval('group_turns') * 100000;
     with taken as (
       delete from group_changes c
       where c.project_id = q.project_id and c.queue_id = q.queue_id and c.change_id = any(ids)
       returning c.change_id, c.group_id, c.depth, c.in_flight, c.from_seq, c.from_rank
     ),
     touched as materialized (
       select t.group_id, sum(t.depth)::int as depth, sum(t.in_flight)::int as in_flight, min(t.from_seq) as from_seq,
              min(t.from_rank) as from_rank, row_number() over (order by min(t.change_id), min(t.place)) as place
       from (
         select taken.*, 0 as place from taken
         union all
         select null, d.group_id, 0, 0, null, null, d.place from unnest(due) with ordinality as d (group_id, place)
       ) t group by t.group_id
     ),
     known as materialized (
       select t.group_id, t.place, g.at, g.turn, g.level as was_level, coalesce(g.ready, false) as was_ready,
              coalesce(g.depth, 0) + t.depth as depth, coalesce(g.in_flight, 0) + t.in_flight as in_flight,
              case when q.type = 'fifo' then 0 else coalesce(g.in_flight, 0) + t.in_flight end as level,
              coalesce(least(g.from_seq, t.from_seq), 0) as from_seq,
              coalesce(least(g.from_rank, t.from_rank), '-infinity') as from_rank
       from touched t left join lateral (
         select g.ctid as at, g.* from message_groups g where ${IN_QUEUE} and g.group_id = t.group_id
         order by g.version desc limit 1) g on true
     ),
     looked as materialized (
       select k.group_id, k.place, k.at, k.turn, k.was_level, k.was_ready, k.depth, k.in_flight, k.level,
              coalesce(h.seq, r.from_seq, k.from_seq) as from_seq, coalesce(r.from_rank, k.from_rank) as from_rank,
              case when is_plain then case when h.lease_expires_at is null then h.visible_at end else r.ready_at end as ready_at
       from known k
       left join lateral (select * from (select where is_plain offset 0) plain cross join lateral (${HEAD}) h) h on true
       left join lateral (
         select r.* from (select where not is_plain offset 0) other
         cross join lateral carillon_group_ready_at(q, k.group_id, k.in_flight, p_clock, k.from_seq, k.from_rank) r) r on true
     ),
     gone as (
       delete from message_groups where ctid = any(array(select k.at from known k where k.at is not null))
     )
     insert into message_groups (project_id, queue_id, group_id, version, depth, in_flight, level, ready, ready_at, turn,
                                 from_seq, from_rank, emptied_at)
     select q.project_id, q.queue_id, l.group_id, base + l.place, l.depth, l.in_flight, l.level, n.ready,
            case when l.depth > 0 then l.ready_at end,
            case when n.ready > l.was_ready or l.level = l.was_level is not true then base + l.place else l.turn end,
            l.from_seq, l.from_rank, case when l.depth = 0 then p_clock end
     from looked l cross join lateral (select l.depth > 0 and coalesce(l.ready_at <= p_clock, false) as ready) n
     where l.depth > 0 or l.at is not null;
   end $$`,

  // Brings the rows of a queue's groups up to date as far as one step goes, and returns how many changes it took in.
  `create or replace function carillon_refresh_queue_groups(p_project uuid, p_queue_id uuid) returns int
   language plpgsql ${BY_INDEX} as $$
   declare
     q queues%rowtype;
     read group_marks%rowtype;
     done record;
   begin
     perform carillon_take_turn(p_queue_id);
     select * into q from queues where project_id = p_project and queue_id = p_queue_id;
     if not found or not q.grouped then return 0; end if;
     read := carillon_group_mark(q);
     select * into done from carillon_refresh_groups(q, carillon_clock(), read);
     perform carillon_keep_group_mark(read, done.mark);
     return done.folded;
   end $$`,
];
