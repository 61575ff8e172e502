import { sql } from "kysely";
import { expect, test } from "vitest";
import { loadConfig } from "../../src/config.ts";
import { MIGRATIONS } from "../../src/db/migrations/index.ts";
import { createLogger } from "../../src/log.ts";
import { startCarillon } from "../../src/main.ts";
import { TEST_KEY } from "../support/carillon.ts";
import { must } from "./calls.ts";
import { emptyDatabase, storedPayloads } from "./database-tools.ts";

const NODES = 10;

test("ten nodes that start at once on an empty database all come up, and one of them migrates it", async () => {
  await using database = await emptyDatabase();
  const config = loadConfig(
    { CARILLON_PORT: "0", CARILLON_DATABASE_URL: database.url, CARILLON_API_KEY: TEST_KEY },
    { mode: "development" },
  );
  const lines: { msg: string; level: string }[] = [];
  const stream = { write: (line: string) => void lines.push(JSON.parse(line)) };
  const started = await Promise.allSettled(
    Array.from({ length: NODES }, () => startCarillon(config, createLogger({ level: "info", pretty: false, stream }))),
  );
  await using nodes = new AsyncDisposableStack();
  for (const result of started) if (result.status === "fulfilled") nodes.use(result.value);

  expect(started.filter(({ status }) => status === "rejected")).toEqual([]);
  expect(lines.filter(({ msg }) => msg === "the schema was brought up to date")).toHaveLength(1);
  expect(lines.filter(({ level }) => level === "error" || level === "fatal")).toEqual([]);
  const { rows } = await sql<{ name: string }>`select name from kysely_migration order by name`.execute(database.db);
  expect(rows.map(({ name }) => name)).toEqual(Object.keys(MIGRATIONS).sort());

  const urls = started.flatMap((node) =>
    node.status === "fulfilled" ? [`http://127.0.0.1:${node.value.address.port}`] : [],
  );
  const ids = await Promise.all(
    urls.map((url, n) => must(url, "POST", "/queue/publish", { queue: "orders", payload: { n } })),
  );
  expect(new Set(ids.map(({ message_id }) => message_id)).size).toBe(NODES);
  const counts = await sql`
    select (select count(*)::int from projects) as projects, (select count(*)::int from queues) as queues`.execute(
    database.db,
  );
  expect(counts.rows).toEqual([{ projects: 1, queues: 1 }]);
  expect((await storedPayloads(database.db)).length).toBe(NODES);
});
