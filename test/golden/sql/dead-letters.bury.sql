insert into queue_history (project_id, queue_id, "dead")
values ($1, $2, $3);

with turn as (select nextval('lane_turns') * 100000 as seq),
died as (
  delete from messages
  where project_id = $1 and queue_id = $2 and message_id = any($3::uuid[])
  returning *, coalesce($4::text, error) as last_error, date_trunc('milliseconds', carillon_now()) as died_at
),
bodies as (
  delete from message_bodies
  where project_id = $5 and queue_id = $6 and message_id = any($7::uuid[])
  returning *
),
buried as (
  insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                        error, published_at, expires_at, source_queue_id, dead_reason, dead_lettered_at)
  select project_id, $8::uuid, message_id, turn.seq + row_number() over (order by died.seq), group_id,
         carillon_now() - make_interval(mins => priority * $9::int), priority, carillon_now(), receive_count, last_error, published_at,
         carillon_now() + make_interval(days => $10), queue_id, $11, died_at
  from died, turn
)
insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
select bodies.project_id, $12::uuid, bodies.message_id, payload, content_type, headers,
  case when jsonb_array_length(deaths) >= $13::int then deaths - 1 else coalesce(deaths, '[]') end
  || jsonb_build_object('queue', $14::text, 'reason', $15::text, 'error', died.last_error,
       'died_at', died.died_at, 'attempts', died.receive_count, 'failures', died.failure_count + (died.lease_expires_at is not null)::int,
       'returns', died.return_count, 'expiries', died.expiry_count)
from bodies join died using (message_id);
