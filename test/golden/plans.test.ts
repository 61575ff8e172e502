import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Database, Db } from "../../src/db/schema.ts";
import { Wakeups } from "../../src/db/wakeups.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { createEgress } from "../../src/webhook/post.ts";
import { createBackfiller } from "../../src/worker/backfiller.ts";
import { createDispatcher } from "../../src/worker/dispatcher.ts";
import { EndpointWatch } from "../../src/worker/endpoint-watch.ts";
import { createLookout } from "../../src/worker/lookout.ts";
import { prunerTick } from "../../src/worker/pruner.ts";
import { createRedriver } from "../../src/worker/redriver.ts";
import { createReplayer } from "../../src/worker/replayer.ts";
import { createRunReaper } from "../../src/worker/run-reaper.ts";
import { createScheduler } from "../../src/worker/scheduler.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { openSealed, signsWith } from "../support/signing.ts";
import { dedent } from "./statement-text.ts";

/**
 * How PostgreSQL answers what the workers of a node ask while nothing or next to nothing is due, on tables as they are after
 * months of use: a file for each worker. A node asks so day and night, so none of it may read a large table.
 */
const LARGE = [
  "cron_jobs",
  "cron_watches",
  "runs",
  "run_attempts",
  "backfills",
  "redrives",
  "replays",
  "endpoints",
  "tasks",
  "callbacks",
];
/** Which the files are of: others say the same in other words. */
const SHOWN_VERSION = 18;
const FILL_MS = 120_000;
const NEVER = new AbortController().signal;

let database: TestDatabase;
let pool: pg.Pool;
let major: number;

beforeAll(async () => {
  database = await testDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 1 });
  await fill(database.db);
  major = Math.floor(Number((await pool.query("show server_version_num")).rows[0].server_version_num) / 10_000);
}, FILL_MS);

afterAll(async () => {
  await pool?.end();
  await database?.[Symbol.asyncDispose]();
});

const workers: Record<string, (db: Db) => Promise<unknown>> = {
  lookout: async (db) => {
    await using wakeups = new Wakeups(database.url);
    await createLookout(db, wakeups)(NEVER);
  },
  scheduler: (db) => createScheduler({ db, onError: fail })(NEVER),
  dispatcher: async (db) => {
    await using egress = createEgress({ policy: { allowHttp: false, allowLoopback: true, allow: [] }, open: openSealed });
    await using watch = new EndpointWatch({ db, onFault: fail });
    await using dispatcher = createDispatcher({ db, egress, watch, onError: fail });
    await dispatcher.tick(NEVER);
  },
  "run-reaper": (db) => createRunReaper({ db })(NEVER),
  backfiller: (db) => createBackfiller({ db })(NEVER),
  replayer: (db) => createReplayer({ db })(NEVER),
  redriver: (db) => createRedriver({ db })(NEVER),
  pruner: (db) => prunerTick(db, NEVER),
  // The last, for then there is a run to send.
  "scheduler-firing": async (db) => {
    await makeOneDue();
    await createScheduler({ db, onError: fail })(NEVER);
  },
  "scheduler-publishing": async (db) => {
    await makeSomePublish();
    await createScheduler({ db, onError: fail })(NEVER);
  },
};

describe("the workers of an idle node read no large table, as the file shows:", () => {
  test.each(Object.entries(workers))("%s", async (name, tick) => {
    const asked = await statementsOf(tick);
    expect(asked.size).toBeGreaterThan(0);
    const shown: string[] = [];
    for (const [statement, values] of asked) {
      const plan = await planOf(statement, values, major >= 16);
      if (!plan.some((line) => LARGE.includes(/ on (\w+)/.exec(line)?.[1] ?? ""))) continue;
      shown.push(`${dedent(statement)};\n\n${plan.map((line) => `-- ${line}`).join("\n")}`);
      // The first plans of a connection are for the values, those that stay for any.
      for (const line of [...plan, ...(await planOf(statement, values, false))]) {
        const scanned = /Seq Scan on (\w+)/.exec(line)?.[1] ?? "";
        if (LARGE.includes(scanned)) expect.fail(`${scanned} is read as a whole:\n${shown.at(-1)}\n${line}`);
      }
    }
    if (major === SHOWN_VERSION) await expect(`${shown.join("\n\n\n")}\n`).toMatchFileSnapshot(`plans/${name}.sql`);
  });
});

/** What a tick sends, with the values that it sends first. */
async function statementsOf(tick: (db: Db) => Promise<unknown>): Promise<Map<string, readonly unknown[]>> {
  const statements = new Map<string, readonly unknown[]>();
  const db = new Kysely<Database>({
    dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: database.url, max: 2 }) }),
    log: ({ query }) => {
      if (/^\s*(select|with|insert|update|delete)\b/.test(query.sql) && !statements.has(query.sql))
        statements.set(query.sql, query.parameters);
    },
  });
  try {
    await tick(db);
  } finally {
    await db.destroy();
  }
  return statements;
}

async function planOf(statement: string, values: readonly unknown[], generic: boolean): Promise<string[]> {
  const { rows } = await (generic
    ? pool.query(`explain (generic_plan, costs off) ${statement}`)
    : pool.query(`explain (costs off) ${statement}`, [...values]));
  return rows.map((row) => row["QUERY PLAN"]);
}

function fail(error: unknown): never {
  throw error;
}

async function makeOneDue(): Promise<void> {
  await sql`
    update cron_jobs set next_run_at = date_trunc('second', now()), accounted_until = now() - interval '1 minute',
      overlap_policy = 'queue', start_grace_seconds = 60, expire_after_seconds = 60
    where ctid = (select ctid from cron_jobs where state = 'active' limit 1)`.execute(database.db);
}

async function makeSomePublish(): Promise<void> {
  await sql`insert into queues (project_id, name) select project_id, 'orders' from projects`.execute(database.db);
  await sql`
    update cron_jobs set next_run_at = date_trunc('second', now()), accounted_until = now() - interval '1 minute',
      url = null, queue = 'orders'
    where ctid = any(array(select ctid from cron_jobs where state = 'active' limit 3))`.execute(database.db);
}

/**
 * 100,000 jobs, some of which are paused, deleted or watched, their history, tasks and endpoints, nothing of which is due.
 */
async function fill(db: Db): Promise<void> {
  // As it is in production, and not to be moved.
  await sql`create or replace function carillon_now() returns timestamptz language sql stable parallel safe
            as $$ select now() $$`.execute(db);
  await ensureProject(db, "test", signsWith("a secret"));
  for (const statement of [
    `insert into endpoints (project_id, endpoint_id, address)
     select project_id, gen_random_uuid(), 'https://a.example/' || n from projects, generate_series(1, 10000) n`,
    `insert into cron_jobs (project_id, name, url, cron_expr, timezone, content_type, headers, retries, timeout_seconds,
       overlap_policy, misfire_policy, misfire_window_seconds, retention_days, state, next_run_at, deleted_at)
     select project_id, '', 'https://a.example/' || n, '@yearly', 'UTC', 'application/json', '{}', 3, 30, 'allow',
       'fire_once', 3600, 30, case when n % 50 = 0 then 'paused' when n % 51 = 0 then 'deleted' else 'active' end,
       case when n % 50 > 0 and n % 51 > 0 then now() + make_interval(hours => 2 + n % 8760) end,
       case when n % 51 = 0 then now() end
     from projects, generate_series(1, 100000) n`,
    `insert into runs (project_id, kind, cron_id, endpoint_id, state, trigger, fire_at, run_at, finished_at, expires_at)
     select project_id, 'cron', cron_id, carillon_endpoint_id(url), case when n % 9 > 0 then 'succeeded' else 'failed' end,
       'schedule', at, at, at, at + interval '30 days'
     from (select *, row_number() over () as n from cron_jobs limit 50000) as j,
       lateral (select now() - make_interval(mins => n::int % 10000) as at) as past`,
    `insert into run_attempts (project_id, run_id, attempt, url, started_at, finished_at)
     select project_id, run_id, 1, 'https://a.example/', fire_at, fire_at from runs order by fire_at`,
    `insert into runs (project_id, kind, cron_id, endpoint_id, state, trigger, fire_at, run_at, start_by)
     select project_id, 'cron', cron_id, carillon_endpoint_id(url), 'pending', 'manual', now(),
       now() + interval '1 hour', now() + interval '2 hours' from cron_jobs limit 1000`,
    `insert into cron_watches (project_id, cron_id, fire_at, awaits, due_at)
     select project_id, cron_id, now(), 'success', now() + interval '1 hour' from cron_jobs limit 20000`,
    `insert into backfills (project_id, cron_id, since, until, overlap_policy, matched, state, finished_at, next_step_at)
     select project_id, cron_id, now(), now(), 'allow', 1, case when n > 100 then 'succeeded' else 'running' end,
       case when n > 100 then now() end, now() + interval '1 hour'
     from (select *, row_number() over () as n from cron_jobs limit 10000) as j`,
    `insert into callbacks (project_id, url, body)
     select project_id, 'https://a.example/', '{}' from projects, generate_series(1, 10000) n`,
    `insert into runs (project_id, kind, callback_id, endpoint_id, state, trigger, fire_at, run_at, finished_at, expires_at)
     select project_id, 'callback', callback_id, carillon_endpoint_id(url), 'succeeded', 'message', now(), now(), now(),
       now() + interval '30 days' from callbacks`,
    `insert into redrives (project_id, queue_id, queue_name, to_queue_id, to_queue_name, filter, cut_seq, matched, state,
       finished_at)
     select project_id, gen_random_uuid(), '', project_id, '', '{}', 1, 1, 'succeeded', now()
     from projects, generate_series(1, 10000)`,
    `insert into replays (project_id, cut_id, filter, matched, state, finished_at)
     select project_id, project_id, '{}', 1, 'succeeded', now() from projects, generate_series(1, 10000)`,
    `insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state)
     select project_id, '', 'https://a.example/', 'application/json', '{}', 3, 30, now() + interval '1 day', 'scheduled'
     from projects, generate_series(1, 10000)`,
    `insert into runs (project_id, kind, task_id, endpoint_id, state, trigger, fire_at, run_at)
     select project_id, 'task', task_id, carillon_endpoint_id(url), 'pending', 'schedule', run_at, run_at from tasks`,
    "vacuum (analyze)",
  ]) {
    await sql.raw(statement).execute(db);
  }
}
