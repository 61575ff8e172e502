import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readdir, readFile, readlink, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import pg from "pg";
import { afterAll, onTestFinished } from "vitest";
import { startEmbeddedPostgres } from "../../src/db/embedded.ts";

/** A directory that PostgreSQL's account can pass, deleted after the test. */
export async function temporaryDir(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), "carillon-test-"));
  await chmod(dir, 0o755);
  onTestFinished(() => rm(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 }));
  return dir;
}

let template: string | undefined;

afterAll(async () => {
  if (template !== undefined) await rm(template, { recursive: true, force: true });
});

/** A data directory whose server has run and stopped: a copy of one that is made once for each test file. */
export async function usedDataDir(): Promise<string> {
  if (template === undefined) {
    template = await mkdtemp(join(tmpdir(), "carillon-test-"));
    await chmod(template, 0o711);
    await (await startEmbeddedPostgres({ dataDir: join(template, "data") }))[Symbol.asyncDispose]();
  }
  const dataDir = join(await temporaryDir(), "data");
  // Node's own copy does not keep owners.
  await promisify(execFile)("cp", ["-a", join(template, "data"), dataDir]);
  return dataDir;
}

/** Runs one statement on a connection of its own. */
export async function query(url: string, sql: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  // A server that is killed ends the connection; the test looks at its own await.
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

/** Every process that works in `dir` or was started with a path in it. */
export async function processesOf(dir: string): Promise<number[]> {
  const found: number[] = [];
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
    const cwd = await readlink(`/proc/${name}/cwd`).catch(() => "");
    const commandLine = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    if (cwd.startsWith(dir) || commandLine.includes(dir)) found.push(Number(name));
  }
  return found;
}

export interface Owner {
  readonly child: ChildProcess & { readonly pid: number };
  /** What it printed: the server's facts or the refusal. */
  readonly said: { readonly url: string; readonly dataDir: string; readonly error?: string };
}

export interface OwnerOptions {
  readonly program?: string;
  readonly node?: string;
  readonly uid?: number;
  readonly gid?: number;
}

/** Starts a process that owns a server and waits until it has one or is refused. Killed after the test. */
export async function startOwner(options: object, owner: OwnerOptions = {}): Promise<Owner> {
  const child = spawnOwner(options, owner);
  const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
  return { child: child as Owner["child"], said: JSON.parse(line) };
}

/** Starts a process that is to own a server. Killed after the test. */
export function spawnOwner(options: object, { program, node, uid, gid }: OwnerOptions = {}) {
  const child = spawn(
    node ?? process.execPath,
    [program ?? join(import.meta.dirname, "embedded-owner.ts"), JSON.stringify(options)],
    {
      cwd: "/",
      stdio: ["pipe", "pipe", "inherit"],
      ...(uid === undefined ? {} : { uid }),
      ...(gid === undefined ? {} : { gid }),
    },
  );
  onTestFinished(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  });
  return child;
}

/** Kills a process as the power button would and waits until it is gone. */
export async function killHard(child: ChildProcess): Promise<void> {
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}
