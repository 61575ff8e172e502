select set_config('enable_bitmapscan', 'off', true);

with walk as materialized (
    select m.* from messages m where m.project_id = $1 and m.source_queue_id = $2 and not m.acked
and m.dead_lettered_at >= $3::timestamptz
  and m.message_id > $4
    order by m.message_id limit $5
  )
  select (select count(*)::int from walk m where (m.lease_expires_at is null or m.lease_expires_at <= carillon_now()) and true
) as found,
         (select message_id from walk order by message_id desc limit 1) as last;
