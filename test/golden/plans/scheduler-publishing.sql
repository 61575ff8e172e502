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


select cron_id, coalesce(octet_length(payload), 0) as bytes from cron_jobs
where project_id = $1 and cron_id = any($2::uuid[]);

-- Index Scan using cron_jobs_pkey on cron_jobs
--   Index Cond: ((project_id = $1) AND (cron_id = ANY ($2)))


with given as materialized (
  select g.*, r.fire_at, r.cron_id, coalesce(r.effective_at, r.fire_at) as effective_at
  from unnest($1::uuid[], $2::text[],
              $3::text[],
              $4::int[])
    as g (run_id, key, headers, kept_seconds)
  join runs r on r.project_id = $5 and r.run_id = any($6::uuid[]) and r.run_id = g.run_id
),
-- Each queue with its messages, in the order of the fires.
wanted as materialized (
  select q.queue_id, q.type = 'fifo' as fifo, q.enable_priority, q.message_retention_days, q.content_deduplication,
    q.deduplication_window_seconds, array_agg(m.run_id order by m.ord) as run_ids,
    array_agg(m.group_id order by m.ord) as group_ids, array_agg(m.priority order by m.ord) as priorities,
    array_agg(m.delay order by m.ord) as delays, array_agg(m.ttl_seconds order by m.ord) as ttls,
    array_agg(m.key order by m.ord) as keys, array_agg(m.payload order by m.ord) as payloads,
    array_agg(m.content_type order by m.ord) as content_types, array_agg(m.headers order by m.ord) as headers
  from (
    select given.run_id, given.key, c.queue, coalesce(c.group_id, '') as group_id, coalesce(c.priority, 0) as priority,
      c.ttl_seconds, coalesce(c.payload, '{}') as payload,
      case when c.payload is null then 'application/json' else c.content_type end as content_type,
      (c.headers || given.headers::jsonb || jsonb_build_object('carillon-lateness-ms',
        floor(extract(epoch from greatest(carillon_now() - given.effective_at, interval '0')) * 1000)::bigint::text
      ))::text as headers,
      greatest(ceil(extract(epoch from given.effective_at - carillon_now())), 0)::int as delay,
      row_number() over (order by given.fire_at, given.run_id) as ord
    from given join cron_jobs c on c.project_id = $7 and c.cron_id = any($8::uuid[])
      and c.cron_id = given.cron_id
  ) m
  join queues q on q.project_id = $9 and q.name = any($10) and q.name = m.queue
  group by q.queue_id, q.type, q.enable_priority, q.message_retention_days, q.content_deduplication,
    q.deduplication_window_seconds
),
published as materialized (
  select w.queue_id, w.run_ids[put.ord] as run_id, put.message_id, put.deduplicated
  from wanted w cross join lateral carillon_put_messages(
    $11, w.queue_id, w.fifo, case when w.enable_priority then $12::int else 0 end,
    w.message_retention_days, w.content_deduplication, w.deduplication_window_seconds, w.group_ids, w.priorities,
    w.delays, w.ttls, w.keys, w.payloads, w.content_types, w.headers
  ) with ordinality as put (message_id, deduplicated, ord)
),
counted as (
  insert into queue_history (project_id, queue_id, published)
  select $13, queue_id, count(*) from published where not deduplicated group by queue_id
)
update runs r set state = 'succeeded', message_id = p.message_id, error = null, response_status = null, waiting = false,
  parked = false, started_at = coalesce(r.started_at, carillon_now()), finished_at = carillon_now(),
  expires_at = carillon_now() + make_interval(secs => g.kept_seconds)
from published p join given g using (run_id)
where r.project_id = $14 and r.run_id = any($15::uuid[]) and r.run_id = p.run_id
returning r.*;

-- Update on runs r
--   CTE given
--     ->  Hash Join
--           Hash Cond: (r_1.run_id = g_1.run_id)
--           ->  Index Scan using runs_pkey on runs r_1
--                 Index Cond: ((project_id = $5) AND (run_id = ANY ($6)))
--           ->  Hash
--                 ->  Function Scan on g_1
--   CTE wanted
--     ->  GroupAggregate
--           Group Key: q.queue_id, q.type, q.enable_priority, q.message_retention_days, q.content_deduplication, q.deduplication_window_seconds
--           ->  Sort
--                 Sort Key: q.queue_id, q.type, q.enable_priority, q.message_retention_days, q.content_deduplication, q.deduplication_window_seconds, (row_number() OVER w1)
--                 ->  Nested Loop
--                       Join Filter: ((c.queue)::text = q.name)
--                       ->  WindowAgg
--                             Window: w1 AS (ORDER BY given.fire_at, given.run_id ROWS UNBOUNDED PRECEDING)
--                             ->  Sort
--                                   Sort Key: given.fire_at, given.run_id
--                                   ->  Merge Join
--                                         Merge Cond: (given.cron_id = c.cron_id)
--                                         ->  Sort
--                                               Sort Key: given.cron_id
--                                               ->  CTE Scan on given
--                                         ->  Index Scan using cron_jobs_pkey on cron_jobs c
--                                               Index Cond: ((project_id = $7) AND (cron_id = ANY ($8)))
--                       ->  Seq Scan on queues q
--                             Filter: ((project_id = $9) AND (name = ANY ($10)))
--   CTE published
--     ->  Nested Loop
--           ->  CTE Scan on wanted w
--           ->  Function Scan on carillon_put_messages put
--   CTE counted
--     ->  Insert on queue_history
--           ->  Subquery Scan on "*SELECT*"
--                 ->  HashAggregate
--                       Group Key: published.queue_id
--                       ->  CTE Scan on published
--                             Filter: (NOT deduplicated)
--   ->  Nested Loop
--         ->  Hash Join
--               Hash Cond: (p.run_id = g.run_id)
--               ->  CTE Scan on published p
--               ->  Hash
--                     ->  CTE Scan on given g
--         ->  Memoize
--               Cache Key: p.run_id
--               Cache Mode: logical
--               ->  Index Scan using runs_pkey on runs r
--                     Index Cond: ((project_id = $14) AND (run_id = p.run_id) AND (run_id = ANY ($15)))


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
