with attempt as (
update run_attempts
set finished_at = carillon_now(), response_status = $1, error = $2,
    duration_ms = $3, dns_ms = $4, connect_ms = $5,
    tls_ms = $6, first_byte_ms = $7,
    request_headers = $8,
    response_headers = $9,
    response_body = $10, next_attempt_at = null
where project_id = $11 and run_id = $12 and attempt = $13)
update runs
set state = $14, lease_token = null, lease_expires_at = null, response_status = $15,
    error = $16, run_at = carillon_now() + make_interval(secs => $17),
    finished_at = case when $18 = 'retrying' then null else carillon_now() end,
    expires_at = case when $19 = 'retrying' then null
                      else carillon_now() + make_interval(days => $20) end
where project_id = $21 and run_id = $22 and lease_token = $23;
