import { migrate } from "../db/migrate.ts";
import { openDatabase } from "./open-database.ts";

/** `carillon migrate`: brings the schema up to date. Any number may run at once. */
export async function migrateCommand(): Promise<number> {
  await using database = await openDatabase();
  const applied = await migrate(database.db);
  console.log(applied.length === 0 ? "the schema is up to date" : `applied ${applied.join(", ")}`);
  return 0;
}
