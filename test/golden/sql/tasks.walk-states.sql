with walk as materialized (
  select of_state.task_id from unnest($1::text[]) as wanted (state) cross join lateral (
    select task_id from tasks where project_id = $2 and state = wanted.state and task_id < $3::uuid
    order by task_id desc limit $4) of_state
  order by of_state.task_id desc limit $5),
edge as (select (count(*) over ())::int as walked, task_id as walked_id from walk order by task_id limit 1)
select edge.*, found.task_id from edge left join (
  select t.task_id from tasks t where t.project_id = $6 and t.task_id = any(array(select task_id from walk)) and true
and t.state = any($7::text[])
and t.run_at >= $8::timestamptz
and t.run_at < $9::timestamptz
  order by t.task_id desc limit $10
) found on true order by found.task_id desc;
