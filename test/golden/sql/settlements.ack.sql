select m.message_id, m.ctid::text as place, m.lease_token, coalesce(m.lease_expires_at > carillon_now(), false) as live,
       m.acked, m.failure_count, m.expiry_count
from messages m
where m.project_id = $1 and m.queue_id = $2 and m.message_id = any($3::uuid[])
order by m.message_id for update;

select u.message_id, coalesce(
  (select 'already_acked' from acked_messages a
   where a.project_id = $1 and a.queue_id = $2 and a.message_id = u.message_id limit 1),
  (select 'dead_lettered' from messages m
   where m.project_id = $3 and m.source_queue_id = $4
     and m.message_id = u.message_id limit 1)) as absence
from unnest($5::uuid[]) as u (message_id);
