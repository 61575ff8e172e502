with run as (
  insert into runs (project_id, kind, subscription_id, message_id, state, trigger, fire_at, run_at, attempt,
                    lease_token, lease_expires_at, started_at)
  values ($1, 'push', $2, $3, 'running', 'message', carillon_now(), carillon_now(), 1,
          gen_random_uuid(), carillon_now() + make_interval(secs => $4), carillon_now())
  on conflict (project_id, subscription_id, message_id) where subscription_id is not null
  do update set state = 'running', attempt = runs.attempt + 1, finished_at = null, expires_at = null,
    lease_token = excluded.lease_token, lease_expires_at = excluded.lease_expires_at, error = null, response_status = null
  returning run_id, attempt, fire_at, lease_token
),
recorded as (
  insert into run_attempts (project_id, run_id, attempt, started_at, url)
  select $5, run_id, attempt, carillon_now(), $6 from run
)
select *, carillon_now() as started_at from run;
