import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Entry, Scope } from "./scope.ts";
import { findProgram, outputOf } from "./servers/processes.ts";

const DEBIAN = ["15", "16", "17", "18"].map((version) => `/usr/lib/postgresql/${version}/bin`);

/**
 * What PostgreSQL takes at most: pgbench inserting rows of the payload's size into a table with one key, a batch a
 * transaction. Undefined where there is no pgbench.
 */
export async function pgbenchRows(
  scope: Scope,
  { batch, width, seconds }: { readonly batch: number; readonly width: number; readonly seconds: number },
): Promise<Entry | undefined> {
  const program = await findProgram("pgbench", DEBIAN);
  if (program === undefined) {
    process.stderr.write("bench: skipped the limit of PostgreSQL: pgbench is not installed\n");
    return undefined;
  }
  const database = await scope.createDatabase("pgbench");
  await database.query(
    "create table rows (id bigint generated always as identity primary key, payload bytea not null)",
  );
  const dir = await mkdtemp(join(tmpdir(), "carillon-bench-pgbench-"));
  scope.use({ [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) });
  const script = join(dir, "insert.sql");
  await writeFile(
    script,
    `insert into rows (payload) select convert_to(repeat('x', 200), 'UTF8') from generate_series(1, ${batch});\n`,
  );
  const args = ["-n", "-M", "prepared", "-f", script, "-c", `${width}`, "-j", "1", "-T", `${seconds}`, database.url];
  return {
    name: "pgbench",
    async measure() {
      const output = await outputOf(program, args);
      await database.query("truncate rows");
      return { per_s: Number(/tps = ([\d.]+)/.exec(output)?.[1]) * batch };
    },
  };
}
