with turn as (select nextval('lane_turns') * 100000 as seq),
died as (
  delete from messages
  where project_id = $1 and queue_id = $2 and message_id = any($3::uuid[])
  returning *
),
bodies as (
  delete from message_bodies
  where project_id = $4 and queue_id = $5 and message_id = any($6::uuid[])
  returning *
),
buried as (
  insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                        error, published_at, expires_at, source_queue_id, dead_reason, dead_lettered_at)
  select project_id, $7::uuid, message_id, turn.seq + row_number() over (order by died.seq), group_id,
         carillon_now() - make_interval(mins => priority * $8::int), priority, carillon_now(), receive_count, coalesce($9::text, error), published_at,
         carillon_now() + make_interval(days => $10), queue_id, $11, date_trunc('milliseconds', carillon_now())
  from died, turn
)
insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
select project_id, $12::uuid, message_id, payload, content_type, headers from bodies;
