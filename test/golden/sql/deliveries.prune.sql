delete from run_attempts where ctid = any(array(
select ctid from run_attempts where started_at <= carillon_now() - make_interval(days => $1)
limit $2 for update skip locked));
