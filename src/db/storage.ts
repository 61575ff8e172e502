import { readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { connect } from "./connect.ts";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "./embedded.ts";
import { systemErrorCode } from "./embedded-error.ts";
import { defaultDataDir } from "./embedded-places.ts";
import { ping } from "./server-state.ts";

/** The PostgreSQL of this process. Disposing it stops the server if this process started it. */
export interface Storage extends AsyncDisposable {
  readonly url: string;
  /** The data directory of the embedded server; undefined with a server of the operator's. */
  readonly dataDir: string | undefined;
  /** Resolves when an embedded server that this process started has ended, wanted or not; else it never does. */
  readonly ended: Promise<unknown>;
}

export interface StorageOptions {
  /** The operator's server; undefined for the embedded one. */
  readonly databaseUrl: string | undefined;
  readonly dataDir: string | undefined;
  /** The value of XDG_DATA_HOME. */
  readonly dataHome: string | undefined;
  /** Whether the data is that of a virtual clock, which has a directory of its own where none is named. */
  readonly virtualClock: boolean;
  /** Takes the embedded server's output, line by line. */
  readonly log: (line: string) => void;
}

/** Where the process that runs the embedded server says how to reach it. 0600, as the URL holds the password. */
const URL_FILE = "carillon.url";

/** Opens the operator's database, or starts the embedded server. @throws EmbeddedPostgresError */
export async function openStorage(options: StorageOptions): Promise<Storage> {
  if (options.databaseUrl !== undefined) return operatorsServer(options.databaseUrl);
  const server = await startEmbeddedPostgres({
    log: options.log,
    dataDir: await dataDirOf(options),
  });
  const urlFile = join(server.dataDir, URL_FILE);
  try {
    await writeFile(urlFile, server.url, { mode: 0o600 });
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return embedded(server, urlFile);
}

/**
 * As openStorage, but joins the embedded server of a Carillon that runs on the data directory, where there is one. For
 * commands that are called beside it.
 */
export async function joinStorage(options: StorageOptions): Promise<Storage> {
  return (await findStorage(options)) ?? openStorage(options);
}

/** The operator's database, or an embedded server that runs already; undefined when one would have to be started. */
export async function findStorage(options: StorageOptions): Promise<Storage | undefined> {
  if (options.databaseUrl !== undefined) return operatorsServer(options.databaseUrl);
  const dataDir = await dataDirOf(options);
  const url = await readFile(join(dataDir, URL_FILE), "utf8").catch((error: unknown) => {
    if (systemErrorCode(error) !== "ENOENT" && systemErrorCode(error) !== "ENOTDIR") throw error;
    return undefined;
  });
  // The file outlives a process that was killed.
  if (url !== undefined && (await answers(url))) return { ...operatorsServer(url), dataDir };
  return undefined;
}

/**
 * A file that development mode keeps for its next start: in the data directory or, with a server of the operator's, where
 * this user's Carillon keeps its own.
 */
export async function keptFile(
  dataDir: string | undefined,
  dataHome: string | undefined,
  name: string,
): Promise<string> {
  return join(dataDir ?? dirname(await defaultDataDir(dataHome)), name);
}

async function dataDirOf({ dataDir, dataHome, virtualClock }: StorageOptions): Promise<string> {
  return dataDir ?? `${await defaultDataDir(dataHome)}${virtualClock ? "-virtual" : ""}`;
}

function operatorsServer(url: string): Storage {
  return { url, dataDir: undefined, ended: new Promise(() => {}), async [Symbol.asyncDispose]() {} };
}

function embedded(server: EmbeddedPostgres, urlFile: string): Storage {
  return {
    url: server.url,
    dataDir: server.dataDir,
    ended: server.exited,
    async [Symbol.asyncDispose]() {
      await rm(urlFile, { force: true });
      await server[Symbol.asyncDispose]();
    },
  };
}

async function answers(url: string): Promise<boolean> {
  const db = connect({ url, poolSize: 1 });
  try {
    await ping(db);
    return true;
  } catch {
    return false;
  } finally {
    await db.destroy();
  }
}
