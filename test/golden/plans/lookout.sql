select
coalesce((select true from cron_jobs
          where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit 1),
         (select true from runs
          where start_by <= carillon_now() and start_by is not null and state = 'pending' and attempt = 0
          order by start_by limit 1),
         (select true from cron_watches where due_at <= carillon_now() order by due_at limit 1), false) as crons,
coalesce((select true from runs
          where state in ('pending', 'retrying') and not waiting and not parked and kind <> 'push'
            and run_at <= carillon_now() order by run_at limit 1),
         (select true from endpoints
          where parked_since is not null and state <> 'disabled' and ready_at <= carillon_now()
          order by ready_at limit 1), false) as runs,
coalesce((select true from redrives
          where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as redrives,
coalesce((select true from replays
          where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as replays,
coalesce((select true from backfills
          where state = 'running' and next_step_at <= carillon_now() order by next_step_at limit 1), false) as backfills,
coalesce((select true from push_subscriptions where not paused limit 1), false) as pushes;

-- Result
--   InitPlan 1
--     ->  Limit
--           ->  Index Only Scan using cron_jobs_due_idx on cron_jobs
--                 Index Cond: (next_run_at <= now())
--   InitPlan 2
--     ->  Limit
--           ->  Index Only Scan using runs_start_by_idx on runs
--                 Index Cond: (start_by <= now())
--   InitPlan 3
--     ->  Limit
--           ->  Index Only Scan using cron_watches_due_idx on cron_watches
--                 Index Cond: (due_at <= now())
--   InitPlan 4
--     ->  Limit
--           ->  Index Only Scan using runs_due_idx on runs runs_1
--                 Index Cond: (run_at <= now())
--   InitPlan 5
--     ->  Limit
--           ->  Index Only Scan using endpoints_parked_idx on endpoints
--                 Index Cond: (ready_at <= now())
--   InitPlan 6
--     ->  Limit
--           ->  Index Only Scan using redrives_due_idx on redrives
--                 Index Cond: (next_step_at <= now())
--   InitPlan 7
--     ->  Limit
--           ->  Index Only Scan using replays_due_idx on replays
--                 Index Cond: (next_step_at <= now())
--   InitPlan 8
--     ->  Limit
--           ->  Index Only Scan using backfills_due_idx on backfills
--                 Index Cond: (next_step_at <= now())
--   InitPlan 9
--     ->  Limit
--           ->  Seq Scan on push_subscriptions
--                 Filter: (NOT paused)
