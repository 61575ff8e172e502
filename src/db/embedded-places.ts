import { constants } from "node:fs";
import { access, chmod, mkdir, readdir, readFile, realpath, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { EmbeddedPostgresError, systemErrorCode } from "./embedded-error.ts";

/** The user that initdb and postgres run as. */
export interface Account {
  readonly uid: number;
  readonly gid: number;
  readonly name: string;
}

/** What lies in a data directory. The names are ours alone, so that no other program's files are taken for them. */
export interface DataPlaces {
  readonly dataDir: string;
  /** PostgreSQL's own directory. It appears by one rename, so it is whole or absent. */
  readonly clusterDir: string;
  /** 0600 and ours: as root not even PostgreSQL's account reads it. */
  readonly passwordFile: string;
  readonly lockFile: string;
  readonly socketDir: string;
  readonly linksDir: string;
}

/** Clusters in the making are called this and a random end. */
export const SCRATCH_PREFIX = "pg-init-";

const NAMES = {
  clusterDir: "pg-cluster",
  passwordFile: "carillon.password",
  lockFile: "carillon.lock",
  socketDir: "pg-socket",
  linksDir: "pg-lib",
} as const;

/** True when this process is root, which PostgreSQL refuses to run as. False where there are no such users. */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/** The paths in `dataDir`. Touches nothing. */
function dataPlaces(dataDir: string): DataPlaces {
  return {
    dataDir,
    clusterDir: join(dataDir, NAMES.clusterDir),
    passwordFile: join(dataDir, NAMES.passwordFile),
    lockFile: join(dataDir, NAMES.lockFile),
    socketDir: join(dataDir, NAMES.socketDir),
    linksDir: join(dataDir, NAMES.linksDir),
  };
}

/**
 * The data directory when the operator named none: one for each user, outside any checkout, so that deleting or
 * reinstalling a checkout does not lose the data. A second Carillon that comes to the same one is refused, loudly.
 *
 * @param dataHome the value of XDG_DATA_HOME. A relative one is ignored, as its specification asks.
 */
export async function defaultDataDir(dataHome?: string): Promise<string> {
  if (!isRoot()) {
    const home = dataHome !== undefined && isAbsolute(dataHome) ? dataHome : join(homedir(), ".local/share");
    return join(home, "carillon/postgres");
  }
  // Not under /tmp or /var/tmp: cleaners delete there what has not been read for some weeks, file by file.
  const candidates = ["/var/lib", "/usr/local/var", "/opt"];
  for (const parent of candidates) {
    if (await isWritable(parent)) return join(parent, "carillon/postgres");
  }
  throw new EmbeddedPostgresError(
    `none of ${candidates.join(", ")} can be written to: name a data directory with CARILLON_DATA_DIR`,
  );
}

/**
 * Decides who runs PostgreSQL: this user, or as root somebody else.
 *
 * As root an existing cluster keeps its owner. A new one goes to the first of the accounts `carillon`, `postgres` and
 * `nobody` that exists. It has to be one of /etc/passwd: initdb looks its own uid up there and fails otherwise.
 *
 * @throws EmbeddedPostgresError when the cluster belongs to somebody who cannot run it.
 */
async function chooseAccount(clusterDir: string): Promise<Account> {
  const owner = await stat(clusterDir).catch(ignoreMissing);
  const accounts = isRoot() || owner !== undefined ? await readAccounts() : [];
  if (!isRoot()) {
    const uid = process.getuid?.() ?? -1;
    if (owner !== undefined && owner.uid !== uid) {
      const name = accounts.find((account) => account.uid === owner.uid)?.name ?? `uid ${owner.uid}`;
      throw new EmbeddedPostgresError(
        `${clusterDir} belongs to ${name}: run Carillon as that user or name another data directory`,
      );
    }
    return { uid, gid: process.getgid?.() ?? -1, name: `uid ${uid}` };
  }
  if (owner !== undefined) {
    const account = accounts.find(({ uid }) => uid === owner.uid);
    if (account === undefined || account.uid === 0) {
      throw new EmbeddedPostgresError(
        `${clusterDir} belongs to uid ${owner.uid}, and PostgreSQL runs neither as root nor as an unknown user: ` +
          `give it back to its owner (chown -R), or name another data directory`,
      );
    }
    return account;
  }
  for (const name of ["carillon", "postgres", "nobody"]) {
    const account = accounts.find((candidate) => candidate.name === name && candidate.uid !== 0);
    if (account !== undefined) return account;
  }
  throw new EmbeddedPostgresError(
    "PostgreSQL does not run as root and there is no account for it: add a system user named carillon",
  );
}

async function readAccounts(): Promise<Account[]> {
  const text = await readFile("/etc/passwd", "utf8");
  return text.split("\n").flatMap((line) => {
    const [name, , uid, gid] = line.split(":");
    return name && uid && gid ? [{ name, uid: Number(uid), gid: Number(gid) }] : [];
  });
}

/**
 * Makes the data directory, or checks the one that is there, and returns its real path. What exists is never given
 * other modes, another owner or other content.
 *
 * @throws EmbeddedPostgresError with the reason and what to do when it cannot hold a cluster run by `account`.
 */
export async function openDataDir(named: string, majorVersion: string): Promise<DataPlaces & { account: Account }> {
  const wanted = resolve(named);
  const account = await chooseAccount(dataPlaces(wanted).clusterDir).catch(explainAccess(wanted));
  // Checked before anything is made, so that a refused name leaves no empty directories behind.
  const closed = await closedAncestor(wanted, account);
  if (closed !== undefined) throw closedError(wanted, closed, account);
  await makeDirs(wanted).catch(explainAccess(wanted));

  const places = dataPlaces(await realpath(wanted));
  const entries = await readdir(places.dataDir).catch(explainAccess(wanted));
  const version = await readFile(join(places.clusterDir, "PG_VERSION"), "utf8").catch(ignoreMissing);
  if (version !== undefined && version.trim() !== majorVersion) {
    throw new EmbeddedPostgresError(
      `${wanted} holds data of PostgreSQL ${version.trim()} and this Carillon brings ${majorVersion}: ` +
        `dump it with the Carillon that wrote it and restore it into a new data directory`,
    );
  }
  if (version === undefined) assertOurs(wanted, entries);
  await access(places.dataDir, constants.W_OK | constants.X_OK).catch(explainAccess(wanted));
  return { ...places, account };
}

function assertOurs(dataDir: string, entries: readonly string[]): void {
  if (entries.includes("PG_VERSION")) {
    throw new EmbeddedPostgresError(
      `${dataDir} is a PostgreSQL data directory that Carillon did not make: ` +
        `run that server yourself and set CARILLON_DATABASE_URL, or name an empty directory`,
    );
  }
  if (entries.includes(NAMES.clusterDir)) {
    throw new EmbeddedPostgresError(
      `${join(dataDir, NAMES.clusterDir)} has no file PG_VERSION, so it is not a whole cluster: ` +
        `restore it from a backup, or name an empty directory`,
    );
  }
  // A file system of its own starts with lost+found; the rest is what a killed first start leaves.
  const known: readonly string[] = [...Object.values(NAMES), "lost+found"];
  const foreign = entries.find(
    (name) => !known.includes(name) && !name.startsWith(SCRATCH_PREFIX) && !name.startsWith(`${NAMES.lockFile}.`),
  );
  if (foreign !== undefined) {
    throw new EmbeddedPostgresError(
      `${dataDir} is not empty (${foreign}) and holds no data of Carillon: name an empty or a new directory`,
    );
  }
}

/**
 * The first directory on the way to `path`, itself included, that `account` may not enter, or undefined.
 * Follows symbolic links; what does not exist yet is passed over. Only the mode bits are read: access lists that
 * allow more are not seen.
 */
export async function closedAncestor(path: string, account: Account): Promise<string | undefined> {
  const parent = dirname(path);
  if (parent !== path) {
    const closed = await closedAncestor(parent, account);
    if (closed !== undefined) return closed;
  }
  const real = await realpath(path).catch(ignoreMissing);
  if (real === undefined) return undefined;
  if (real !== path) return closedAncestor(real, account);
  const found = await stat(path);
  return found.isDirectory() && !allows(found, account, 0o1) ? path : undefined;
}

/** True when the mode bits let `account` read the file. Its directories are not looked at. */
export async function mayRead(path: string, account: Account): Promise<boolean> {
  return allows(await stat(path), account, 0o4);
}

function allows(
  found: { readonly mode: number; readonly uid: number; readonly gid: number },
  account: Account,
  bit: number,
): boolean {
  if (account.uid === found.uid) return (found.mode & (bit << 6)) !== 0;
  if (account.gid === found.gid || (process.getuid?.() === account.uid && process.getgroups?.().includes(found.gid))) {
    return (found.mode & (bit << 3)) !== 0;
  }
  return (found.mode & bit) !== 0;
}

/** Makes `path` and what is missing above it, enterable by PostgreSQL's account. The secrets in it close themselves. */
async function makeDirs(path: string): Promise<void> {
  const found = await stat(path).catch(ignoreMissing);
  if (found?.isDirectory()) return;
  if (found !== undefined) {
    throw new EmbeddedPostgresError(`${path} is not a directory: name another data directory`);
  }
  await makeDirs(dirname(path));
  try {
    await mkdir(path);
  } catch (error) {
    if (systemErrorCode(error) !== "EEXIST") throw error;
    return;
  }
  // Root's umask may be narrower than PostgreSQL's account can pass. Listing stays with the owner.
  await chmod(path, isRoot() ? 0o711 : 0o700);
}

function closedError(dataDir: string, closed: string, account: Account): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    `${dataDir} cannot be the data directory: PostgreSQL runs as ${account.name} (uid ${account.uid}), ` +
      `who may not enter ${closed}: name another directory, or allow it with chmod o+x ${closed}`,
  );
}

function explainAccess(dataDir: string): (error: unknown) => never {
  return (error) => {
    const code = systemErrorCode(error);
    if (error instanceof EmbeddedPostgresError || code === undefined) throw error;
    const reason = { EACCES: "no permission", EPERM: "no permission", EROFS: "the file system is read-only" }[code];
    throw new EmbeddedPostgresError(
      `${dataDir} cannot be the data directory: it cannot be written to (${reason ?? code}): ` +
        `name another one with CARILLON_DATA_DIR`,
      { cause: error },
    );
  };
}

async function isWritable(dir: string): Promise<boolean> {
  return access(dir, constants.W_OK).then(
    () => true,
    () => false,
  );
}

function ignoreMissing(error: unknown): undefined {
  const code = systemErrorCode(error);
  if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
  return undefined;
}
