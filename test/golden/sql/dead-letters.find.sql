select set_config('enable_bitmapscan', 'off', true);

with walk as materialized (
  select m.* from messages m where m.project_id = $1 and m.source_queue_id = $2 and not m.acked
 and m.seq < $3::bigint and (m.dead_lettered_at, m.seq) > ($4::timestamptz, $5::bigint)
  order by m.dead_lettered_at, m.seq limit $6
),
found as materialized (
  select m.queue_id, m.message_id, m.dead_lettered_at, m.seq from walk m where (m.lease_expires_at is null or m.lease_expires_at <= carillon_now()) and true
and m.dead_reason = $7
and m.group_id = $8
and strpos(coalesce(m.error, ''), $9) > 0
and exists (
        select from message_bodies b, jsonb_each_text(b.headers) header
        where b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id
          and (strpos(header.key, $10) > 0 or strpos(header.value, $11) > 0))
  order by m.dead_lettered_at, m.seq limit $12
),
edge as (select dead_lettered_at, seq from walk order by dead_lettered_at desc, seq desc limit 1)
select array(select queue_id from found order by dead_lettered_at, seq) as lane_ids,
       array(select message_id from found order by dead_lettered_at, seq) as message_ids,
       array(select seq from found order by dead_lettered_at, seq) as seqs,
       (select max(dead_lettered_at) from found) as found_at,
       (select count(*)::int from walk) as walked,
       (select dead_lettered_at from edge) as walked_at, (select seq from edge) as walked_seq;
