import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";
import type { Scenario } from "../scope.ts";
import { figures } from "../verdict.ts";

/** From nothing, and from an existing data directory, to the first answered query. */
export const embeddedStart: Scenario = {
  name: "embedded-start",
  about: "the embedded PostgreSQL, from the call to the first answered query",
  async run(scope) {
    const rounds = await scope.alternate([
      {
        name: "embedded PostgreSQL",
        async measure() {
          const parent = await mkdtemp(join(tmpdir(), "carillon-bench-start-"));
          try {
            // As root PostgreSQL runs as another user, who has to pass this directory.
            await chmod(parent, 0o711);
            const cold = await timeToFirstQuery(join(parent, "pg"));
            const warm = await timeToFirstQuery(join(parent, "pg"));
            return { cold_ms: cold, warm_ms: warm };
          } finally {
            await rm(parent, { recursive: true, force: true });
          }
        },
      },
    ]);
    return {
      rounds,
      verdicts: [
        {
          goal: 8,
          what: "embedded PostgreSQL ready, first start",
          unit: "ms",
          bound: { atMost: 1_500 },
          values: figures(rounds, "embedded PostgreSQL", "cold_ms"),
        },
        {
          goal: 8,
          what: "embedded PostgreSQL ready, later start",
          unit: "ms",
          bound: { atMost: 200 },
          values: figures(rounds, "embedded PostgreSQL", "warm_ms"),
        },
      ],
    };
  },
};

async function timeToFirstQuery(dataDir: string): Promise<number> {
  const startedAt = performance.now();
  await using server = await startEmbeddedPostgres({ dataDir });
  const client = new pg.Client(server.url);
  await client.connect();
  await client.query("select 1");
  const ms = performance.now() - startedAt;
  await client.end();
  return ms;
}
