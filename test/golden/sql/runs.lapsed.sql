select r.project_id as "projectId", r.run_id as "runId", r.kind, r.cron_id as "cronId", r.task_id as "taskId",
  r.attempt, r.lease_token as "leaseToken", coalesce(c.retries, t.retries, 0) as retries,
  coalesce(c.backoff, t.backoff) as backoff, c.ping_token is not null as "isPinged"
from runs r
left join cron_jobs c on c.project_id = r.project_id and c.cron_id = r.cron_id
left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
where r.state = 'running' and r.lease_expires_at <= carillon_now() and r.kind <> 'push'
order by r.lease_expires_at limit $1;
