with gone as (
  delete from messages where ctid = any($1::tid[])
  returning project_id, queue_id, message_id, published_at
),
bodies as (delete from message_bodies where ctid = any(array(
select b.ctid from unnest($2::uuid[]) as gone (message_id)
cross join lateral (
  select ctid from message_bodies b
  where b.project_id = $3 and b.queue_id = $4 and b.message_id = gone.message_id
  limit 1) b)))
insert into acked_messages (project_id, queue_id, message_id, published_at, acked_at)
select project_id, queue_id, message_id, published_at, carillon_now() from gone
on conflict do nothing;
