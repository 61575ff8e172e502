import { randomUUID } from "node:crypto";
import { link, readFile, readlink, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { EmbeddedPostgresError, systemErrorCode } from "./embedded-error.ts";
import { identifyProcess, isRunning, type ProcessIdentity } from "./embedded-processes.ts";

/** What the holder of a data directory leaves for others to read. */
export interface LockRecord {
  /** Tells this hold from every other. */
  readonly token: string;
  readonly owner: ProcessIdentity;
  /** The host and pid namespace in which the pids mean something. */
  readonly realm: string;
  readonly server?: ProcessIdentity;
  /** A socket directory outside the data directory, to be removed when the hold ends. */
  readonly strayDir?: string;
}

/** The hold on a data directory. Disposing it gives the directory free. */
export interface DirectoryLock extends AsyncDisposable {
  /** What a dead holder left, when its hold was taken over. */
  readonly previous: LockRecord | undefined;
  /** Writes down what whoever finds this process dead has to end or remove. */
  record(remains: Pick<LockRecord, "server" | "strayDir">): Promise<void>;
}

const HEARTBEAT_MS = 2_000;

/**
 * Takes the hold on a data directory by making `lockFile`, or takes it over from a process that is dead.
 *
 * Whether a holder is alive is read from its pid and start time. A pid of another container or host says nothing here,
 * so then the holder's heartbeat (the file's modification time) is watched for three periods.
 *
 * @throws EmbeddedPostgresError naming the pid when a live process holds it.
 */
export async function acquireLock(lockFile: string, dataDir: string): Promise<DirectoryLock> {
  const owner = (await identifyProcess(process.pid)) ?? { pid: process.pid, start: "" };
  let mine: LockRecord = { token: randomUUID(), owner, realm: await currentRealm() };
  const previous = await takeFile(lockFile, mine, dataDir);

  const heartbeat = setInterval(() => {
    const now = new Date();
    utimes(lockFile, now, now).catch(() => {});
  }, HEARTBEAT_MS);
  heartbeat.unref();

  return {
    previous,
    async record(remains) {
      mine = { ...mine, ...remains };
      const draft = `${lockFile}.${mine.token}`;
      await writeFile(draft, JSON.stringify(mine), { flag: "wx", mode: 0o644 });
      await rename(draft, lockFile);
    },
    async [Symbol.asyncDispose]() {
      clearInterval(heartbeat);
      const text = await readFile(lockFile, "utf8").catch(ignoreMissing);
      if (text !== undefined && parseRecord(text)?.token === mine.token) await rm(lockFile, { force: true });
    },
  };
}

/**
 * Makes `path` hold `mine`, and returns the record of the dead holder that it replaced, if any.
 *
 * A stale file is replaced only while holding a second file, taken in the same way, and only if it still is that
 * file. So of several processes that find the same dead holder one comes after it and the others see that one.
 */
async function takeFile(path: string, mine: LockRecord, dataDir: string): Promise<LockRecord | undefined> {
  // Complete from its first moment: made under another name and then linked, which fails when the name is taken.
  const draft = `${path}.${mine.token}`;
  await writeFile(draft, JSON.stringify(mine), { flag: "wx", mode: 0o644 });
  try {
    while (!(await linkNew(draft, path))) {
      const text = await readFile(path, "utf8").catch(ignoreMissing);
      if (text === undefined) continue;
      const holder = parseRecord(text);
      if (holder !== undefined && (await isHeld(path, holder, mine.realm))) throw heldError(dataDir, holder);
      const takeover = `${path}.takeover`;
      await takeFile(takeover, mine, dataDir);
      try {
        if ((await readFile(path, "utf8").catch(ignoreMissing)) !== text) continue;
        await rename(draft, path);
        return holder;
      } finally {
        await rm(takeover, { force: true });
      }
    }
    return undefined;
  } finally {
    await rm(draft, { force: true });
  }
}

async function linkNew(draft: string, lockFile: string): Promise<boolean> {
  try {
    await link(draft, lockFile);
    return true;
  } catch (error) {
    if (systemErrorCode(error) === "EEXIST") return false;
    throw error;
  }
}

async function isHeld(lockFile: string, holder: LockRecord, realm: string): Promise<boolean> {
  if (holder.realm === realm) return isRunning(holder.owner);
  const before = await modifiedAt(lockFile);
  for (let waitedMs = 0; waitedMs < 3 * HEARTBEAT_MS; waitedMs += HEARTBEAT_MS / 4) {
    await delay(HEARTBEAT_MS / 4);
    const now = await modifiedAt(lockFile);
    if (now === undefined) return false;
    if (now !== before) return true;
  }
  return false;
}

async function modifiedAt(path: string): Promise<number | undefined> {
  return (await stat(path).catch(ignoreMissing))?.mtimeMs;
}

async function currentRealm(): Promise<string> {
  return `${hostname()} ${await readlink("/proc/self/ns/pid").catch(() => "")}`.trim();
}

/** Undefined for what is no record: a lock file cut short by a power failure is nobody's. */
function parseRecord(text: string): LockRecord | undefined {
  try {
    const record = JSON.parse(text) as LockRecord;
    return Number.isInteger(record?.owner?.pid) ? record : undefined;
  } catch {
    return undefined;
  }
}

function heldError(dataDir: string, { owner, realm }: LockRecord): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    `${dataDir} is in use by the Carillon with pid ${owner.pid} (${realm}): ` +
      `stop it, or name another data directory with CARILLON_DATA_DIR`,
  );
}

function ignoreMissing(error: unknown): undefined {
  if (systemErrorCode(error) !== "ENOENT") throw error;
  return undefined;
}
