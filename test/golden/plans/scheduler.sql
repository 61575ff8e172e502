select project_id as "projectId", cron_id as "cronId", next_run_at as "nextRunAt" from cron_jobs
where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit $1;

-- Limit
--   ->  Index Scan using cron_jobs_due_idx on cron_jobs
--         Index Cond: (next_run_at <= now())


select project_id as "projectId", run_id as "runId", cron_id as "cronId", task_id as "taskId" from runs
where start_by <= carillon_now() and start_by is not null and state = 'pending' and attempt = 0
order by start_by limit $1;

-- Limit
--   ->  Index Scan using runs_start_by_idx on runs
--         Index Cond: (start_by <= now())


select project_id as "projectId", cron_id as "cronId" from cron_watches
where due_at <= carillon_now() order by due_at limit $1;

-- Limit
--   ->  Index Scan using cron_watches_due_idx on cron_watches
--         Index Cond: (due_at <= now())


select extract(epoch from min(next_run_at) - carillon_now())::float8 * 1000 as ms from cron_jobs
where state = 'active';

-- Result
--   InitPlan 1
--     ->  Limit
--           ->  Index Only Scan using cron_jobs_due_idx on cron_jobs
--                 Index Cond: (next_run_at IS NOT NULL)
