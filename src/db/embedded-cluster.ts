import { randomBytes } from "node:crypto";
import { chmod, lchown, mkdtemp, open, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Binaries } from "./embedded-binaries.ts";
import { EmbeddedPostgresError, systemErrorCode } from "./embedded-error.ts";
import { type Account, type DataPlaces, SCRATCH_PREFIX } from "./embedded-places.ts";
import { spawnGuarded, stopServer, within } from "./embedded-server.ts";

/** The superuser of every embedded cluster. */
export const CLUSTER_USER = "carillon";

const INITDB_MS = 120_000;

/**
 * Returns the password of the cluster in `places`, after making the cluster when there is none.
 *
 * The new cluster is made in a directory beside its place and appears by one rename when it is whole and flushed. What
 * a killed attempt left is deleted. The password is written before that rename, so no cluster is without one.
 *
 * @throws EmbeddedPostgresError when initdb fails, takes over two minutes, or the cluster's password is lost.
 */
export async function openCluster(
  places: DataPlaces,
  binaries: Binaries,
  account: Account,
  log: (line: string) => void,
): Promise<string> {
  await removeScratch(places.dataDir);
  if (await isDirectory(places.clusterDir)) return readPassword(places);

  const scratch = await mkdtemp(join(places.dataDir, SCRATCH_PREFIX));
  try {
    const password = randomBytes(24).toString("base64url");
    const passwordDraft = join(scratch, "password");
    await writeDurably(passwordDraft, password);
    await rename(passwordDraft, places.passwordFile);
    // initdb reads a copy of its own: the file that stays is never another account's.
    await writeDurably(passwordDraft, password);
    await giveTo(passwordDraft, account);
    await giveTo(scratch, account);

    const cluster = join(scratch, "cluster");
    await runInitdb(cluster, passwordDraft, binaries, account, log);
    await rename(cluster, places.clusterDir);
    await syncDirectory(places.dataDir);
    return password;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Hands a path that this process has just made to `account`. Follows no link; does nothing when that is us. */
export async function giveTo(path: string, account: Account): Promise<void> {
  if (account.uid === process.getuid?.()) return;
  try {
    await lchown(path, account.uid, account.gid);
  } catch (error) {
    throw new EmbeddedPostgresError(
      `${dirname(path)} cannot hold the data: its file system does not let root give files to ${account.name} ` +
        `(${systemErrorCode(error)}): name a directory on a local file system`,
      { cause: error },
    );
  }
}

async function runInitdb(
  cluster: string,
  passwordFile: string,
  binaries: Binaries,
  account: Account,
  log: (line: string) => void,
): Promise<void> {
  const initdb = await spawnGuarded(
    [
      binaries.initdb,
      `--pgdata=${cluster}`,
      `--username=${CLUSTER_USER}`,
      `--pwfile=${passwordFile}`,
      "--auth=scram-sha-256",
      "--encoding=UTF8",
      "--locale=C",
      "--data-checksums",
      "--no-instructions",
    ],
    binaries.libraryPath,
    account,
    log,
  );
  const ended = await within(initdb.exited, INITDB_MS);
  if (ended?.code === 0) return;
  if (ended === undefined) await stopServer(initdb);
  await within(initdb.closed, 500);
  const reason = ended === undefined ? `no end after ${INITDB_MS / 1000} s` : `${ended.signal ?? `exit ${ended.code}`}`;
  throw new EmbeddedPostgresError(
    `${basename(binaries.initdb)} failed (${reason}): ${initdb.lastLines.join(" | ")}: ` +
      "mend that, or set CARILLON_DATABASE_URL to a PostgreSQL of your own",
  );
}

async function readPassword({ passwordFile, dataDir }: DataPlaces): Promise<string> {
  try {
    const password = await readFile(passwordFile, "utf8");
    if (password !== "") return password;
  } catch (error) {
    if (systemErrorCode(error) !== "ENOENT") throw error;
  }
  throw new EmbeddedPostgresError(
    `${passwordFile} is missing and the data cannot be opened without it: restore that file, ` +
      `or delete ${dataDir} to start empty`,
  );
}

async function removeScratch(dataDir: string): Promise<void> {
  for (const name of await readdir(dataDir)) {
    if (!name.startsWith(SCRATCH_PREFIX)) continue;
    // Retried, because the initdb of a killed Carillon may still be writing there for a moment.
    await rm(join(dataDir, name), { recursive: true, force: true, maxRetries: 20, retryDelay: 20 });
  }
}

async function writeDurably(path: string, text: string): Promise<void> {
  await using file = await open(path, "wx", 0o600);
  await chmod(path, 0o600);
  await file.writeFile(text);
  await file.sync();
}

async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, "r");
  await directory.sync();
}

async function isDirectory(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
