select carillon_now() as now, exists (select from push_subscriptions where not paused) as "isPushing",
least(
(select min(next_run_at) from cron_jobs where state = 'active'),
(select min(start_by) from runs where start_by is not null and state = 'pending' and attempt = 0),
(select min(due_at) from cron_watches)) as "crons",
least(
(select min(run_at) from runs
 where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'),
(select min(ready_at) from endpoints
 where parked_since is not null and state <> 'disabled' and ready_at < 'infinity')) as "runs",
(select min(lease_expires_at) from runs where state = 'running' and kind <> 'push') as "leases",
(select min(next_step_at) from redrives where state = 'running') as "redrives",
(select min(next_step_at) from replays where state = 'running') as "replays",
(select min(next_step_at) from backfills where state = 'running') as "backfills";

-- Result
--   InitPlan 1
--     ->  Seq Scan on push_subscriptions
--           Filter: (NOT paused)
--   InitPlan 3
--     ->  Result
--           InitPlan 2
--             ->  Limit
--                   ->  Index Only Scan using cron_jobs_due_idx on cron_jobs
--                         Index Cond: (next_run_at IS NOT NULL)
--   InitPlan 5
--     ->  Result
--           InitPlan 4
--             ->  Limit
--                   ->  Index Only Scan using runs_start_by_idx on runs
--   InitPlan 7
--     ->  Result
--           InitPlan 6
--             ->  Limit
--                   ->  Index Only Scan using cron_watches_due_idx on cron_watches
--   InitPlan 9
--     ->  Result
--           InitPlan 8
--             ->  Limit
--                   ->  Index Only Scan using runs_due_idx on runs runs_1
--   InitPlan 11
--     ->  Result
--           InitPlan 10
--             ->  Limit
--                   ->  Index Only Scan using endpoints_parked_idx on endpoints
--                         Index Cond: (ready_at < 'infinity'::timestamp with time zone)
--   InitPlan 13
--     ->  Result
--           InitPlan 12
--             ->  Limit
--                   ->  Index Scan using runs_leased_idx on runs runs_2
--                         Index Cond: (lease_expires_at IS NOT NULL)
--                         Filter: (kind <> 'push'::text)
--   InitPlan 15
--     ->  Result
--           InitPlan 14
--             ->  Limit
--                   ->  Index Only Scan using redrives_due_idx on redrives
--   InitPlan 17
--     ->  Result
--           InitPlan 16
--             ->  Limit
--                   ->  Index Only Scan using replays_due_idx on replays
--   InitPlan 19
--     ->  Result
--           InitPlan 18
--             ->  Limit
--                   ->  Index Only Scan using backfills_due_idx on backfills
