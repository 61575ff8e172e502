select project_id as "projectId", cron_id as "cronId", next_run_at as "nextRunAt" from cron_jobs
where state = 'active' and next_run_at <= carillon_now() order by next_run_at limit $1;

-- Limit
--   ->  Index Scan using cron_jobs_due_idx on cron_jobs
--         Index Cond: (next_run_at <= now())


select j.cron_id, j.project_id, j.name, j.url, j.queue, j.cron_expr, j.timezone, j.overlap_policy, j.max_runs,
  j.on_failure_webhook, j.retention_days, j.misfire_policy, j.misfire_window_seconds, j.state, j.next_run_at,
  j.run_count, j.dst_gap, j.dst_overlap, j.start_at, j.end_at, j.spread_seconds, j.jitter_seconds,
  j.accounted_until, j.expire_after_seconds, j.pause_after_failures,
  j.start_grace_seconds, j.finish_grace_seconds, j.ping_token, carillon_now() as now
from jsonb_to_recordset($1::jsonb) as wanted (cron_id uuid, next_run_at timestamptz)
join cron_jobs j on j.project_id = $2 and j.cron_id = any($3::uuid[])
  and j.cron_id = wanted.cron_id and j.next_run_at = wanted.next_run_at
where j.state = 'active' order by j.cron_id for no key update of j skip locked;

-- LockRows
--   ->  Sort
--         Sort Key: j.cron_id
--         ->  Hash Join
--               Hash Cond: ((wanted.cron_id = j.cron_id) AND (wanted.next_run_at = j.next_run_at))
--               ->  Function Scan on jsonb_to_recordset wanted
--               ->  Hash
--                     ->  Index Scan using cron_jobs_pkey on cron_jobs j
--                           Index Cond: ((project_id = $2) AND (cron_id = ANY ($3)))
--                           Filter: (state = 'active'::text)


select r.* from unnest($1::uuid[]) as job (cron_id)
-- Job by job: as one condition, a plan from a time when there were few runs reads all that there are now.
cross join lateral (
  select * from runs
  where project_id = $2 and cron_id = job.cron_id and state in ('pending', 'running', 'retrying')
  for no key update) r
order by r.fire_at, r.run_id;

-- Sort
--   Sort Key: r.fire_at, r.run_id
--   ->  Nested Loop
--         ->  Function Scan on unnest job
--         ->  Subquery Scan on r
--               ->  LockRows
--                     ->  Index Scan using runs_live_idx on runs
--                           Index Cond: ((project_id = $2) AND (cron_id = job.cron_id))
--                           Filter: (state = ANY ('{pending,running,retrying}'::text[]))


insert into runs (project_id, kind, cron_id, endpoint_id, state, trigger, fire_at, effective_at, run_at, start_by,
  waiting, error, cause, fire_count, fire_until, finished_at, expires_at)
select $1, 'cron', n.cron_id, carillon_endpoint_id(n.url), n.state, n.trigger, n.fire_at, n.effective_at,
  coalesce(n.effective_at, n.fire_at),
  case when n.trigger <> 'ping' or carillon_now() > n.fire_at + make_interval(secs => $2)
    then greatest(coalesce(n.effective_at, n.fire_at), carillon_now()) else n.fire_at
  end + make_interval(secs => n.start_within), n.waiting,
  n.error, n.cause, n.fire_count, n.fire_until,
  case when n.state <> 'pending' then carillon_now() end,
  case when n.state <> 'pending' then carillon_now() + make_interval(secs => n.kept_seconds) end
from jsonb_to_recordset($3::jsonb) as n (cron_id uuid, url text, state text, trigger text,
  fire_at timestamptz, effective_at timestamptz, waiting boolean, error text,
  cause text, fire_count int, fire_until timestamptz, kept_seconds float8, start_within float8)
on conflict do nothing returning *;

-- Insert on runs
--   Conflict Resolution: NOTHING
--   ->  Function Scan on jsonb_to_recordset n


insert into cron_watches (project_id, cron_id, fire_at, awaits, due_at, success_due_at)
select $1, w.cron_id, w.fire_at, case when w.start_due_at is null then 'success' else 'start' end,
  coalesce(w.start_due_at, w.success_due_at),
  case when w.start_due_at is not null then w.success_due_at end
from jsonb_to_recordset($2::jsonb)
  as w (cron_id uuid, fire_at timestamptz, start_due_at timestamptz, success_due_at timestamptz)
on conflict do nothing;

-- Insert on cron_watches
--   Conflict Resolution: NOTHING
--   ->  Function Scan on jsonb_to_recordset w


update cron_jobs j set accounted_until = m.accounted_until,
  -- A run that ended in this transaction may have paused the job.
  next_run_at = case when j.state = 'paused' then null else m.next_run_at end,
  state = case when j.state = 'paused' then j.state else m.state end,
  run_count = j.run_count + m.started
from jsonb_to_recordset($1::jsonb)
  as m (cron_id uuid, next_run_at timestamptz, state text, accounted_until timestamptz, started int)
-- The array leads to the rows by the primary key, whatever the planner expects of the project's jobs.
where j.project_id = $2 and j.cron_id = any($3::uuid[])
  and j.cron_id = m.cron_id;

-- Update on cron_jobs j
--   ->  Hash Join
--         Hash Cond: (m.cron_id = j.cron_id)
--         ->  Function Scan on jsonb_to_recordset m
--         ->  Hash
--               ->  Index Scan using cron_jobs_pkey on cron_jobs j
--                     Index Cond: ((project_id = $2) AND (cron_id = ANY ($3)))


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
