import { glob, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../../src/db/embedded.ts";
import { query, usedDataDir } from "../db/embedded-harness.ts";
import { call, until } from "./calls.ts";
import { type Node, startNode } from "./node.ts";

/**
 * A commit is in the kernel's hands when it is acknowledged, which outlives any process. Without fsync the test does not
 * depend on the machine's disk; what only a power cut would lose is not its subject.
 */
const POSTGRES_SETTINGS = { fsync: "off" };

/** Some nodes, each a process, on a PostgreSQL of their own. All of it can be killed and comes back. */
export interface Cluster extends AsyncDisposable {
  /** The nodes' addresses now. A node that was killed has another one when it is back. */
  readonly urls: readonly string[];
  /** kill -9 of a node. Resolves when it is back. */
  killNode(index: number): Promise<void>;
  /** Stops a node's process where it stands, for so long, and lets it go on. */
  freezeNode(index: number, ms: number): Promise<void>;
  /** kill -9 of the postmaster. Resolves when it is back, recovered, and a node answers. */
  killPostgres(): Promise<void>;
  /** kill -9 of one of PostgreSQL's processes: the postmaster ends all the others and recovers. */
  crashPostgres(): Promise<void>;
  /** Throws where a node has ended that was not killed, naming what it printed. */
  expectAlive(): void;
}

/** `env` is for all nodes, `envOf` for the one of that index, however often it is started. */
export async function startCluster(
  size: number,
  env: Readonly<Record<string, string>> = {},
  envOf: (index: number) => Readonly<Record<string, string>> = () => ({}),
): Promise<Cluster> {
  const dataDir = await usedDataDir();
  let server: EmbeddedPostgres = await startEmbeddedPostgres({ dataDir, settings: POSTGRES_SETTINGS });
  const { url } = server;
  const start = (index: number): Promise<Node> =>
    startNode({ CARILLON_DATABASE_URL: url, CARILLON_DATABASE_POOL_SIZE: "10", ...env, ...envOf(index) });
  const nodes = await Promise.all(Array.from({ length: size }, (_, index) => start(index)));
  const nodeAt = (index: number): Node => {
    const node = nodes[index];
    if (node === undefined) throw new Error(`there is no node ${index}`);
    return node;
  };
  const answering = (): Promise<unknown> =>
    until("a node answers again", 60_000, async () => {
      const outcome = await call(nodeAt(0).url, "GET", "/queue/list", undefined, { timeoutMs: 5_000 });
      return outcome.kind === "ok" ? true : undefined;
    });

  return {
    get urls() {
      return nodes.map((node) => node.url);
    },

    async killNode(index) {
      const node = nodeAt(index);
      await node.kill();
      if (node.child.signalCode !== "SIGKILL") throw new Error(`node ${index} ended before it was killed`);
      nodes[index] = await start(index);
    },

    async freezeNode(index, ms) {
      const { child, url: address } = nodeAt(index);
      child.kill("SIGSTOP");
      try {
        const alive = fetch(`${address}/healthz`, { signal: AbortSignal.timeout(ms) });
        const answered = await alive.then(
          () => true,
          () => false,
        );
        if (answered) throw new Error(`node ${index} answers though it is frozen`);
      } finally {
        child.kill("SIGCONT");
      }
    },

    async killPostgres() {
      const pid = await postmasterPid(dataDir);
      process.kill(pid, "SIGKILL");
      const { signal } = await server.exited;
      if (signal !== "SIGKILL") throw new Error(`PostgreSQL ended before it was killed (${signal})`);
      await server[Symbol.asyncDispose]();
      server = await startEmbeddedPostgres({ dataDir, settings: POSTGRES_SETTINGS });
      if (server.url !== url) throw new Error("PostgreSQL came back at another address");
      await answering();
    },

    async crashPostgres() {
      const postmaster = await postmasterPid(dataDir);
      const pidOf = async (which: string): Promise<number> =>
        Number((await query(url, `select pid from pg_stat_activity where ${which} limit 1`))[0]?.["pid"]);
      // Each recovery starts another checkpointer.
      const checkpointer = await pidOf("backend_type = 'checkpointer'");
      process.kill(await pidOf("application_name = 'carillon'"), "SIGKILL");
      await until("PostgreSQL has recovered", 60_000, async () => {
        const now = await pidOf("backend_type = 'checkpointer'").catch(() => checkpointer);
        return now !== checkpointer && !Number.isNaN(now) ? true : undefined;
      });
      await answering();
      if ((await postmasterPid(dataDir)) !== postmaster) throw new Error("PostgreSQL did not recover by itself");
    },

    expectAlive() {
      for (const { child, lines } of nodes) {
        if (child.exitCode !== null || child.signalCode !== null)
          throw new Error(`a node ended by itself (${child.exitCode ?? child.signalCode}):\n${lines.join("\n")}`);
      }
    },

    async [Symbol.asyncDispose]() {
      await Promise.all(nodes.map((node) => node.kill()));
      await server[Symbol.asyncDispose]();
    },
  };
}

/** The pid of the server that runs on the directory: the first line of its postmaster.pid. */
export async function postmasterPid(dataDir: string): Promise<number> {
  for await (const path of glob("**/postmaster.pid", { cwd: dataDir })) {
    return Number((await readFile(join(dataDir, path), "utf8")).split("\n")[0]);
  }
  throw new Error("no server runs");
}
