select set_config('enable_bitmapscan', 'off', true);

with walk as materialized (
      select m.* from messages m where m.project_id = $1 and m.source_queue_id = $2 and not m.acked
   and m.seq < $3::bigint and m.message_id > $4
      order by m.message_id limit $5
    ),
    wanted as materialized (
      select m.queue_id, m.message_id from walk m where true
   order by m.message_id
    ),
    picked as materialized (
      select m.project_id, m.queue_id, m.message_id from wanted found cross join lateral (
select m.* from messages m
where m.project_id = $6 and m.queue_id = found.queue_id and m.message_id = found.message_id limit 1 for update) m
      where m.source_queue_id = $7 and not m.acked and m.seq < $8::bigint
    ),
gone as (
  delete from messages m using picked
  where m.project_id = picked.project_id and m.queue_id = picked.queue_id and m.message_id = picked.message_id
  returning m.project_id, m.queue_id, m.message_id
),
bodies as (
  delete from message_bodies b using gone
  where b.project_id = gone.project_id and b.queue_id = gone.queue_id and b.message_id = gone.message_id
)
    select (select count(*)::int from gone) as purged,
           (select message_id from walk order by message_id desc limit 1) as last;
