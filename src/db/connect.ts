import { createHash } from "node:crypto";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import type { Database, Db } from "./schema.ts";

export interface ConnectOptions {
  /** `postgres://…` */
  readonly url: string;
  /** Most connections of this node. Default 20. */
  readonly poolSize?: number;
  /** Longest that a statement may run, in milliseconds. Default 30 000. */
  readonly statementTimeoutMs?: number;
  /** Off where a pooler in transaction mode sits in between. Default on. */
  readonly preparedStatements?: boolean;
  /**
   * For a server whose clock is virtual, where little is stored and time goes from statement to statement: commits do not
   * wait for the disk, so that a crash of the server loses the newest of them, and statements are planned once, whatever their
   * values. Default off.
   */
  readonly simulation?: boolean;
  /** Told of an idle connection that broke; the pool replaces it. */
  readonly onError?: (error: Error) => void;
}

/**
 * Opens a pool. Connections are made when they are needed, so this neither waits nor fails.
 * `db.destroy()` closes it.
 */
export function connect(options: ConnectOptions): Db {
  const pool = new pg.Pool({
    connectionString: options.url,
    max: options.poolSize ?? 20,
    application_name: "carillon",
    connectionTimeoutMillis: 5_000,
    idleTimeoutMillis: 60_000,
    maxLifetimeSeconds: 3_600,
    keepAlive: true,
    statement_timeout: options.statementTimeoutMs ?? 30_000,
    // Longer than the server's own limit: it only ends what the server can no longer answer, and the connection with it.
    query_timeout: (options.statementTimeoutMs ?? 30_000) + 5_000,
    idle_in_transaction_session_timeout: 60_000,
    ...settingsOf(options),
  });
  pool.on("error", options.onError ?? (() => {}));
  // The pool listens to idle connections only. One that breaks in use fails its query, whose caller hears of it; without
  // a listener the event would end the process as well.
  const open = new Set<Promise<void>>();
  pool.on("connect", (client) => {
    client.on("error", () => {});
    const ended = new Promise<void>((resolve) => client.once("end", resolve));
    open.add(ended);
    void ended.then(() => open.delete(ended));
  });
  // The pool is done when it has asked its connections to close. A server that is stopped next would end those that are
  // not closed yet, and say so as if something had gone wrong.
  const end = async () => {
    await pool.end();
    await Promise.all(open);
  };
  return new Kysely<Database>({
    dialect: new PostgresDialect({ pool: { options: pool.options, connect: () => pool.connect(), end } }),
  });
}

/**
 * A prepared statement is planned when its tables may still be small, and keeps that plan while they grow. So the ways to read them
 * are left out that are good for small tables alone: as a whole, or all that an index finds, sorted. Where there is no other way, its
 * cost looks high enough to compile the statement, which is left out too (`docs/decisions/lasting-plans.md`).
 */
const LASTING_PLANS = "-c enable_seqscan=off -c enable_bitmapscan=off -c jit=off";
/** What `simulation` says. */
const SIMULATION = "-c synchronous_commit=off -c plan_cache_mode=force_generic_plan";

function settingsOf({ preparedStatements = true, simulation = false }: ConnectOptions): pg.PoolConfig {
  const settings = [...(preparedStatements ? [LASTING_PLANS] : []), ...(simulation ? [SIMULATION] : [])];
  return {
    ...(preparedStatements && { Client: PreparingClient }),
    ...(settings.length > 0 && { options: settings.join(" ") }),
  };
}

/** Most statements that one connection keeps prepared. Beyond it statements run unprepared, as correct but slower. */
const MAX_PREPARED = 300;
const names = new Map<string, string>();

function statementName(text: string): string | undefined {
  const known = names.get(text);
  if (known !== undefined || names.size >= MAX_PREPARED) return known;
  const name = `c_${createHash("sha1").update(text).digest("hex").slice(0, 20)}`;
  names.set(text, name);
  return name;
}

/** Names statements, so that the server plans them once for a connection. Kysely itself names none. */
class PreparingClient extends pg.Client {
  override query(...args: unknown[]): never {
    const [text, values] = args;
    const isPlanned = Array.isArray(values) && (values.length > 0 || /^\s*(select|with)\b/.test(`${text}`));
    if (typeof text === "string" && isPlanned && args.length === 2) {
      const name = statementName(text);
      if (name !== undefined) return super.query({ name, text, values }) as never;
    }
    return Reflect.apply(super.query, this, args) as never;
  }
}

const CONNECTION_FAULTS = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ENOENT",
  "EPIPE",
  "ETIMEDOUT",
  "ENOTFOUND",
  "EAI_AGAIN",
  "25P03", // idle_in_transaction_session_timeout
  "53300", // too_many_connections
  "57P01", // admin_shutdown
  "57P02", // crash_shutdown
  "57P03", // cannot_connect_now
]);

/**
 * Whether `error` says that the database could not be reached or went away, so that the outcome of a write is unknown.
 * Class 08 is PostgreSQL's own for connection exceptions; pg reports its own time-outs by message only.
 */
export function isConnectionFault(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  if (CONNECTION_FAULTS.has(code) || (code.startsWith("08") && code.length === 5)) return true;
  return /^(Connection terminated|Query read timeout|timeout exceeded when trying to connect|Client has encountered a connection error|Client was closed)/.test(
    error.message,
  );
}

/** The SQLSTATE of an error that PostgreSQL answered, or undefined. */
export function sqlState(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}
