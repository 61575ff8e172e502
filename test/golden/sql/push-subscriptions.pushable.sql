with pushed as materialized (
    select q.*, row_number() over () as place from queues q
    where not q.paused and (q.project_id, q.queue_id) in (
      select s.project_id, s.queue_id from push_subscriptions s
      where not s.paused and not exists (
select from endpoints e
where e.project_id = s.project_id and e.endpoint_id = carillon_endpoint_id(s.url) and e.guarded
  and e.ready_at > carillon_now()) and (s.mode = 'fanout' or s.subscription_id <> all($1::uuid[])))
  ),
  lapsed as materialized (
    select l.place from (
      select array_agg(project_id order by place) as projects, array_agg(name order by place) as names,
             array_agg('-infinity'::timestamptz) as since
      from pushed
    ) all_pushed
    cross join lateral carillon_lapsed(projects, names, since) as l (place)
  )
  select q.*, s.subscriptions, s.fans_out from (
    select q.* from pushed q
    where coalesce(
        (select true from messages m
         where m.project_id = q.project_id and m.queue_id = q.queue_id and m.lease_expires_at is null
           and m.rank <= carillon_now() and m.visible_at <= carillon_now() and m.expires_at > carillon_now() limit 1),
        (select true from line_messages m
         where m.lane_id = q.lane_id and m.seq > carillon_line_cursor(q.lane_id) limit 1),
        (select true from lapsed where lapsed.place = q.place))
    order by row_number() over (partition by q.project_id order by random()), random() limit $2
  ) q
  cross join lateral (
    select json_agg(json_build_object(
'subscription_id', s.subscription_id, 'queue', q.name, 'url', s.url, 'mode', s.mode,
'headers', s.headers, 'body', s.body, 'batch_size', s.batch_size, 'batch_window_ms', s.batch_window_ms,
'max_retries', s.max_retries, 'backoff', s.backoff, 'visibility_timeout_seconds', s.visibility_timeout_seconds,
'timeout_seconds', s.timeout_seconds, 'max_concurrency', s.max_concurrency,
'group_failure_policy', s.group_failure_policy, 'dead_letter_queue_id', s.dead_letter_queue_id,
'signers',
  case when exists (
  select from signing_keys o where o.project_id = "s"."project_id" and o.owner_id = "s"."subscription_id" ) then (
  select coalesce(jsonb_agg(jsonb_build_object('projectId', k.project_id, 'ownerId', k.owner_id,
    'algorithm', k.algorithm, 'sealed', k.sealed) order by k.valid_until desc, k.key_id desc), '[]')
  from signing_keys k
  where k.project_id = "s"."project_id" and (k.valid_until is null or k.valid_until > carillon_now()) and
    k.owner_id in ("s"."subscription_id", "s"."project_id") and (k.owner_id = "s"."subscription_id" or k.algorithm = 'v1a'
      or not exists (
  select from signing_keys o where o.project_id = "s"."project_id" and o.owner_id = "s"."subscription_id" and o.algorithm = 'v1' and o.valid_until is null)))
  else (
  select coalesce(jsonb_agg(jsonb_build_object('projectId', k.project_id, 'ownerId', k.owner_id,
    'algorithm', k.algorithm, 'sealed', k.sealed) order by k.valid_until desc, k.key_id desc), '[]')
  from signing_keys k
  where k.project_id = "s"."project_id" and (k.valid_until is null or k.valid_until > carillon_now()) and k.owner_id = "s"."project_id") end) order by s.subscription_id) filter (where not s.paused and not exists (
select from endpoints e
where e.project_id = s.project_id and e.endpoint_id = carillon_endpoint_id(s.url) and e.guarded
  and e.ready_at > carillon_now())) as subscriptions,
           bool_or(s.mode = 'fanout') as fans_out
    from push_subscriptions s
    where s.project_id = q.project_id and s.queue_id = q.queue_id
  ) s where s.subscriptions is not null;
