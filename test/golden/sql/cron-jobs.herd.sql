select min(cron_id::text)::uuid as cron_id, cron_expr, timezone, dst_gap, dst_overlap, start_at, end_at,
  spread_seconds, jitter_seconds, count(*)::int as jobs
from cron_jobs
where project_id = $1 and state = 'active' and next_run_at < $2 and ping_token is null
group by cron_expr, timezone, dst_gap, dst_overlap, start_at, end_at, spread_seconds, jitter_seconds,
  case when cron_expr ~* 'h' or spread_seconds > 0 or jitter_seconds > 0 then cron_id end
order by jobs desc, cron_id limit $3;
