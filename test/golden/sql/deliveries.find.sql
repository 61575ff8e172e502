with walk as materialized (
    select project_id, run_id, attempt, delivery_id, url, started_at, response_status, error from attempts
    where project_id = $1
      and delivery_id < $2::uuid
    order by delivery_id desc limit $3
  ),
  edge as (
    select (count(*) over ())::int as walked, delivery_id as walked_id, started_at as walked_at
    from walk order by delivery_id limit 1
  )
  select edge.*, found.run_id, found.delivery_id from edge left join (
    select a.run_id, a.delivery_id from walk a
join runs r on r.project_id = a.project_id and r.run_id = a.run_id
left join callbacks b on b.project_id = r.project_id and b.callback_id = r.callback_id where a.attempt = r.attempt and r.state in ('succeeded', 'failed', 'canceled') and true
  and starts_with(a.url, $4)
    order by a.delivery_id desc limit $5
  ) found on true order by found.delivery_id desc;
