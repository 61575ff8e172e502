import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { access, constants, readdir, readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { delimiter, join } from "node:path";

/** A program that stays in the foreground. Disposing it ends it: by SIGTERM, or by force after `STOP_MS`. */
export interface Running extends AsyncDisposable {
  readonly child: ChildProcess;
}

const STOP_MS = 20_000;

export interface ProgramOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Rejects unless the program prints this within `startMs`. */
  readonly readyLine: RegExp;
  readonly startMs: number;
}

/** Starts a program and resolves when it says that it is ready. */
export async function startProgram(
  command: string,
  args: readonly string[],
  { env = {}, readyLine, startMs }: ProgramOptions,
): Promise<Running> {
  const child = spawn(command, args, { env: { PATH: process.env["PATH"], ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(child, "close").catch(() => {});
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGTERM");
    const late = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await ended;
    clearTimeout(late);
  };
  let output = "";
  const ready = Promise.withResolvers<void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-10_000);
      if (readyLine.test(output)) ready.resolve();
    });
  }
  const fail = (why: string): void => ready.reject(new Error(`${command} ${why}:\n${output}`));
  const timer = setTimeout(fail, startMs, `was not ready within ${startMs} ms`);
  void ended.then(() => fail("ended before it was ready"));
  try {
    await ready.promise;
    return { child, [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** The path of an installed program, or undefined. `places` are searched after PATH. */
export async function findProgram(name: string, places: readonly string[] = []): Promise<string | undefined> {
  for (const place of [...(process.env["PATH"] ?? "").split(delimiter), ...places]) {
    const path = join(place, name);
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return path;
  }
  return undefined;
}

/** What a program prints. Rejects when it fails. */
export async function outputOf(command: string, args: readonly string[]): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  execFile(command, args, (error, stdout) => (error === null ? resolve(stdout) : reject(error)));
  return promise;
}

/** A port of loopback that is free now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** Seconds of processor time that a process has used. Linux only. */
export async function processorSecondsOf(pid: number): Promise<number> {
  return (await readStat(pid))?.own ?? Number.NaN;
}

/**
 * Seconds of processor time that this process and all that it has started have used: clients, nodes, databases, brokers.
 * On a busy machine it says more about a cost than the time that passed. Linux only; elsewhere not a number.
 */
export async function processorSeconds(): Promise<number> {
  const pids = (await readdir("/proc").catch(() => [])).map(Number).filter(Number.isInteger);
  const stats = new Map<number, ProcessStat>();
  await Promise.all(
    pids.map(async (pid) => {
      const stat = await readStat(pid);
      if (stat !== undefined) stats.set(pid, stat);
    }),
  );
  const isOurs = (pid: number): boolean => {
    const parent = stats.get(pid)?.parent;
    return pid === process.pid || (parent !== undefined && isOurs(parent));
  };
  const ours = [...stats].filter(([pid]) => isOurs(pid));
  return ours.length === 0 ? Number.NaN : ours.reduce((sum, [, { own, reaped }]) => sum + own + reaped, 0);
}

interface ProcessStat {
  readonly parent: number;
  /** Seconds of processor time. */
  readonly own: number;
  /** The same of children that have ended. */
  readonly reaped: number;
}

/** What Linux says of a process, or undefined where there is none. */
async function readStat(pid: number): Promise<ProcessStat | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  if (stat === undefined) return undefined;
  // After the command's name, which may hold anything: state, parent, and from the 12th on utime, stime, cutime, cstime,
  // in hundredths of a second.
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const [utime = 0, stime = 0, cutime = 0, cstime = 0] = fields.slice(11, 15);
  return { parent: fields[1] ?? 0, own: (utime + stime) / 100, reaped: (cutime + cstime) / 100 };
}
