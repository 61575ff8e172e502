select lease_token, coalesce(lease_expires_at > carillon_now(), false) as live, acked, failure_count, expiry_count
from messages
where project_id = $1 and queue_id = $2 and message_id = $3
for update;

select case
  when exists (select from acked_messages
               where project_id = $1 and queue_id = $2 and message_id = $3)
    then 'already_acked'
  when exists (select from messages
               where project_id = $4 and source_queue_id = $5 and message_id = $6)
    then 'dead_lettered'
  else 'not_found'
end as absence;
