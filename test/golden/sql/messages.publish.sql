with turn as (select 0 as seq),
input as materialized (
  select carillon_id() as message_id, carillon_now() + make_interval(secs => delay) as visible_at, given.*
  from unnest(
    $1::text[],
    $2::int[],
    $3::int[],
    $4::bytea[],
    $5::text[],
    $6::text[]
  ) with ordinality as given (group_id, priority, delay, payload, content_type, headers, ord)
),
stored as (
  insert into messages (project_id, queue_id, message_id, seq, group_id, priority, visible_at, rank, published_at, expires_at)
  select $7::uuid, $8::uuid, message_id, turn.seq + ord, group_id, priority, visible_at,
         visible_at - make_interval(mins => priority * $9::int), carillon_now(),
         visible_at + make_interval(days => $10::int)
  from input, turn
),
bodies as (
  insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers)
  select $11::uuid, $12::uuid, message_id, payload, content_type, headers::jsonb from input
)
select message_id from input order by ord;
