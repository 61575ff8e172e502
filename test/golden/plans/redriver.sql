select "project_id", "redrive_id" from "redrives" where "state" = 'running' and "next_step_at" <= carillon_now() order by "next_step_at" limit $1;

-- Limit
--   ->  Index Scan using redrives_due_idx on redrives
--         Index Cond: (next_step_at <= now())


select ceil(extract(epoch from min(next_step_at) - carillon_now()) * 1000)::int as ms
from redrives where state = 'running';

-- Result
--   InitPlan 1
--     ->  Limit
--           ->  Index Only Scan using redrives_due_idx on redrives
