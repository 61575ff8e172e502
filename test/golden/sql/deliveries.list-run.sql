with walk as materialized (
    select project_id, run_id, attempt, delivery_id, url, started_at, response_status, error from attempts
    where project_id = $1 and run_id = $2
    order by delivery_id desc limit $3
  ),
  edge as (
    select (count(*) over ())::int as walked, delivery_id as walked_id, started_at as walked_at
    from walk order by delivery_id limit 1
  ),
  wanted as materialized (
    select a.delivery_id from walk a
join runs r on r.project_id = a.project_id and r.run_id = a.run_id
left join callbacks b on b.project_id = r.project_id and b.callback_id = r.callback_id where true
   order by a.delivery_id desc limit $4
  )
  select
a.project_id, a.run_id, a.attempt, a.delivery_id, a.url, a.started_at, a.finished_at, a.response_status, a.error,
a.duration_ms, a.dns_ms, a.connect_ms, a.tls_ms, a.first_byte_ms, a.request_headers, a.response_headers,
a.next_attempt_at, null::bytea as response_body,
r.kind, r.trigger, r.state, r.cron_id, r.task_id, r.message_id, r.replay_of,
coalesce(r.subscription_id, b.subscription_id) as subscription_id, b.webhook_id, edge.* from edge
  left join (wanted join attempts a on a.project_id = $5 and a.delivery_id = wanted.delivery_id
join runs r on r.project_id = a.project_id and r.run_id = a.run_id
left join callbacks b on b.project_id = r.project_id and b.callback_id = r.callback_id)
    on true
  order by a.delivery_id desc;
