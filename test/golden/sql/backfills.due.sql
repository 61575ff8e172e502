select "project_id", "backfill_id" from "backfills" where "state" = 'running' and "next_step_at" <= carillon_now() order by "next_step_at" limit $1;
