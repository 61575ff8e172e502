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

update "runs" set "state" = $1, "error" = $2, "lease_token" = $3, "lease_expires_at" = $4, "waiting" = $5, "parked" = $6, "finished_at" = carillon_now(), "expires_at" = carillon_now() + make_interval(secs => $7) where "project_id" = $8 and "run_id" = $9 and state = any($10) returning *;
