with picked as materialized (select project_id, queue_id, message_id from messages
      where expires_at <= carillon_now() and (lease_expires_at is null or lease_expires_at <= carillon_now())
      limit $1 for update skip locked),
gone as (
  delete from messages m using picked
  where m.project_id = picked.project_id and m.queue_id = picked.queue_id and m.message_id = picked.message_id
  returning m.project_id, m.queue_id, m.message_id
),
bodies as (
  delete from message_bodies b using gone
  where b.project_id = gone.project_id and b.queue_id = gone.queue_id and b.message_id = gone.message_id
)
  select count(*)::int as count from gone;
