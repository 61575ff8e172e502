import { sql } from "kysely";
import { Migrator } from "kysely/migration";
import { MIGRATIONS } from "./migrations/index.ts";
import type { Db } from "./schema.ts";

/** Resolves when the database answers a query. */
export async function ping(db: Db): Promise<void> {
  await sql`select 1`.execute(db);
}

/** What of a server decides how far its word can be trusted. */
export interface ServerState {
  /** As the server names it: `18.4`. */
  readonly version: string;
  /** The major version. */
  readonly major: number;
  /** Whether it is a standby, which takes no writes. */
  readonly isStandby: boolean;
  /** `on` or `off`, as all three. */
  readonly fsync: string;
  readonly synchronousCommit: string;
  readonly fullPageWrites: string;
  /** Empty when commits wait for no standby. */
  readonly synchronousStandbys: string;
  /** Unix time of the server in milliseconds. */
  readonly nowMs: number;
}

export async function readServerState(db: Db): Promise<ServerState> {
  const { rows } = await sql<ServerState>`
    select
      current_setting('server_version') as version,
      current_setting('server_version_num')::int / 10000 as major,
      pg_is_in_recovery() as "isStandby",
      current_setting('fsync') as fsync,
      current_setting('synchronous_commit') as "synchronousCommit",
      current_setting('full_page_writes') as "fullPageWrites",
      current_setting('synchronous_standby_names') as "synchronousStandbys",
      (extract(epoch from clock_timestamp()) * 1000)::float8 as "nowMs"`.execute(db);
  const row = rows[0];
  if (row === undefined) throw new Error("the server told nothing of itself");
  return row;
}

/**
 * What an acknowledged write survives. `power-safe`: the loss of power. `crash-safe`: the end of the server process, not
 * of the machine. `not durable`: not even that for the newest writes.
 *
 * Source: PostgreSQL's documentation of fsync, full_page_writes and synchronous_commit (chapters "Write Ahead Log" and
 * "Asynchronous Commit"). Whether the disk keeps what it was told to flush is beyond what SQL can see.
 */
export type Durability = "power-safe" | "crash-safe" | "not durable";

export function durabilityOf(state: ServerState): Durability {
  if (state.synchronousCommit === "off") return "not durable";
  return state.fsync === "on" && state.fullPageWrites === "on" ? "power-safe" : "crash-safe";
}

/** The names of the migrations that the database lacks. Changes nothing. */
export async function pendingMigrations(db: Db): Promise<string[]> {
  const migrator = new Migrator({ db, provider: { getMigrations: async () => MIGRATIONS } });
  const migrations = await migrator.getMigrations();
  return migrations.filter(({ executedAt }) => executedAt === undefined).map(({ name }) => name);
}
