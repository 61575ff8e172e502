select pg_advisory_xact_lock($1::bigint * 2 + 1);

with dropped as (
  select hi, lo, cardinality(open_seqs) as count from line_claims
  where lane_id = $1 and not settled order by hi for update
),
claims as (
  update line_claims c set open_seqs = '{}', settled = true, purged = true from dropped d
  where c.lane_id = $2 and c.hi = d.hi
),
gone as (
  delete from line_messages m using dropped d
  where m.lane_id = $3 and m.seq > d.lo and m.seq <= d.hi
)
select coalesce(sum(count), 0)::int as count from dropped;

select carillon_line_drop($1, carillon_now(), $2) as count;

select message_id, ctid::text as place from messages
where project_id = $1 and queue_id = $2 and message_id > $3
  and published_at <= carillon_now()
order by message_id limit $4 for update;

select subscription_id from push_subscriptions
where project_id = $1 and queue_id = $2;

select message_id, ctid::text as place from messages
where project_id = $1 and queue_id = $2 and message_id > $3
  and published_at <= carillon_now()
order by message_id limit $4 for update;
