import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { startEmbeddedPostgres } from "../src/db/embedded.ts";

/**
 * More memory and fewer checkpoints than PostgreSQL starts with; what decides about durability (fsync,
 * synchronous_commit, full_page_writes) stays at its defaults.
 */
const SETTINGS = {
  max_connections: "300",
  shared_buffers: "2GB",
  max_wal_size: "8GB",
  shared_preload_libraries: "pg_stat_statements",
};

/** The one server that every contestant uses which needs PostgreSQL. */
export interface DatabaseServer extends AsyncDisposable {
  readonly version: string;
  /** What `show` says of the settings that the figures depend on. */
  readonly settings: Readonly<Record<string, string>>;
  /** Makes an empty database, which is dropped when it is disposed. */
  createDatabase(name: string): Promise<BenchDatabase>;
}

export interface BenchDatabase extends AsyncDisposable {
  readonly url: string;
  /** Runs one statement on a connection of its own pool. */
  query<Row extends pg.QueryResultRow>(statement: string, values?: readonly unknown[]): Promise<Row[]>;
  /** A new connection, which the caller ends. */
  connect(): Promise<pg.Client>;
  /** Position in the write-ahead log of the server, in bytes. */
  walPosition(): Promise<number>;
}

/** Starts the embedded PostgreSQL in a temporary directory, or uses the server that `url` names. */
export async function openDatabaseServer(url: string | undefined): Promise<DatabaseServer> {
  await using cleanup = new AsyncDisposableStack();
  const serverUrl = url ?? (await startOwn(cleanup));
  const admin = new pg.Pool({ connectionString: serverUrl, max: 2 });
  admin.on("error", () => {});
  cleanup.defer(() => admin.end());
  const show = async (name: string): Promise<string> => (await admin.query(`show ${name}`)).rows[0][name];
  const version = await show("server_version");
  const settings: Record<string, string> = {};
  for (const name of ["fsync", "synchronous_commit", "full_page_writes", ...Object.keys(SETTINGS)]) {
    settings[name] = await show(name);
  }
  const owned = cleanup.move();
  let made = 0;
  return {
    version,
    settings,
    async createDatabase(name) {
      const database = `bench_${process.pid}_${++made}_${name.replace(/\W+/g, "_")}`;
      await admin.query(`create database ${database}`);
      return openDatabase(withDatabase(serverUrl, database), async () => {
        await admin.query(`drop database ${database} with (force)`);
      });
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function startOwn(cleanup: AsyncDisposableStack): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), "carillon-bench-"));
  cleanup.defer(() => rm(parent, { recursive: true, force: true }));
  // As root PostgreSQL runs as another user, who has to pass this directory.
  await chmod(parent, 0o711);
  const server = cleanup.use(await startEmbeddedPostgres({ dataDir: join(parent, "pg"), settings: SETTINGS }));
  return server.url;
}

function openDatabase(url: string, drop: () => Promise<void>): BenchDatabase {
  const pool = new pg.Pool({ connectionString: url, max: 4 });
  pool.on("error", () => {});
  const query = async <Row extends pg.QueryResultRow>(text: string, values: readonly unknown[] = []): Promise<Row[]> =>
    (await pool.query<Row>(text, [...values])).rows;
  return {
    url,
    query,
    async connect() {
      const client = new pg.Client(url);
      await client.connect();
      return client;
    },
    async walPosition() {
      const [row] = await query<{ bytes: string }>("select pg_current_wal_lsn() - '0/0'::pg_lsn as bytes");
      return Number(row?.bytes);
    },
    async [Symbol.asyncDispose]() {
      await pool.end();
      await drop();
    },
  };
}

function withDatabase(url: string, database: string): string {
  return url.replace(/^(postgres(?:ql)?:\/\/[^/]*\/)[^?]*/, `$1${database}`);
}
