import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const MAIN = join(ROOT, "src/cli/main.ts");

/** How a command ended and what it printed. */
export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A running command. Disposing it kills it. */
export interface Running extends AsyncDisposable {
  readonly child: ChildProcess;
  /** Everything printed so far, both streams. */
  readonly output: () => string;
  /** The first match of the pattern in the output, now or later. Rejects when the command ends or 30 s pass before. */
  see(pattern: RegExp): Promise<RegExpExecArray>;
  readonly ended: Promise<Ended>;
}

/** Starts `carillon …args` with nothing of this process's settings but PATH and what `env` says. */
export function start(args: readonly string[], env: Readonly<Record<string, string>> = {}): Running {
  return startProgram(process.execPath, [MAIN, ...args], env);
}

/** Starts a program in the project's directory, as `start` does. */
export function startProgram(command: string, args: readonly string[], env: Readonly<Record<string, string>>): Running {
  const child = spawn(command, args, {
    cwd: ROOT,
    env: { PATH: process.env["PATH"], HOME: process.env["HOME"], ...env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  // A program that reads nothing closes its end.
  child.stdin.on("error", () => {});
  let stdout = "";
  let stderr = "";
  let hasEnded = false;
  const watchers = new Set<() => void>();
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
    for (const watch of watchers) watch();
  });
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
    for (const watch of watchers) watch();
  });
  const ended = once(child, "close").then(([code]): Ended => {
    hasEnded = true;
    for (const watch of watchers) watch();
    return { code, stdout, stderr };
  });
  const output = () => stdout + stderr;

  return {
    child,
    output,
    ended,
    async see(pattern) {
      const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
      const watch = () => {
        const match = pattern.exec(stdout) ?? pattern.exec(stderr);
        if (match !== null) resolve(match);
        else if (hasEnded) reject(new Error(`ended without ${pattern}:\n${output()}`));
      };
      const timer = setTimeout(() => reject(new Error(`no ${pattern} within 30 s:\n${output()}`)), 30_000);
      watchers.add(watch);
      watch();
      return promise.finally(() => {
        clearTimeout(timer);
        watchers.delete(watch);
      });
    },
    async [Symbol.asyncDispose]() {
      if (!hasEnded) child.kill("SIGKILL");
      await ended;
    },
  };
}

/** Runs `carillon …args` to its end. `input` is what it reads from standard input. */
export async function run(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  input = "",
): Promise<Ended> {
  await using running = start(args, env);
  running.child.stdin?.end(input);
  return await running.ended;
}

export interface Server extends Running {
  readonly url: string;
  /** The key of development mode. */
  readonly key: string;
}

/** Starts `carillon dev` on a free port and waits for its banner. */
export async function startDev(env: Readonly<Record<string, string>>, ...options: string[]): Promise<Server> {
  return whenServing(start(["dev", ...options], { CARILLON_PORT: "0", ...env }));
}

/** Waits for the banner of a development server. */
export async function whenServing(running: Running): Promise<Server> {
  try {
    const [, url = ""] = await running.see(/API\s+(http\S+)\/v1\/scheduling/);
    const [, key = ""] = await running.see(/API key\s+(\S+) \(project default\)/);
    await running.see(/curl .*\n/);
    return { ...running, url, key };
  } catch (error) {
    await running[Symbol.asyncDispose]();
    throw error;
  }
}

/** Starts `carillon serve` on a free port of loopback and waits until it is ready. */
export async function startServe(env: Readonly<Record<string, string>>): Promise<Server> {
  const running = start(["serve"], { CARILLON_PORT: "0", ...env });
  try {
    const [, port = ""] = await running.see(/"port":(\d+).*"msg":"ready"/);
    return { ...running, url: `http://127.0.0.1:${port}`, key: "" };
  } catch (error) {
    await running[Symbol.asyncDispose]();
    throw error;
  }
}

/** A new data directory that PostgreSQL's account may enter. It is removed at the end. */
export async function temporaryDataDir(): Promise<AsyncDisposable & { readonly path: string }> {
  const parent = await mkdtemp(join(tmpdir(), "carillon-cli-"));
  await chmod(parent, 0o711);
  return {
    path: join(parent, "data"),
    async [Symbol.asyncDispose]() {
      await rm(parent, { recursive: true, force: true });
    },
  };
}

/** Calls the REST face with a key. */
export async function call(
  server: Pick<Server, "url">,
  key: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; json: Record<string, unknown> }> {
  const response = await fetch(`${server.url}/v1/scheduling${path}`, {
    method: body === undefined ? "GET" : "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(10_000),
  });
  return { status: response.status, json: (await response.json()) as Record<string, unknown> };
}
