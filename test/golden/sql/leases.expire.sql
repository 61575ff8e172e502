update messages m
set visible_at = m.lease_expires_at, lease_expires_at = null, lease_request = null,
    failure_count = m.failure_count + 1, expiry_count = m.expiry_count + 1
where m.project_id = $1 and m.queue_id = $2 and m.message_id = any(array(
  select m.message_id from messages m
  where m.project_id = $3 and m.queue_id = $4 and m.lease_expires_at <= carillon_now()
  order by m.lease_expires_at limit $5 for update skip locked))
returning m.message_id, m.ctid::text as place, m.failure_count, m.acked;
