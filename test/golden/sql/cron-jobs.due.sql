select project_id as "projectId", cron_id as "cronId", next_run_at as "nextRunAt" from cron_jobs
where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit $1;
