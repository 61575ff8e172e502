with lane as (select $1::bigint as lane_id, carillon_line_cursor($2) as cursor),
minute as (
  select c.* from lane, line_claims c
  where c.lane_id = lane.lane_id and not c.purged and c.hi > coalesce((
    select o.hi from line_claims o
    where o.lane_id = lane.lane_id and o.claimed_at <= carillon_now() - interval '60 seconds'
    order by o.hi desc limit 1), 0)
),
-- Both ends of the line by one look into its key each: a join would be sorted, and so read the whole line.
waiting as (
  select coalesce((select m.seq from line_messages m where m.lane_id = lane.lane_id and m.seq > lane.cursor
                   order by m.seq desc limit 1) - lane.cursor, 0) as count,
         (select m.published_at from line_messages m where m.lane_id = lane.lane_id and m.seq > lane.cursor
          order by m.seq limit 1) as first_published_at
  from lane
),
open as (
  select coalesce(sum(cardinality(c.open_seqs)) filter (where c.expires_at > carillon_now()), 0) as leased,
         coalesce(sum(cardinality(c.open_seqs)) filter (where c.expires_at <= carillon_now()), 0) as lapsed,
         min(c.first_published_at) filter (where c.expires_at <= carillon_now()) as first_lapsed_at
  from lane, line_claims c where c.lane_id = lane.lane_id and not c.settled
)
select (waiting.count + open.lapsed)::int as available, open.leased::int as in_flight,
  extract(epoch from carillon_now() - least(open.first_lapsed_at, waiting.first_published_at))::int as oldest_age_seconds,
  ((select carillon_line_published_since(lane.lane_id, carillon_now() - interval '60 seconds') from lane)
   + (select coalesce(sum(hi - lo), 0) from minute where first_published_at > carillon_now() - interval '60 seconds')
  )::int as published,
  (select coalesce(sum(hi - lo - cardinality(open_seqs)), 0) from minute)::int as acked
from waiting, open;
