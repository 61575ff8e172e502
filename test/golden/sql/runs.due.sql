select r.project_id, r.run_id, r.task_id, r.fire_at, r.attempt, r.trigger, t.grace_seconds, carillon_now() as now
from runs r left join tasks t on t.project_id = r.project_id and t.task_id = r.task_id
where r.state in ('pending', 'retrying') and not r.waiting and r.kind <> 'push' and r.run_at <= carillon_now()
order by r.run_at limit $1;
