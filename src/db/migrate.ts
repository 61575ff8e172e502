import { sql } from "kysely";
import { Migrator } from "kysely/migration";
import { MIGRATIONS } from "./migrations/index.ts";
import type { Db } from "./schema.ts";

/**
 * Brings the schema up to date and returns the names of the migrations that this call applied.
 *
 * Any number of nodes may call it at once: one migrates while the others wait. A database that a newer Carillon has
 * migrated is refused, because this one does not know what changed.
 *
 * @throws Error when a migration fails, the server is older than 15, or the database is newer than this program.
 */
export async function migrate(db: Db): Promise<string[]> {
  const { rows } = await sql<{ version: number }>`select current_setting('server_version_num')::int as version`.execute(
    db,
  );
  const version = rows[0]?.version ?? 0;
  if (version < 150_000)
    throw new Error(`PostgreSQL 15 or newer is needed; this server is ${Math.floor(version / 10_000)}`);

  const migrator = new Migrator({ db, provider: { getMigrations: async () => MIGRATIONS } });
  const applied = (await migrator.getMigrations()).length;
  const { error, results } = await migrator.migrateToLatest();
  if (error !== undefined) {
    if (error instanceof Error && /corrupted migrations|is missing/.test(error.message)) {
      throw new Error(`this database was migrated by a newer Carillon, which knows more than ${applied} migrations`, {
        cause: error,
      });
    }
    throw error;
  }
  return (results ?? []).filter((result) => result.status === "Success").map((result) => result.migrationName);
}
