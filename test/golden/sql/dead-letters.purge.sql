with walk as materialized (
    select m.* from messages m where m.project_id = $1 and m.source_queue_id = $2 and not m.acked
 and m.seq < $3::bigint and m.message_id > $4
    order by m.message_id limit $5
  ),
  gone as (
    delete from messages m
    where m.project_id = $6 and m.source_queue_id = $7 and m.message_id = any(array(
      select m.message_id from messages m
      where m.project_id = $8 and m.source_queue_id = $9 and not m.acked
 and m.seq < $10::bigint
        and m.message_id = any(array(select m.message_id from walk m where true
))
      order by m.message_id for update))
    returning m.project_id, m.queue_id, m.message_id
  ),
  bodies as (
    delete from message_bodies b using gone
    where b.project_id = gone.project_id and b.queue_id = gone.queue_id and b.message_id = gone.message_id
  )
  select (select count(*)::int from gone) as purged,
         (select message_id from walk order by message_id desc limit 1) as last;
