import { CompiledQuery, sql } from "kysely";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Db } from "../../src/db/schema.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { type TaskFilter, walkTasks } from "../../src/store/task-filter.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { signsWith } from "../support/signing.ts";

/** How PostgreSQL looks for tasks among many, as files, so that a reviewer sees when it reads more than it did. */
const TASKS = 30_000;
let database: TestDatabase;
let projectId: string;

beforeAll(async () => {
  database = await testDatabase();
  const { db } = database;
  projectId = (await ensureProject(db, "test", signsWith())).project_id;
  await sql`
    with made as (
      insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state, labels)
      select ${projectId}::uuid, '', 'https://a.example/', 'application/json', '{}', 3, 30, carillon_now(),
        case when n % 20 = 0 then 'scheduled' else 'succeeded' end,
        jsonb_build_object('tenant', 't' || n % 40, 'kind', 'mail')
      from generate_series(1, ${TASKS}::int) as n
      returning project_id, task_id, labels)
    insert into task_labels select project_id, e.key, e.value, task_id from made, jsonb_each_text(labels) e`.execute(db);
  await sql`analyze tasks, task_labels`.execute(db);
}, 60_000);
afterAll(() => database[Symbol.asyncDispose]());

const LABEL = { tenant: "t7" };
const walks: Record<string, TaskFilter> = {
  "tasks.walk-all": {},
  "tasks.walk-label": { labels: LABEL },
  "tasks.walk-labels-in-state": { labels: { ...LABEL, kind: "mail" }, states: ["scheduled"] },
  "tasks.walk-states": { states: ["scheduled", "retrying"] },
  "tasks.walk-times": { since: new Date(0), until: new Date(1) },
};

test.each(Object.entries(walks))("%s reads what the file says", async (name, filter) => {
  const plan = await planOf(database.db, (db) => walkTasks(db, projectId, filter, undefined, { find: 50, look: 5_000 }));
  await expect(plan).toMatchFileSnapshot(`plans/${name}.txt`);
});

/** The plan of the first statement that `send` makes. */
async function planOf(db: Db, send: (db: Db) => Promise<unknown>): Promise<string> {
  const statements: CompiledQuery[] = [];
  const noting = db.withPlugin({
    transformQuery: ({ node }) => {
      statements.push(db.getExecutor().compileQuery(node, { queryId: "plan" }));
      return node;
    },
    transformResult: async ({ result }) => result,
  });
  await send(noting);
  const [statement] = statements;
  if (statement === undefined) throw new Error("nothing was sent");
  const explain = CompiledQuery.raw(`explain (costs off) ${statement.sql}`, [...statement.parameters]);
  const { rows } = await db.executeQuery<{ "QUERY PLAN": string }>(explain);
  return `${rows.map((row) => row["QUERY PLAN"].replaceAll(projectId, "$project")).join("\n")}\n`;
}
