with gone as (
  delete from messages
  where project_id = $1 and queue_id = $2 and message_id = any(array(
    select message_id from messages
    where project_id = $3 and queue_id = $4 and message_id > $5
      and published_at <= carillon_now()
    order by message_id limit $6 for update))
  returning message_id
),
bodies as (
  delete from message_bodies
  where project_id = $7 and queue_id = $8
    and message_id in (select message_id from gone)
)
select count(*)::int as count, (select message_id from gone order by message_id desc limit 1) as last
from gone;
