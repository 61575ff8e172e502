import { type Config, dataHome } from "../config.ts";
import { connect, isConnectionFault } from "../db/connect.ts";
import { migrate } from "../db/migrate.ts";
import type { Db } from "../db/schema.ts";
import { ping } from "../db/server-state.ts";
import { joinStorage, keptFile } from "../db/storage.ts";
import { openVault, VAULT_FILE } from "../vault/keys.ts";
import type { Vault } from "../vault/vault.ts";
import { CommandError } from "./failure.ts";
import { loadCheckedConfig } from "./load-config.ts";

/** The database that a command works on: the configured one, or the embedded one, running or started for the command. */
export interface OpenDatabase extends AsyncDisposable {
  readonly db: Db;
  readonly config: Config;
  readonly dataDir: string | undefined;
  /** The vault of what is sealed in it. @throws Error with one line when there is no key, or one that cannot be used. */
  openVault(): Promise<Vault>;
}

/** @throws CommandError when the database cannot be reached. */
export async function openDatabase(): Promise<OpenDatabase> {
  const config = loadCheckedConfig("tool");
  await using cleanup = new AsyncDisposableStack();
  const storage = cleanup.use(
    await joinStorage({
      databaseUrl: config.databaseUrl?.reveal(),
      dataDir: config.dataDir,
      dataHome: dataHome(),
      virtualClock: config.virtualClock,
      log: () => {},
    }),
  );
  const db = connect({ url: storage.url, poolSize: 2, preparedStatements: config.preparedStatements });
  cleanup.defer(() => db.destroy());
  await ping(db).catch((error: unknown) => {
    if (!isConnectionFault(error)) throw error;
    throw new CommandError(`the database cannot be reached: ${(error as Error).message}`, { cause: error });
  });
  const owned = cleanup.move();
  return {
    db,
    config,
    dataDir: storage.dataDir,
    openVault: () => openVault(config, () => keptFile(storage.dataDir, dataHome(), VAULT_FILE)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** The database with the schema that this program knows. */
export async function openMigratedDatabase(): Promise<OpenDatabase> {
  const database = await openDatabase();
  try {
    await migrate(database.db);
  } catch (error) {
    await database[Symbol.asyncDispose]();
    throw error;
  }
  return database;
}
