import { type Kysely, sql } from "kysely";

/** Cron jobs that publish to a queue in place of a POST to a URL. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of STATEMENTS) await sql.raw(statement).execute(db);
}

const STATEMENTS = [
  // queue: by name, so that it may be made anew. The other columns are what its messages have; null where nobody said.
  `alter table cron_jobs
     alter column url drop not null,
     add queue text,
     add group_id text,
     add priority int,
     add ttl_seconds int,
     add constraint cron_job_has_one_target check ((url is null) <> (queue is null))`,

  // Takes the turns of publishers of FIFO queues, in the order of the ids, and returns those that it has. It waits once, and
  // for less time than PostgreSQL does before it looks for deadlocks, so that nobody else's transaction is ended for it.
  `create function carillon_take_turns(p_project uuid, p_queue_ids uuid[]) returns setof uuid
   language plpgsql set lock_timeout = '500ms' as $$
   declare
     wanted uuid;
     lane bigint;
     patient boolean := true;
   begin
     for wanted in select distinct id from unnest(p_queue_ids) as u (id) order by id loop
       lane := hashtextextended(p_project || '/' || wanted, 0);
       if pg_try_advisory_xact_lock(lane) then
         return next wanted;
       elsif patient then
         begin
           perform pg_advisory_xact_lock(lane);
           return next wanted;
         exception when lock_not_available then
           patient := false;
         end;
       end if;
     end loop;
   end $$`,
];
