select project_id as "projectId", cron_id as "cronId" from cron_watches
where due_at <= carillon_now() order by due_at limit $1;
