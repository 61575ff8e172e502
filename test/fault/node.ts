import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { onTestFinished } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { TEST_SECRETS_KEY } from "../support/signing.ts";

/** How long a node may take to start, in milliseconds: several start at once on a busy machine. */
const START_MS = 60_000;
/** Most lines of a node's output that are kept. */
const KEPT_LINES = 2_000;

/** A Carillon in a process of its own, which can be killed. */
export interface Node {
  /** `http://127.0.0.1:<port>` */
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  readonly child: ChildProcess;
  /** The newest lines that it printed. */
  readonly lines: readonly string[];
  /** Ends it as the power button would, and resolves when it is gone. */
  kill(): Promise<void>;
  /** Sends SIGTERM and resolves with how it ended, after how many milliseconds. */
  terminate(): Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null; readonly ms: number }>;
}

/**
 * Starts `carillon dev` on a free port and resolves when it is ready. It is killed after the test: the running one, or,
 * where several run at once and "the running one" means any of them, the one whose `onTestFinished` is given.
 */
export async function startNode(
  env: Readonly<Record<string, string>>,
  onFinished: typeof onTestFinished = onTestFinished,
): Promise<Node> {
  const child = spawn(process.execPath, [join(import.meta.dirname, "../../src/cli/main.ts"), "dev"], {
    env: {
      ...process.env,
      CARILLON_PORT: "0",
      CARILLON_API_KEY: TEST_KEY,
      CARILLON_SECRETS_KEY: TEST_SECRETS_KEY,
      CARILLON_LOG_FORMAT: "json",
      CARILLON_LOG_LEVEL: "warn",
      ...env,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = once(child, "exit");
  const kill = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
    await ended;
  };
  onFinished(kill);

  const lines: string[] = [];
  const ready = Promise.withResolvers<string>();
  const keep = (line: string): void => {
    lines.push(line);
    if (lines.length > KEPT_LINES) lines.shift();
    const url = /(http:\/\/127\.0\.0\.1:\d+)\/v1\/scheduling$/.exec(line)?.[1];
    if (url !== undefined) ready.resolve(url);
  };
  createInterface({ input: child.stdout }).on("line", keep);
  createInterface({ input: child.stderr }).on("line", keep);
  const fail = (why: string): void => ready.reject(new Error(`the node ${why}:\n${lines.join("\n")}`));
  const timer = setTimeout(fail, START_MS, `was not ready within ${START_MS} ms`);
  void ended.then(() => fail("ended before it was ready"));
  const url = await ready.promise.finally(() => clearTimeout(timer));

  return {
    url,
    port: Number(new URL(url).port),
    pid: child.pid ?? 0,
    child,
    lines,
    kill,
    async terminate() {
      const startedAt = performance.now();
      child.kill("SIGTERM");
      const [code, signal] = await ended;
      return { code, signal, ms: performance.now() - startedAt };
    },
  };
}
