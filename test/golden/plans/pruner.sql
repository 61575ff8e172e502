delete from redrives where ctid = any(array(
select ctid from redrives where finished_at <= carillon_now() - make_interval(days => $1)
limit $2 for update skip locked));

-- Delete on redrives
--   InitPlan 1
--     ->  Limit
--           ->  LockRows
--                 ->  Index Scan using redrives_expiry_idx on redrives redrives_1
--                       Index Cond: (finished_at <= (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--   ->  Tid Scan on redrives
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))


delete from replays where ctid = any(array(
select ctid from replays where finished_at <= carillon_now() - make_interval(days => $1)
limit $2 for update skip locked));

-- Delete on replays
--   InitPlan 1
--     ->  Limit
--           ->  LockRows
--                 ->  Index Scan using replays_end_idx on replays replays_1
--                       Index Cond: (finished_at <= (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--   ->  Tid Scan on replays
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))


delete from backfills where ctid = any(array(
select ctid from backfills where finished_at <= carillon_now() - make_interval(days => $1)
limit $2 for update skip locked));

-- Delete on backfills
--   InitPlan 1
--     ->  Limit
--           ->  LockRows
--                 ->  Index Scan using backfills_end_idx on backfills backfills_1
--                       Index Cond: (finished_at <= (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--   ->  Tid Scan on backfills
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))


delete from run_attempts where ctid = any(array(
select ctid from run_attempts where started_at <= carillon_now() - make_interval(days => $1)
limit $2 for update skip locked));

-- Delete on run_attempts
--   InitPlan 1
--     ->  Limit
--           ->  LockRows
--                 ->  Bitmap Heap Scan on run_attempts run_attempts_1
--                       Recheck Cond: (started_at <= (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--                       ->  Bitmap Index Scan on run_attempts_age_idx
--                             Index Cond: (started_at <= (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--   ->  Tid Scan on run_attempts
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))


update runs
set state = 'canceled', error = 'the message has left the queue', lease_token = null, lease_expires_at = null,
    finished_at = carillon_now(), expires_at = carillon_now() + make_interval(days => $1)
where ctid = any(array(
  select r.ctid from runs r
  where r.kind = 'push' and r.state in ('running', 'retrying')
    and (r.lease_expires_at is null or r.lease_expires_at <= carillon_now())
    and not exists (
      select from push_subscriptions s
      join queues q on q.project_id = s.project_id and q.queue_id = s.queue_id
      where s.project_id = r.project_id and s.subscription_id = r.subscription_id
        and (exists (select from messages m
                     where m.project_id = s.project_id and m.queue_id = s.queue_id and m.message_id = r.message_id)
             or exists (select from push_deliveries d
                        where d.project_id = s.project_id and d.subscription_id = s.subscription_id
                          and d.message_id = r.message_id)
             or carillon_line_holds(q.lane_id, r.message_id)))
  limit $2 for update skip locked));

-- Update on runs
--   InitPlan 5
--     ->  Limit
--           ->  LockRows
--                 ->  Nested Loop Anti Join
--                       Join Filter: ((s.project_id = r.project_id) AND (s.subscription_id = r.subscription_id) AND (EXISTS(SubPlan 1) OR EXISTS(SubPlan 3) OR carillon_line_holds(q.lane_id, r.message_id)))
--                       ->  Index Scan using runs_pushing_idx on runs r
--                             Filter: ((state = ANY ('{running,retrying}'::text[])) AND (kind = 'push'::text) AND ((lease_expires_at IS NULL) OR (lease_expires_at <= now())))
--                       ->  Nested Loop
--                             Join Filter: ((q.project_id = s.project_id) AND (q.queue_id = s.queue_id))
--                             ->  Seq Scan on push_subscriptions s
--                             ->  Seq Scan on queues q
--                       SubPlan 1
--                         ->  Seq Scan on messages m
--                               Filter: ((project_id = s.project_id) AND (queue_id = s.queue_id) AND (message_id = r.message_id))
--                       SubPlan 3
--                         ->  Seq Scan on push_deliveries d
--                               Filter: ((project_id = s.project_id) AND (subscription_id = s.subscription_id) AND (message_id = r.message_id))
--   ->  Tid Scan on runs
--         TID Cond: (ctid = ANY ((InitPlan 5).col1))


select "project_id", "cron_id", "retention_days" from "cron_jobs" where "retention_pending" = true limit $1 for no key update skip locked;

-- Limit
--   ->  LockRows
--         ->  Index Scan using cron_jobs_retention_idx on cron_jobs
--               Filter: retention_pending


with doomed as (
  delete from runs where ctid = any(array(
    select ctid from runs where expires_at <= carillon_now() order by expires_at limit $1
    for update skip locked))
  returning project_id, run_id, task_id, callback_id),
attempts as (
  delete from run_attempts a using doomed d where a.project_id = d.project_id and a.run_id = d.run_id),
pings as (
  delete from run_pings p using doomed d where p.project_id = d.project_id and p.run_id = d.run_id),
events as (
  delete from callbacks c using doomed d where c.project_id = d.project_id and c.callback_id = d.callback_id
    and not exists (
      select from runs r where r.project_id = c.project_id and r.callback_id = c.callback_id
        and r.run_id not in (select run_id from doomed)))
select project_id, task_id from doomed;

-- CTE Scan on doomed
--   CTE doomed
--     ->  Delete on runs runs_1
--           InitPlan 1
--             ->  Limit
--                   ->  LockRows
--                         ->  Index Scan using runs_expiry_idx on runs
--                               Index Cond: (expires_at <= now())
--           ->  Tid Scan on runs runs_1
--                 TID Cond: (ctid = ANY ((InitPlan 1).col1))
--   CTE attempts
--     ->  Delete on run_attempts a
--           ->  Nested Loop
--                 ->  CTE Scan on doomed d
--                 ->  Index Scan using run_attempts_pkey on run_attempts a
--                       Index Cond: ((project_id = d.project_id) AND (run_id = d.run_id))
--   CTE pings
--     ->  Delete on run_pings p
--           ->  Hash Join
--                 Hash Cond: ((d_1.project_id = p.project_id) AND (d_1.run_id = p.run_id))
--                 ->  CTE Scan on doomed d_1
--                 ->  Hash
--                       ->  Seq Scan on run_pings p
--   CTE events
--     ->  Delete on callbacks c
--           ->  Nested Loop Anti Join
--                 ->  Nested Loop
--                       ->  CTE Scan on doomed d_2
--                       ->  Memoize
--                             Cache Key: d_2.project_id, d_2.callback_id
--                             Cache Mode: logical
--                             ->  Index Scan using callbacks_pkey on callbacks c
--                                   Index Cond: ((project_id = d_2.project_id) AND (callback_id = d_2.callback_id))
--                 ->  Index Scan using runs_callback_idx on runs r
--                       Index Cond: ((project_id = c.project_id) AND (callback_id = c.callback_id))
--                       Filter: (NOT (ANY (run_id = (hashed SubPlan 5).col1)))
--                       SubPlan 5
--                         ->  CTE Scan on doomed doomed_1


delete from cron_jobs where ctid = any(array(
select j.ctid from cron_jobs j
where j.state = 'deleted' and j.deleted_at < carillon_now() - make_interval(days => $1)
  and not exists (select from runs r where r.project_id = j.project_id and r.cron_id = j.cron_id)
limit $2));

-- Delete on cron_jobs
--   InitPlan 1
--     ->  Limit
--           ->  Nested Loop Anti Join
--                 ->  Index Scan using cron_jobs_deleted_idx on cron_jobs j
--                       Index Cond: (deleted_at < (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--                 ->  Index Only Scan using runs_cron_idx on runs r
--                       Index Cond: ((project_id = j.project_id) AND (cron_id = j.cron_id))
--   ->  Tid Scan on cron_jobs
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))


delete from endpoints where ctid = any(array(
select ctid from endpoints
where used_at < carillon_now() - make_interval(days => $1)
  and state <> 'disabled' and max_concurrency is null and max_rate is null and parked_since is null
limit $2 for update skip locked));

-- Delete on endpoints
--   InitPlan 1
--     ->  Limit
--           ->  LockRows
--                 ->  Index Scan using endpoints_use_idx on endpoints endpoints_1
--                       Index Cond: (used_at < (now() - make_interval(0, 0, 0, $1, 0, 0, '0'::double precision)))
--                       Filter: ((max_concurrency IS NULL) AND (max_rate IS NULL) AND (parked_since IS NULL) AND (state <> 'disabled'::text))
--   ->  Tid Scan on endpoints
--         TID Cond: (ctid = ANY ((InitPlan 1).col1))
