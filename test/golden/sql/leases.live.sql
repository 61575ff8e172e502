select m.lease_token, m.message_id from messages m where
m.project_id = $1 and m.queue_id = $2 and m.message_id = any($3::uuid[])
  and m.lease_token = any($4::uuid[]) and m.lease_expires_at > carillon_now() and not m.acked;
