import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { EmbeddedPostgresError, systemErrorCode } from "./embedded-error.ts";
import type { Account } from "./embedded-places.ts";
import { identifyProcess, isRunning, type ProcessIdentity, processesIn } from "./embedded-processes.ts";

/** How a process ended: by itself with a code, or by a signal. */
export interface ProcessExit {
  readonly code: number | null;
  readonly signal: string | null;
}

/** A running child that does not outlive us. */
export interface GuardedProcess {
  readonly child: ChildProcess & { readonly pid: number };
  readonly exited: Promise<ProcessExit>;
  /** Resolves when its error output has ended, which is at or after its exit. */
  readonly closed: Promise<void>;
  /** The newest lines of its error output, oldest first, for messages. At most 20. */
  readonly lastLines: readonly string[];
}

/** A clean end writes a checkpoint. */
const STOP_MS = 30_000;
const QUIT_MS = 5_000;
const KILL_MS = 5_000;
/** Children of a killed server can keep its error output open, so its end is not waited for longer. */
const LAST_LINES_MS = 500;
/** Recovery after a crash replays up to max_wal_size (1 GB) of log and cannot be hurried. */
const READY_MS = 300_000;

/**
 * The first argument holds the library directories, the rest is the command.
 *
 * The shell becomes the command, so the child's pid, signals and exit are the command's own. Before that it leaves a
 * watcher, which reads the pipe that we hold open: a word means that the command has ended, an end without a word that
 * we have died, however that happened. Then it stops the command: fast, at once, by force. The watcher is orphaned
 * by its subshell, because PostgreSQL takes the death of a child that it does not know for a crash.
 *
 * The loader's variables are set here and not by our spawn, since macOS strips them from what starts /bin/sh.
 */
const GUARD = `
export LD_LIBRARY_PATH="$1" DYLD_LIBRARY_PATH="$1"; shift
exec 3<&0 </dev/null
( (
  trap '' TERM HUP
  read -r word <&3 && exit
  for signal in INT QUIT KILL; do
    kill -$signal $$
    tenths=0
    while [ $tenths -lt ${STOP_MS / 100} ]; do
      kill -0 $$ || exit
      sleep 0.1
      tenths=$((tenths + 1))
    done
  done
) >/dev/null 2>&1 & )
exec "$@" 3<&-
`;

/**
 * Runs a program of PostgreSQL's as `account` in a session of its own, so that Ctrl-C reaches only us.
 * It stops when this process dies.
 *
 * @throws EmbeddedPostgresError when there is no shell to start it with.
 */
export async function spawnGuarded(
  command: readonly string[],
  libraryPath: string,
  account: Account,
  log: (line: string) => void,
): Promise<GuardedProcess> {
  const isOther = account.uid !== process.getuid?.();
  const child = spawn("/bin/sh", ["-c", GUARD, "sh", libraryPath, ...command], {
    cwd: "/",
    detached: true,
    // Nothing of our environment: variables such as PGDATA and PGPORT would change what PostgreSQL does.
    env: { PATH: "/usr/bin:/bin", LC_ALL: "C" },
    stdio: ["pipe", "ignore", "pipe"],
    ...(isOther ? { uid: account.uid, gid: account.gid } : {}),
  });
  // A failed start is reported below, a signal that finds no process is no error.
  child.on("error", () => {});
  // Its end is known from the exit; writing to a pipe that it no longer reads is no error.
  child.stdin.on("error", () => {});
  const lastLines: string[] = [];
  const lines = createInterface({ input: child.stderr });
  lines.on("line", (line) => {
    if (lastLines.push(line) > 20) lastLines.shift();
    log(line);
  });
  const closed = new Promise<void>((resolve) => lines.once("close", resolve));
  const exited = new Promise<ProcessExit>((resolve) => {
    child.once("exit", (code, signal) => {
      child.stdin.end("ended\n");
      resolve({ code, signal });
    });
  });
  try {
    await once(child, "spawn");
  } catch (error) {
    throw new EmbeddedPostgresError(
      `/bin/sh, which starts PostgreSQL, cannot be run as ${account.name} (${systemErrorCode(error)}): ` +
        "set CARILLON_DATABASE_URL to a PostgreSQL of your own",
      { cause: error },
    );
  }
  return { child: child as GuardedProcess["child"], exited, closed, lastLines };
}

/**
 * Resolves when the server takes connections. It is known from the status line of postmaster.pid, as pg_ctl does it:
 * the log's wording and presence depend on settings.
 *
 * @throws EmbeddedPostgresError with the server's last lines when it ends before, or is not ready after 5 minutes.
 */
export async function waitUntilReady(server: GuardedProcess, clusterDir: string): Promise<void> {
  const ended = new AbortController();
  void server.exited.then(() => ended.abort());
  const deadline = performance.now() + READY_MS;
  while (performance.now() < deadline) {
    if (ended.signal.aborted) {
      await within(server.closed, LAST_LINES_MS);
      throw new EmbeddedPostgresError(`PostgreSQL did not start: ${server.lastLines.join(" | ")}`);
    }
    const { pid, status } = await readPostmasterFile(clusterDir);
    if (pid === server.child.pid && status === "ready") return;
    await delay(10, undefined, { signal: ended.signal }).catch(() => {});
  }
  throw new EmbeddedPostgresError(`PostgreSQL was not ready after ${READY_MS / 1000} s: ${server.lastLines.at(-1)}`);
}

/** Stops the server: cleanly, after 30 s at once (it recovers at its next start), 5 s later by force. Never throws. */
export async function stopServer(server: GuardedProcess): Promise<ProcessExit> {
  const waits: readonly [NodeJS.Signals, number][] = [
    ["SIGINT", STOP_MS],
    ["SIGQUIT", QUIT_MS],
    ["SIGKILL", KILL_MS],
  ];
  for (const [signal, waitMs] of waits) {
    server.child.kill(signal);
    const ended = await within(server.exited, waitMs);
    if (ended !== undefined) return ended;
  }
  // Not even SIGKILL ends what hangs in the kernel; the watcher and the lock's record stay for it.
  return { code: null, signal: null };
}

/**
 * Waits until a server that outlived its Carillon has left the cluster, for at most 30 s.
 *
 * @param orphan the server that the dead Carillon had started; it is told to stop. One that somebody else started is
 * waited for only.
 * @throws EmbeddedPostgresError naming the pid when a server is still there.
 */
export async function waitForOldServer(clusterDir: string, orphan: ProcessIdentity | undefined): Promise<void> {
  const deadline = performance.now() + STOP_MS;
  let told = false;
  for (;;) {
    const { pid } = await readPostmasterFile(clusterDir);
    if (pid === undefined) return;
    const inside = await processesIn(clusterDir, "postgres");
    // Without /proc the pid alone tells.
    const users = inside ?? ((await identifyProcess(pid)) === undefined ? [] : [pid]);
    if (users.length === 0) {
      // Its file goes too. In a container pids repeat: PostgreSQL refuses to start while a stranger has the pid in it,
      // and a new server with the very pid would be taken for ready.
      if (inside !== undefined) await rm(join(clusterDir, "postmaster.pid"), { force: true });
      return;
    }
    if (!told && orphan !== undefined && (await isRunning(orphan))) {
      told = true;
      process.kill(orphan.pid, "SIGINT");
    }
    if (performance.now() > deadline) {
      throw new EmbeddedPostgresError(
        `a PostgreSQL server (pid ${users.join(", ")}) still runs in ${clusterDir} and does not end: stop it and try again`,
      );
    }
    await delay(20);
  }
}

/** Lines 1 and 8 of postmaster.pid: the pid and the status. Both undefined while there is no such file. */
async function readPostmasterFile(clusterDir: string): Promise<{ pid?: number; status?: string }> {
  const text = await readFile(join(clusterDir, "postmaster.pid"), "utf8").catch((error: unknown) => {
    if (systemErrorCode(error) !== "ENOENT") throw error;
    return undefined;
  });
  if (text === undefined) return {};
  const lines = text.split("\n");
  return { pid: Number(lines[0]), status: lines[7]?.trim() ?? "" };
}

/** The promise's value, or undefined when `ms` pass first. */
export async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise, delay(ms, undefined, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}
