import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findBinaryPackage, prepareBinaries, readBinaryPackage } from "./embedded-binaries.ts";
import { CLUSTER_USER, giveTo, openCluster } from "./embedded-cluster.ts";
import { acquireLock, type DirectoryLock } from "./embedded-lock.ts";
import { type Account, closedAncestor, type DataPlaces, defaultDataDir, openDataDir } from "./embedded-places.ts";
import { identifyProcess } from "./embedded-processes.ts";
import { type ProcessExit, spawnGuarded, stopServer, waitForOldServer, waitUntilReady } from "./embedded-server.ts";

/** A PostgreSQL server that belongs to this process. Disposing it stops the server and never hangs. */
export interface EmbeddedPostgres extends AsyncDisposable {
  /** The address of the database, with its password: a Unix socket, as the `host` parameter that pg and libpq read. */
  readonly url: string;
  /** The directory with everything that the server keeps. Deleting it while nothing runs starts anew. */
  readonly dataDir: string;
  /** Resolves when the server has ended, wanted or not. Never rejects. */
  readonly exited: Promise<ProcessExit>;
}

export interface EmbeddedOptions {
  /** The data directory that the operator named; it is made when missing. Default: one for each user. */
  readonly dataDir?: string;
  /** The value of XDG_DATA_HOME, for the default directory of an ordinary user. */
  readonly dataHome?: string;
  /** Takes the output of PostgreSQL's programs, line by line. */
  readonly log?: (line: string) => void;
  /** More server settings, by name. They win over ours. */
  readonly settings?: Readonly<Record<string, string>>;
  /** The directory of the binary package. Default: the installed one of this platform. */
  readonly packageDir?: string;
  /** Where a copy of the binaries may lie when PostgreSQL's account cannot read the package, best first. */
  readonly cachePlaces?: readonly string[];
}

/** sun_path of unix(7) holds 108 bytes with the closing zero; macOS has 104. */
const SOCKET_PATH_MAX_BYTES = process.platform === "darwin" ? 103 : 107;
const SOCKET_NAME = ".s.PGSQL.5432";

/** Durability (fsync, synchronous_commit, full_page_writes) stays at PostgreSQL's safe defaults. */
const SETTINGS = {
  listen_addresses: "",
  port: "5432",
  unix_socket_permissions: "0700",
  max_connections: "100",
  shared_buffers: "128MB",
  timezone: "UTC",
  log_timezone: "UTC",
  // The log that the lines go to has its own clock.
  log_line_prefix: "[%p] ",
};

/**
 * Starts the PostgreSQL that npm brought, on a directory of its own, and resolves when it takes connections.
 *
 * Works as root, where the server runs as an unprivileged account. Makes the cluster at the first start. After a crash
 * of Carillon it waits up to 30 s for the old server, which stops by itself, then takes its place.
 *
 * @throws EmbeddedPostgresError with one line for the operator: no binaries for this platform, a directory that
 * cannot hold the data, another Carillon that has it, a server that does not start.
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const log = options.log ?? (() => {});
  const source = await (options.packageDir === undefined ? findBinaryPackage() : readBinaryPackage(options.packageDir));
  const named = options.dataDir ?? (await defaultDataDir(options.dataHome));
  const { account, ...places } = await openDataDir(named, source.majorVersion);

  await using cleanup = new AsyncDisposableStack();
  const lock = cleanup.use(await acquireLock(places.lockFile, places.dataDir));
  const strayDir = lock.previous?.strayDir;
  await waitForOldServer(places.clusterDir, lock.previous?.server);
  if (strayDir !== undefined) await rm(strayDir, { recursive: true, force: true });

  const binaries = await prepareBinaries(source, account, places.linksDir, options.cachePlaces);
  const password = await openCluster(places, binaries, account, log);
  const socketDir = await makeSocketDir(places, account, lock);
  cleanup.defer(() => rm(socketDir, { recursive: true, force: true }));

  const settings = Object.entries({ ...SETTINGS, unix_socket_directories: socketDir, ...options.settings });
  const command = [
    binaries.postgres,
    "-D",
    places.clusterDir,
    ...settings.map(([name, value]) => `--${name}=${value}`),
  ];
  const server = await spawnGuarded(command, binaries.libraryPath, account, log);
  cleanup.defer(async () => {
    await stopServer(server);
  });
  const identity = await identifyProcess(server.child.pid);
  if (identity !== undefined) await lock.record({ server: identity });
  await waitUntilReady(server, places.clusterDir);

  const owned = cleanup.move();
  let disposed: Promise<void> | undefined;
  return {
    url: `postgres://${CLUSTER_USER}:${password}@localhost/postgres?host=${encodeURIComponent(socketDir)}`,
    dataDir: places.dataDir,
    exited: server.exited,
    [Symbol.asyncDispose]() {
      disposed ??= owned.disposeAsync();
      return disposed;
    },
  };
}

/** Makes the directory of the socket: in the data directory, or a short one where that path is too long. */
async function makeSocketDir(places: DataPlaces, account: Account, lock: DirectoryLock): Promise<string> {
  const fits = (dir: string) => Buffer.byteLength(join(dir, SOCKET_NAME)) <= SOCKET_PATH_MAX_BYTES;
  if (fits(places.socketDir)) {
    await rm(places.socketDir, { recursive: true, force: true });
    await mkdir(places.socketDir, { mode: 0o700 });
    await giveTo(places.socketDir, account);
    return places.socketDir;
  }
  const isUsable = fits(join(tmpdir(), "carillon-XXXXXX")) && (await closedAncestor(tmpdir(), account)) === undefined;
  const parent = isUsable ? tmpdir() : "/tmp";
  const socketDir = await mkdtemp(join(parent, "carillon-"));
  await lock.record({ strayDir: socketDir });
  await giveTo(socketDir, account);
  return socketDir;
}
