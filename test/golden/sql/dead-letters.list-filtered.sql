select set_config('enable_bitmapscan', 'off', true);

with walk as materialized (
  select m.* from messages m where m.project_id = $1 and m.source_queue_id = $2 and not m.acked
  order by m.dead_lettered_at desc, m.seq desc limit $3
),
wanted as materialized (
  select m.* from walk m where true
and m.dead_reason = $4
and m.group_id = $5
and strpos(coalesce(m.error, ''), $6) > 0
and exists (
        select from message_bodies b, jsonb_each_text(b.headers) header
        where b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id
          and (strpos(header.key, $7) > 0 or strpos(header.value, $8) > 0)) order by m.dead_lettered_at desc, m.seq desc limit $9
)
select m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
       m.return_count, m.expiry_count, m.published_at, m.visible_at, null as lease_token, null as lease_expires_at, m.error, m.dead_reason,
       m.dead_lettered_at, source.name as source_queue, m.seq,
       edge.walked, edge.dead_lettered_at as walked_at, edge.seq as walked_seq
from (
  select dead_lettered_at, seq, (count(*) over ())::int as walked from walk order by dead_lettered_at, seq limit 1
) edge
left join wanted m on true
left join message_bodies b
  on b.project_id = m.project_id and b.queue_id = m.queue_id and b.message_id = m.message_id
left join queues source on source.project_id = m.project_id and source.queue_id = m.source_queue_id
order by m.dead_lettered_at desc, m.seq desc;
