with walk as materialized (
  select task_id from task_labels
  where project_id = $1 and name = $2 and value = $3 and task_id < $4::uuid
  order by task_id desc limit $5),
edge as (select (count(*) over ())::int as walked, task_id as walked_id from walk order by task_id limit 1)
select edge.*, found.task_id from edge left join (
  select t.task_id from tasks t where t.project_id = $6 and t.task_id = any(array(select task_id from walk)) and true
and t.state = any($7::text[])
and t.labels @> $8::jsonb
  order by t.task_id desc limit $9
) found on true order by found.task_id desc;
