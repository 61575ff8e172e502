import { sql } from "kysely";
import { expect, test } from "vitest";
import { connect } from "../../src/db/connect.ts";
import { dueRuns } from "../../src/store/runs-due.ts";
import { createJob, runWorld } from "../support/runs.ts";

/** More than PostgreSQL plans anew for their values, before it keeps a plan. */
const CALLS = 8;

test("a statement that was planned while tables were small reads none of them as a whole when they have grown", async () => {
  await using world = await runWorld();
  const { cronId } = await createJob(world);
  await world.cron.triggerCronJob({ cronId });
  await sql`
    insert into endpoints (project_id, endpoint_id, address) select project_id, carillon_id(), 'a' from projects`.execute(
    world.db,
  );
  await sql`analyze endpoints`.execute(world.db);
  await sql`analyze runs`.execute(world.db);
  await using db = connect({ url: world.database.url, poolSize: 1 });
  const look = () => dueRuns(db, { limit: 100, parkedLimit: 100 });
  for (let n = 0; n < CALLS; n++) await look();

  await sql`
    insert into endpoints (project_id, endpoint_id, address)
    select project_id, carillon_id(), 'b' from projects, generate_series(1, 5000)`.execute(world.db);
  await sql`
    insert into runs (project_id, kind, cron_id, endpoint_id, state, trigger, fire_at, run_at)
    select project_id, kind, cron_id, endpoint_id, state, trigger, fire_at + make_interval(secs => n), run_at
    from runs, generate_series(1, 5000) n`.execute(world.db);
  const rowsRead = async (): Promise<number> => {
    await sql`select pg_stat_force_next_flush()`.execute(db);
    const { rows } = await sql<{ read: number }>`
      select sum(seq_tup_read + idx_tup_fetch)::int as read from pg_stat_user_tables
      where relname in ('endpoints', 'runs')`.execute(db);
    return rows[0]?.read ?? expect.fail();
  };
  const before = await rowsRead();
  expect((await look()).runs).toHaveLength(100);
  expect((await rowsRead()) - before).toBeLessThan(1_000);
});
