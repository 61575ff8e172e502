with taken as (
  delete from lane_changes where ctid = any(array(
    select ctid from lane_changes limit $1 for update skip locked))
  returning *
),
counts as (
  insert into lane_counts as c (project_id, queue_id, waiting, leased, dead)
  select project_id, queue_id, sum(waiting), sum(leased), sum(dead) from taken
  group by project_id, queue_id order by project_id, queue_id
  on conflict (project_id, queue_id) do update
  set waiting = c.waiting + excluded.waiting, leased = c.leased + excluded.leased, dead = c.dead + excluded.dead
),
dues as (
  insert into lane_dues as d (project_id, queue_id, due_at, waiting)
  select project_id, queue_id, due_at, sum(waiting) from taken where due_at is not null
  group by project_id, queue_id, due_at order by project_id, queue_id, due_at
  on conflict (project_id, queue_id, due_at) do update set waiting = d.waiting + excluded.waiting
)
select count(*)::int as count from taken;
