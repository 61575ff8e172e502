with fifo as materialized (
  select queue_id, name from queues where project_id = $1 and name = any($2) and type = 'fifo'
),
ours as materialized (
  select taken.queue_id from carillon_take_turns($3, array(select queue_id from fifo)) as taken (queue_id)
)
select name from fifo where queue_id not in (select queue_id from ours);
