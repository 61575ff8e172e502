select r.project_id as "projectId", r.run_id as "runId", r.kind, r.cron_id as "cronId", r.task_id as "taskId",
  r.attempt, r.lease_token as "leaseToken", coalesce(c.retries, t.retries, 0) as retries,
  coalesce(c.backoff, t.backoff) as backoff, c.ping_token is not null as "isPinged"
from runs r
left join cron_jobs c on c.project_id = r.project_id and c.cron_id = r.cron_id
left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
where r.state = 'running' and r.lease_expires_at <= carillon_now() and r.kind <> 'push'
order by r.lease_expires_at limit $1;

-- Limit
--   ->  Nested Loop Left Join
--         ->  Nested Loop Left Join
--               ->  Index Scan using runs_leased_idx on runs r
--                     Index Cond: (lease_expires_at <= now())
--                     Filter: (kind <> 'push'::text)
--               ->  Index Scan using cron_jobs_pkey on cron_jobs c
--                     Index Cond: ((project_id = r.project_id) AND (cron_id = r.cron_id))
--         ->  Index Scan using tasks_pkey on tasks t
--               Index Cond: ((project_id = r.project_id) AND (task_id = r.task_id))
