with attempt as (
  update run_attempts
  set finished_at = carillon_now(), response_status = $1, error = $2,
      duration_ms = $3, response_body = $4
  where project_id = $5 and run_id = $6 and attempt = $7
)
update runs
set state = $8, lease_token = null, lease_expires_at = null, response_status = $9,
    error = $10, run_at = carillon_now() + make_interval(secs => $11),
    finished_at = case when $12 = 'retrying' then null else carillon_now() end,
    expires_at = case when $13 = 'retrying' then null
                      else carillon_now() + make_interval(days => $14) end
where project_id = $15 and run_id = $16 and lease_token = $17;
