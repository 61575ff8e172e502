import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { BenchDatabase } from "./database.ts";

/** Most statements that a profile lists. */
const MOST = 20;
/** Of a statement's text. */
const TEXT_LENGTH = 160;

let count = 0;

/**
 * Starts counting a database's statements. When the result is disposed, those that took the most time are written to
 * `statements-N.txt` in `dir`. The server has to have pg_stat_statements loaded.
 */
export async function profileStatements(database: BenchDatabase, dir: string): Promise<AsyncDisposable> {
  await mkdir(dir, { recursive: true });
  await database.query("create extension if not exists pg_stat_statements");
  const file = join(dir, `statements-${++count}.txt`);
  return {
    async [Symbol.asyncDispose]() {
      const rows = await database.query<{ line: string }>(
        `select format('%s ms  %s calls  %s ms each  %s', round(total_exec_time), calls,
                       round(mean_exec_time::numeric, 3), left(regexp_replace(query, '\\s+', ' ', 'g'), $1)) as line
         from pg_stat_statements s join pg_database d on d.oid = s.dbid
         where d.datname = current_database() order by total_exec_time desc limit $2`,
        [TEXT_LENGTH, MOST],
      );
      await writeFile(file, rows.map(({ line }) => `${line}\n`).join(""));
    },
  };
}

/**
 * Counts the statements of a database: by pg_stat_statements where the server has it loaded, or else its transactions,
 * of which a statement outside of a transaction is one.
 */
export async function statementCounter(database: BenchDatabase): Promise<() => Promise<number>> {
  const byStatement = `select coalesce(sum(calls), 0) as n from pg_stat_statements s
                       join pg_database d on d.oid = s.dbid where d.datname = current_database()`;
  const byTransaction =
    "select xact_commit + xact_rollback as n from pg_stat_database where datname = current_database()";
  const count = async (query: string): Promise<number> => Number((await database.query<{ n: string }>(query))[0]?.n);
  try {
    await database.query("create extension if not exists pg_stat_statements");
    await count(byStatement);
    return () => count(byStatement);
  } catch {
    return () => count(byTransaction);
  }
}
