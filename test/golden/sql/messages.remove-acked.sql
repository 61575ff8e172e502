with gone as (
  delete from messages
  where project_id = $1 and queue_id = $2 and message_id = any($3::uuid[])
  returning project_id, queue_id, message_id, published_at
),
bodies as (
  delete from message_bodies
  where project_id = $4 and queue_id = $5 and message_id = any($6::uuid[])
)
insert into acked_messages (project_id, queue_id, message_id, published_at, acked_at)
select project_id, queue_id, message_id, published_at, carillon_now() from gone
on conflict do nothing;
