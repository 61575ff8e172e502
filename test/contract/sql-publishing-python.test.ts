import { readFile } from "node:fs/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { consume } from "./calls.ts";
import { runChild } from "./clients/child.ts";
import { PYTHON } from "./clients/python-client.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

const PAGE = new URL("../../docs/transactional-enqueue.md", import.meta.url);

/** Runs what it reads, with a connection to the database as `conn`. */
const RUNNER = `
import sys, psycopg
from psycopg.types.json import Jsonb
conn = psycopg.connect(sys.argv[1], autocommit=True)
conn.execute("create table if not exists orders (id int primary key, total int)")
exec(sys.stdin.read())
`;

let world: TestWorld;
let example: string;
beforeAll(async () => {
  const { code } = await runChild(PYTHON, ["-c", "import psycopg"]);
  if (code !== 0) throw new Error(`${PYTHON} has no psycopg: install the Debian package python3-psycopg`);
  example = /```python\n(.*?)```/s.exec(await readFile(PAGE, "utf8"))?.[1] ?? "";
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

const run = (program: string) => runChild(PYTHON, ["-c", RUNNER, world.database.url], program);

const payloads = async () =>
  (await consume(world.carillon, "orders", { max_messages: 10 })).map(({ payload }: { payload: unknown }) => payload);

test("the documented Python example publishes with its transaction, once for its deduplication key", async () => {
  expect(example).toContain("carillon_publish");
  expect(await run(example)).toMatchObject({ code: 0, stderr: "" });
  expect(await run(`conn.execute("delete from orders")\n${example}`)).toMatchObject({ code: 0, stderr: "" });
  expect(await payloads()).toEqual([{ order_id: 123 }]);
});

test("the documented Python example publishes nothing when its transaction fails", async () => {
  const failing = example.replace('"order-123"', '"order-124"').replace(/\n*$/, "\n    raise RuntimeError('undone')\n");
  expect(await run(`conn.execute("delete from orders")\n${failing}`)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("undone"),
  });
  expect(await payloads()).toEqual([]);
});
