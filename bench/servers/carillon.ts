import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { processorSecondsOf } from "./processes.ts";

/** The API key of every node of the benchmark. */
export const KEY = "bench-key";

/** Seals the secrets in the databases of this run. */
const SECRETS_KEY = randomBytes(32).toString("base64");

const START_MS = 60_000;
const STOP_MS = 40_000;

/** A Carillon in a process of its own. Disposing it stops it with grace. */
export interface CarillonNode extends AsyncDisposable {
  readonly port: number;
  readonly pid: number;
  /** Seconds of processor time that it has used. */
  processorSeconds(): Promise<number>;
}

/** As users start it, or with connect-node's own handlers for every call. */
export type Handlers = "own" | "connect-node";

const PROGRAMS: Readonly<Record<Handlers, readonly string[]>> = {
  own: [join(import.meta.dirname, "../../src/cli/main.ts"), "dev"],
  "connect-node": [join(import.meta.dirname, "connect-node.ts")],
};

export interface NodeOptions {
  /** Default: own. */
  readonly handlers?: Handlers | undefined;
  /** Where it leaves a profile of its processor time when it ends. */
  readonly profileDir?: string | undefined;
}

/** Starts a node on `databaseUrl`, at a free port of loopback. */
export async function startCarillonNode(databaseUrl: string, options: NodeOptions = {}): Promise<CarillonNode> {
  const { handlers = "own", profileDir } = options;
  const profile = profileDir === undefined ? [] : ["--cpu-prof", `--cpu-prof-dir=${profileDir}`];
  const child = spawn(process.execPath, [...profile, ...PROGRAMS[handlers]], {
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      CARILLON_PORT: "0",
      CARILLON_DATABASE_URL: databaseUrl,
      CARILLON_API_KEY: KEY,
      CARILLON_SECRETS_KEY: SECRETS_KEY,
      CARILLON_LOG_LEVEL: "warn",
      CARILLON_LOG_FORMAT: "json",
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  const ready = Promise.withResolvers<number>();
  createInterface({ input: child.stdout }).on("line", (line) => {
    const port = /http:\/\/127\.0\.0\.1:(\d+)\/v1\/scheduling$/.exec(line)?.[1];
    if (port !== undefined) ready.resolve(Number(port));
    // Its log: a warning or worse, which would explain a figure.
    if (line.startsWith("{")) process.stderr.write(`carillon: ${line}\n`);
  });
  const fail = (why: string): void => ready.reject(new Error(`Carillon ${why}`));
  const timer = setTimeout(fail, START_MS, `was not ready within ${START_MS} ms`);
  void ended.then(() => fail("ended before it was ready"));
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGTERM");
    const late = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await ended;
    clearTimeout(late);
  };
  try {
    const port = await ready.promise;
    const pid = child.pid ?? 0;
    return { port, pid, processorSeconds: () => processorSecondsOf(pid), [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
