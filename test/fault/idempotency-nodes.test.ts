import { sql } from "kysely";
import { expect, test } from "vitest";
import { startTestCarillon } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { call, type Outcome } from "./calls.ts";

const CALLS = 50;
const KEYS = 4;

interface Write {
  readonly name: string;
  readonly path: string;
  /** The same for every call with one key; `n` tells keys apart. */
  readonly body: (n: number) => object;
  /** Another request under the same key. */
  readonly other: (n: number) => object;
  readonly table: string;
}

const RUN_AT = new Date(Date.now() + 86_400_000).toISOString();
const URL = "http://127.0.0.1:9/never";

const WRITES: readonly Write[] = [
  {
    name: "publish",
    path: "/queue/publish",
    body: (n) => ({ queue: "orders", payload: { n } }),
    other: (n) => ({ queue: "orders", payload: { n: -n - 1 } }),
    table: "messages",
  },
  {
    name: "schedule a task",
    path: "/task/schedule",
    body: (n) => ({ url: URL, run_at: RUN_AT, name: `task ${n}` }),
    other: () => ({ url: URL, run_at: RUN_AT, name: "another" }),
    table: "tasks",
  },
  {
    name: "create a cron job",
    path: "/cron/create",
    body: (n) => ({ url: URL, cron_expr: "0 0 1 1 *", name: `job ${n}` }),
    other: () => ({ url: URL, cron_expr: "0 0 1 1 *", name: "another" }),
    table: "cron_jobs",
  },
];

test.each(WRITES)(
  "$name: concurrent calls with one key on three nodes have one effect and one reply",
  async (write) => {
    await using database = await testDatabase();
    await using one = await startTestCarillon({}, database);
    await using two = await startTestCarillon({}, database);
    await using three = await startTestCarillon({}, database);
    const nodes = [one, two, three];

    for (let n = 0; n < KEYS; n++) {
      const key = `key ${n}`;
      const outcomes: Outcome[] = await Promise.all(
        Array.from({ length: CALLS }, (_, i) =>
          call(nodes[i % nodes.length]?.url ?? "", "POST", write.path, write.body(n), { key }),
        ),
      );
      const answered = outcomes.flatMap((outcome) => (outcome.kind === "ok" ? [outcome] : []));
      const refused = outcomes.filter((outcome) => outcome.kind !== "ok");
      expect(
        refused.filter((outcome) => outcome.kind !== "refused" || outcome.reason !== "IDEMPOTENCY_KEY_IN_USE"),
      ).toEqual([]);
      expect(new Set(answered.map(({ body }) => JSON.stringify(body))).size).toBe(1);
      const fresh = answered.filter(({ headers }) => headers.get("idempotency-replayed") !== "true");
      expect(fresh).toHaveLength(1);

      const reused = await call(two.url, "POST", write.path, write.other(n), { key });
      expect(reused).toMatchObject({ kind: "refused", status: 422, reason: "IDEMPOTENCY_KEY_REUSED" });
    }
    const { rows } = await sql<{ count: number }>`select count(*)::int as count from ${sql.table(write.table)}`.execute(
      database.db,
    );
    expect(rows[0]?.count).toBe(KEYS);
  },
);
