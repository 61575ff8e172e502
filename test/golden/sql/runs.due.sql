with ready as materialized (
  select project_id, endpoint_id from endpoints e
  where e.parked_since is not null and e.state <> 'disabled' and e.ready_at <= carillon_now()
    and (e.project_id, e.endpoint_id) not in (
    select * from unnest($1::uuid[], $2::uuid[]))
  order by random() limit $3),
first as materialized (
  select r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at from runs r where r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
    and r.run_at <= carillon_now() order by r.run_at, r.run_id limit $4),
seen as materialized (
  select r.ctid as place, row_number() over (order by r.run_at, r.run_id) as nth, r.project_id, r.endpoint_id from runs r
  where r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
    and r.run_at <= carillon_now() and (r.run_at, r.run_id) > ($5::timestamptz, $6::uuid)
  order by r.run_at, r.run_id limit $7),
others as (
  (select place, nth, false as is_end from (
     select *, row_number() over (partition by project_id, endpoint_id order by nth) as of_endpoint from seen
     -- Not in, which looks them up by hash, where not exists compares each with each while few are expected.
     where (seen.project_id, seen.endpoint_id) not in (
    select * from unnest($8::uuid[], $9::uuid[])) and (project_id, endpoint_id) not in (
       select project_id, endpoint_id from first where endpoint_id is not null)) w
   where of_endpoint <= $10 order by nth limit $11)
  union all select place, nth, true from seen where nth = $12),
due as (
  select false as parked, false as beyond, false as is_end, r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at from first r
  union all
  select true, false, false, ready.project_id, ready.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
  from ready left join lateral (
    select * from runs r
    where r.project_id = ready.project_id and r.endpoint_id = ready.endpoint_id and r.parked
      and r.state in ('pending', 'retrying')
    order by r.run_at
    limit greatest($13, $14 / (select count(*) from ready))) r on true
  union all
  select false, true, others.is_end, r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
  from others cross join lateral (select * from runs where ctid = others.place limit 1) r)
select due.project_id, due.endpoint_id, due.parked, due.beyond, due.is_end, due.run_id, due.run_at::text, due.cron_id, due.task_id,
  due.attempt = 0 and due.start_by <= carillon_now() as too_late, e.guarded,
  e.state = 'disabled' or e.ready_at > carillon_now() as blocked
from due
-- One look into the key for each run: joined, the table would be read as a whole where the planner expects many runs.
left join lateral (
  select guarded, state, ready_at from endpoints
  where project_id = due.project_id and endpoint_id = due.endpoint_id limit 1) e on true
order by due.run_at, due.run_id, due.beyond;
