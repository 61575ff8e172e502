insert into queue_history (project_id, queue_id, "dead")
values ($1, $2, $3);

with turn as (select nextval('lane_turns') * 100000 as seq),
gone as (
  delete from messages
  where project_id = $1 and queue_id = $2 and message_id = any($3::uuid[])
  returning *
),
died as (
  select gone.*, death.reason, coalesce(death.error, gone.error) as last_error,
         date_trunc('milliseconds', carillon_now()) as died_at
  from gone join unnest(
    $4::uuid[], $5::text[], $6::text[]
  ) as death (message_id, reason, error) using (message_id)
),
bodies as (
  delete from message_bodies
  where project_id = $7 and queue_id = $8 and message_id = any($9::uuid[])
  returning *
),
buried as (
  insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                        error, published_at, expires_at, source_queue_id, dead_reason, dead_lettered_at)
  select project_id, $10::uuid, message_id, turn.seq + row_number() over (order by died.seq), group_id,
         carillon_now() - make_interval(mins => priority * $11::int), priority, carillon_now(), receive_count, last_error, published_at,
         carillon_now() + make_interval(days => $12), queue_id, died.reason, died_at
  from died, turn
)
insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
select bodies.project_id, $13::uuid, bodies.message_id, payload, content_type, headers,
  case when jsonb_array_length(deaths) >= $14::int then deaths - 1 else coalesce(deaths, '[]') end
  || jsonb_build_object('queue', $15::text, 'reason', died.reason, 'error', died.last_error,
       'died_at', died.died_at, 'attempts', died.receive_count, 'failures', died.failure_count + (died.lease_expires_at is not null)::int,
       'returns', died.return_count, 'expiries', died.expiry_count)
from bodies join died using (message_id);

select w.webhook_id, w.url, w.event_types, carillon_now() as now
from (select 1) always left join (
  select webhook_id, url, event_types from event_webhooks where project_id = $1 and enabled
  for key share
) w on true;
