with ready as materialized (
  select project_id, endpoint_id from endpoints e
  where e.parked_since is not null and e.state <> 'disabled' and e.ready_at <= carillon_now() and (e.project_id, e.endpoint_id) not in (select * from unnest($1::uuid[], $2::uuid[]))
  order by random() limit $3),
due as (
  (select r.project_id, r.endpoint_id, false as parked, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
   from runs r
   where r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
     and r.run_at <= carillon_now()
   order by r.run_at limit $4)
  union all
  select ready.project_id, ready.endpoint_id, true, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
  from ready left join lateral (
    select * from runs r
    where r.project_id = ready.project_id and r.endpoint_id = ready.endpoint_id and r.parked
      and r.state in ('pending', 'retrying')
    order by r.run_at
    limit greatest($5, $6 / (select count(*) from ready))) r on true)
select due.*, due.attempt = 0 and due.start_by <= carillon_now() as too_late, e.guarded,
  e.state = 'disabled' or e.ready_at > carillon_now() as blocked
from due
-- One look into the key for each run: joined, the table would be read as a whole where the planner expects many runs.
left join lateral (
  select guarded, state, ready_at from endpoints
  where project_id = due.project_id and endpoint_id = due.endpoint_id limit 1) e on true
order by due.run_at;
