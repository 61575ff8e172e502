select project_id as "projectId", run_id as "runId", cron_id as "cronId", task_id as "taskId" from runs
where start_by <= carillon_now() and start_by is not null and state = 'pending' and attempt = 0
order by start_by limit $1;
