import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram, freePort, outputOf, startProgram } from "./processes.ts";

/** When Redis flushes its append-only file: with every write, or once a second (which may lose a second). */
export type AppendFsync = "always" | "everysec";

export interface RedisServer extends AsyncDisposable {
  readonly port: number;
  readonly version: string;
}

/** Starts a Redis with an append-only file, or answers undefined where none is installed. */
export async function startRedis(appendFsync: AppendFsync): Promise<RedisServer | undefined> {
  const program = await findProgram("redis-server");
  if (program === undefined) return undefined;
  const version = /v=(\S+)/.exec(await outputOf(program, ["--version"]))?.[1] ?? "unknown";
  const dir = await mkdtemp(join(tmpdir(), "carillon-bench-redis-"));
  const port = await freePort();
  const settings = { port, bind: "127.0.0.1", dir, appendonly: "yes", appendfsync: appendFsync, save: '""' };
  const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, `${value}`]);
  const server = await startProgram(program, args, { readyLine: /Ready to accept connections/, startMs: 10_000 });
  return {
    port,
    version,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await rm(dir, { recursive: true, force: true });
    },
  };
}
