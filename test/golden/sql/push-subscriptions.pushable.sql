select q.*, s.subscriptions from (
  select q.* from queues q
  where not q.paused and (q.project_id, q.queue_id) in (
      select s.project_id, s.queue_id from push_subscriptions s where not s.paused)
    and coalesce(
      (select true from messages m
       where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
         and m.rank <= carillon_now() and m.visible_at <= carillon_now() and m.expires_at > carillon_now() limit 1),
      (select true from messages m
       where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at <= carillon_now() limit 1),
      (select true from line_messages m
       where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
      (select true from line_claims c
       where not c.settled and c.expires_at <= carillon_now() and c.lane_id = q.lane_id limit 1))
  order by random() limit $1
) q
cross join lateral (
  select json_agg(json_build_object(
           'subscription_id', s.subscription_id, 'url', s.url, 'mode', s.mode,
           'max_retries', s.max_retries, 'visibility_timeout_seconds', s.visibility_timeout_seconds,
           'dead_letter_queue_id', s.dead_letter_queue_id,
           'secrets', case when s.previous_valid_until > carillon_now()
             then json_build_array(coalesce(s.secret, p.signing_secret), s.previous_secret)
             else json_build_array(coalesce(s.secret, p.signing_secret)) end) order by s.subscription_id) as subscriptions
  from push_subscriptions s join projects p using (project_id)
  where s.project_id = q.project_id and s.queue_id = q.queue_id and not s.paused
) s where s.subscriptions is not null;
