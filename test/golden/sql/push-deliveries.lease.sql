with due as (
  select message_id, lease_token is not null as lapsed from push_deliveries
  where project_id = $1 and subscription_id = $2 and due_at <= carillon_now()
  order by due_at, seq limit $3 for update skip locked
),
leased as (
  update push_deliveries d
  set failure_count = d.failure_count + due.lapsed::int, lease_token = gen_random_uuid(),
      due_at = carillon_now() + make_interval(secs => $4)
  from due
  where d.project_id = $5 and d.subscription_id = $6 and d.message_id = due.message_id
  returning d.message_id, d.failure_count, d.lease_token, d.due_at as lease_expires_at, d.error, due.lapsed
)
select leased.*, m.group_id, m.seq, b.payload, b.content_type, b.headers, m.priority, m.receive_count, m.return_count, m.expiry_count,
       m.published_at, m.visible_at, null as dead_reason, null as dead_lettered_at, null as source_queue
from leased
join messages m on m.project_id = $7 and m.queue_id = $8 and m.message_id = leased.message_id
join message_bodies b on b.project_id = $9 and b.queue_id = $10 and b.message_id = leased.message_id
order by m.seq;
