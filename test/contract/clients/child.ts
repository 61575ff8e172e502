import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { createInterface } from "node:readline";

/** The longest that a program of a test may run, in milliseconds. It is killed after that. */
const DEADLINE_MS = 25_000;

/** @throws Error that says what to install when the program is not there. */
export function requireProgram(path: string, debianPackage: string): void {
  if (!existsSync(path)) throw new Error(`${path} is missing: install the Debian package ${debianPackage}`);
}

/** A program that runs beside the test. Disposing kills it. */
export interface Child extends AsyncDisposable {
  readonly process: ChildProcessWithoutNullStreams;
  /** What it wrote to its standard error so far. */
  stderr(): string;
  /** Resolves when it has ended and its output has been read: with its exit code, or null when a signal ended it. */
  readonly ended: Promise<number | null>;
}

/** Starts a program away from the repository, so that it finds no configuration of ours. */
export function startChild(command: string, args: readonly string[], deadlineMs = DEADLINE_MS): Child {
  const child = spawn(command, args, { cwd: tmpdir(), timeout: deadlineMs, killSignal: "SIGKILL" });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  // A program that ends early reads no more of its input; how it ended tells why.
  child.stdin.on("error", () => {});
  const ended = once(child, "close").then(([code]) => code as number | null);
  // It may never be awaited.
  ended.catch(() => {});
  return {
    process: child,
    stderr: () => stderr,
    ended,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
      await ended.catch(() => {});
    },
  };
}

/** What a program wrote, and the code it ended with; null when a signal ended it. */
export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end. */
export async function runChild(command: string, args: readonly string[], input = ""): Promise<Outcome> {
  await using child = startChild(command, args);
  child.process.stdin.end(input);
  let stdout = "";
  child.process.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  return { code: await child.ended, stdout, stderr: child.stderr() };
}

/** The lines of its standard output as they come. */
export function linesOf(child: Child): AsyncIterator<string> {
  return createInterface({ input: child.process.stdout })[Symbol.asyncIterator]();
}
