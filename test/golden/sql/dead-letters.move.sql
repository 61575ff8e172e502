select pg_advisory_xact_lock(hashtextextended($1, 0));

with turn as (select nextval('lane_turns') * 100000 as seq),
  picked as materialized (
    select m.project_id, m.queue_id, m.message_id
    from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as found (queue_id, message_id, seq)
    cross join lateral (
select m.* from messages m
where m.project_id = $4 and m.queue_id = found.queue_id and m.message_id = found.message_id limit 1 for update skip locked) m
    where m.seq = found.seq and m.source_queue_id = $5 and not m.acked and (m.lease_expires_at is null or m.lease_expires_at <= carillon_now())
  ),
  risen as (
    delete from messages m using picked
    where m.project_id = picked.project_id and m.queue_id = picked.queue_id and m.message_id = picked.message_id
    returning m.*
  ),
  bodies as (
    delete from message_bodies b using risen
    where b.project_id = risen.project_id and b.queue_id = risen.queue_id and b.message_id = risen.message_id
    returning b.*
  ),
  back as (
    insert into messages (project_id, queue_id, message_id, seq, group_id, rank, priority, visible_at, receive_count,
                          published_at, expires_at)
    select project_id, $6::uuid, message_id, turn.seq + row_number() over (order by dead_lettered_at, risen.seq),
           group_id, carillon_now() - make_interval(mins => priority * $7::int), priority, carillon_now(), receive_count, published_at,
           carillon_now() + make_interval(days => $8)
    from risen, turn
    returning message_id
  ),
  bodies_back as (
    insert into message_bodies (project_id, queue_id, message_id, payload, content_type, headers, deaths)
    select project_id, $9::uuid, message_id, payload, content_type, headers, deaths from bodies
  )
  select count(*)::int as count from back;
