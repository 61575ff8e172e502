with ready as materialized (
  select project_id, endpoint_id from endpoints e
  where e.parked_since is not null and e.state <> 'disabled' and e.ready_at <= carillon_now()
    and true
  order by random() limit $1),
first as materialized (
  select r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at from runs r where r.state in ('pending', 'retrying') and not r.waiting and not r.parked and r.kind <> 'push'
    and r.run_at <= carillon_now() order by r.run_at, r.run_id limit $2),
due as (
  select false as parked, false as beyond, false as is_end, r.project_id, r.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at from first r
  union all
  select true, false, false, ready.project_id, ready.endpoint_id, r.run_id, r.cron_id, r.task_id, r.attempt, r.start_by, r.run_at
  from ready left join lateral (
    select * from runs r
    where r.project_id = ready.project_id and r.endpoint_id = ready.endpoint_id and r.parked
      and r.state in ('pending', 'retrying')
    order by r.run_at
    limit greatest($3, $4 / (select count(*) from ready))) r on true)
select due.project_id, due.endpoint_id, due.parked, due.beyond, due.is_end, due.run_id, due.run_at::text, due.cron_id, due.task_id,
  due.attempt = 0 and due.start_by <= carillon_now() as too_late, e.guarded,
  e.state = 'disabled' or e.ready_at > carillon_now() as blocked
from due
-- One look into the key for each run: joined, the table would be read as a whole where the planner expects many runs.
left join lateral (
  select guarded, state, ready_at from endpoints
  where project_id = due.project_id and endpoint_id = due.endpoint_id limit 1) e on true
order by due.run_at, due.run_id, due.beyond;

-- Incremental Sort
--   Sort Key: r.run_at, r.run_id, (false)
--   Presorted Key: r.run_at, r.run_id
--   CTE ready
--     ->  Limit
--           ->  Sort
--                 Sort Key: (random())
--                 ->  Index Scan using endpoints_parked_idx on endpoints e
--                       Index Cond: (ready_at <= now())
--   CTE first
--     ->  Limit
--           ->  Index Scan using runs_due_idx on runs r_2
--                 Index Cond: (run_at <= now())
--   ->  Nested Loop Left Join
--         ->  Merge Append
--               Sort Key: r.run_at, r.run_id
--               ->  CTE Scan on first r
--               ->  Sort
--                     Sort Key: "*SELECT* 2".run_at, "*SELECT* 2".run_id
--                     ->  Subquery Scan on "*SELECT* 2"
--                           ->  Nested Loop Left Join
--                                 ->  CTE Scan on ready
--                                 ->  Limit
--                                       InitPlan 3
--                                         ->  Aggregate
--                                               ->  CTE Scan on ready ready_1
--                                       ->  Index Scan using runs_parked_idx on runs r_1
--                                             Index Cond: ((project_id = ready.project_id) AND (endpoint_id = ready.endpoint_id))
--         ->  Limit
--               ->  Index Scan using endpoints_pkey on endpoints
--                     Index Cond: ((project_id = r.project_id) AND (endpoint_id = r.endpoint_id))


select extract(epoch from least(
  (select min(run_at) from runs
   where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'),
  (select min(ready_at) from endpoints e
   where e.parked_since is not null and e.state <> 'disabled' and true)
) - carillon_now())::float8 * 1000 as ms;

-- Result
--   InitPlan 2
--     ->  Result
--           InitPlan 1
--             ->  Limit
--                   ->  Index Only Scan using runs_due_idx on runs
--   InitPlan 4
--     ->  Result
--           InitPlan 3
--             ->  Limit
--                   ->  Index Only Scan using endpoints_parked_idx on endpoints e
