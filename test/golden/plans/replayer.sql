select "project_id", "replay_id" from "replays" where "state" = 'running' and "next_step_at" <= carillon_now() order by "next_step_at" limit $1;

-- Limit
--   ->  Index Scan using replays_due_idx on replays
--         Index Cond: (next_step_at <= now())


select ceil(extract(epoch from min(next_step_at) - carillon_now()) * 1000)::int as ms
from replays where state = 'running';

-- Result
--   InitPlan 1
--     ->  Limit
--           ->  Index Only Scan using replays_due_idx on replays
