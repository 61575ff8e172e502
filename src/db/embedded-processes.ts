import { readdir, readFile, readlink } from "node:fs/promises";

/** A process as it can be told from a later one with the same pid. */
export interface ProcessIdentity {
  readonly pid: number;
  /** The boot and the clock tick of its start. Empty where the system does not tell (no /proc). */
  readonly start: string;
}

/** Identifies a process that runs now, or returns undefined when there is none, or only its remains. */
export async function identifyProcess(pid: number): Promise<ProcessIdentity | undefined> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: it runs, as somebody else.
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return undefined;
  }
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  if (stat === undefined) return { pid, start: "" };
  // proc_pid_stat(5): the name in parentheses may hold anything, so fields count from the last one.
  // Field 3 is the state (Z: a zombie), field 22 the start in ticks since boot.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  if (fields[0] === "Z" || fields[0] === "X") return undefined;
  const boot = await readFile("/proc/sys/kernel/random/boot_id", "utf8").catch(() => "");
  return { pid, start: `${boot.trim()}/${fields[19] ?? ""}` };
}

/** True while the very process that `identity` was taken of runs. Where starts are unknown, the pid alone decides. */
export async function isRunning(identity: ProcessIdentity): Promise<boolean> {
  const found = await identifyProcess(identity.pid);
  return found !== undefined && (found.start === "" || identity.start === "" || found.start === identity.start);
}

/**
 * The pids of processes called `name` that work in `dir`, as all of PostgreSQL's do in their data directory.
 * Undefined where there is no /proc. The working directories of other users' processes are seen by root only.
 */
export async function processesIn(dir: string, name: string): Promise<number[] | undefined> {
  const entries = await readdir("/proc").catch(() => []);
  const pids = entries.filter((entry) => /^\d+$/.test(entry)).map(Number);
  if (pids.length === 0) return undefined;
  const found: number[] = [];
  for (const pid of pids) {
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => undefined);
    if (cwd !== dir) continue;
    const command = await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "");
    if (command.trim() === name) found.push(pid);
  }
  return found;
}
