select pg_advisory_xact_lock_shared(carillon_plain_lock($1));

with m as (
    update messages m
    set lease_token = gen_random_uuid(),
        lease_expires_at = carillon_now() + make_interval(secs => $1),
        lease_request = nullif($2, ''),
        receive_count = receive_count + 1
    where m.project_id = $3 and m.queue_id = $4 and m.message_id = any(array(
      select m.message_id from messages m
      where m.project_id = $5 and m.queue_id = $6 and m.lease_expires_at is null and m.visible_at <= carillon_now()
        and m.expires_at > carillon_now() and m.rank <= carillon_now()
        and not exists (select from queues q where q.project_id = $7 and q.queue_id = $8
                        and (q.grouped or q.metered))
      order by m.rank, m.seq limit $9 for update of m skip locked))
    returning m.*
  )
  select
m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
m.return_count, m.expiry_count, m.published_at, m.visible_at, m.lease_token, m.lease_expires_at, m.error, m.dead_reason, m.dead_lettered_at,
null as source_queue from m join message_bodies b using (project_id, queue_id, message_id)
  order by m.rank, m.seq;
