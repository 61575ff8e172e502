select held.*, acks.acked, held.published + acks.published as published,
  (select count(*)::int from messages
   where project_id = $1 and source_queue_id = $2) as dead
from (
  select
    count(*) filter (where (lease_expires_at is null or lease_expires_at <= carillon_now()) and not acked and expires_at > carillon_now() and visible_at <= carillon_now())::int as available,
    count(*) filter (where (lease_expires_at is null or lease_expires_at <= carillon_now()) and not acked and expires_at > carillon_now() and visible_at > carillon_now())::int as delayed,
    count(*) filter (where lease_expires_at > carillon_now() and not acked)::int as in_flight,
    extract(epoch from carillon_now() - min(published_at)
      filter (where (lease_expires_at is null or lease_expires_at <= carillon_now()) and not acked and expires_at > carillon_now() and visible_at <= carillon_now()))::int as oldest_age_seconds,
    count(*) filter (where published_at > carillon_now() - interval '60 seconds')::int as published
  from messages where project_id = $3 and queue_id = $4
) held, (
  select count(*)::int as acked,
         count(*) filter (where published_at > carillon_now() - interval '60 seconds')::int as published
  from acked_messages where project_id = $5 and queue_id = $6 and acked_at > carillon_now() - interval '60 seconds'
) acks;
