update messages m
  set lease_expires_at = null, lease_request = null, visible_at = least(m.visible_at, carillon_now()),
      return_count = m.return_count + 1
  where m.project_id = $1 and m.queue_id = $2 and m.message_id = any(array(
    select m.message_id from messages m where
m.project_id = $3 and m.queue_id = $4 and m.message_id = any($5::uuid[])
  and m.lease_token = any($6::uuid[]) and m.lease_expires_at > carillon_now() and not m.acked order by m.message_id for update));
