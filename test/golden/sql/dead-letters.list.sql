select m.message_id, b.payload, b.content_type, b.headers, m.group_id, m.priority, m.receive_count, m.failure_count,
       m.return_count, m.expiry_count, m.published_at, m.visible_at, null as lease_token, null as lease_expires_at, m.error, m.dead_reason,
       m.dead_lettered_at, source.name as source_queue
from messages m
join message_bodies b using (project_id, queue_id, message_id)
left join queues source on source.project_id = m.project_id and source.queue_id = m.source_queue_id
where m.project_id = $1 and m.source_queue_id = $2 and not m.acked and (m.dead_lettered_at, m.message_id) < ($3::timestamptz, $4::uuid)
order by m.dead_lettered_at desc, m.message_id desc limit $5;
