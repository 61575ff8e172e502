select carillon_push_turn($1);

select from messages
where project_id = $1 and queue_id = $2 and message_id = any($3::uuid[])
order by message_id for update;

select d.lease_token from push_deliveries d
where d.project_id = $1 and d.subscription_id = $2
  and d.message_id = any($3::uuid[])
  and d.lease_token = any($4::uuid[])
order by d.message_id for update;
