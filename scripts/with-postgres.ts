/**
 * Runs a command with CARILLON_TEST_DATABASE_URL naming a fresh server of an installed PostgreSQL (Debian's layout), and
 * ends with its exit code: `node scripts/with-postgres.ts 15 vitest run --project db`.
 *
 * The server is stopped and its files are deleted afterwards. As root it runs as the user postgres.
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { chownSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [version = "", program = "", ...args] = process.argv.slice(2);
const bin = `/usr/lib/postgresql/${version}/bin`;
const account = process.getuid?.() === 0 ? { uid: idOf("-u"), gid: idOf("-g") } : {};
// Short, because the socket's path has at most 107 bytes.
const parent = mkdtempSync(join(tmpdir(), "cpg-"));
const home = join(parent, "pg");
let status = 1;
try {
  mkdirSync(home, { mode: 0o700 });
  if (account.uid !== undefined) {
    chownSync(parent, account.uid, account.gid);
    chownSync(home, account.uid, account.gid);
  }
  const data = join(home, "data");
  run("initdb", ["-D", data, "-U", "carillon", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
  const settings = `-c listen_addresses= -c max_connections=300 -c fsync=off -k ${home}`;
  run("pg_ctl", ["-D", data, "-w", "-l", join(home, "log"), "-o", settings, "start"]);
  try {
    const child = spawn(program, args, {
      stdio: ["ignore", "inherit", "inherit"],
      env: {
        ...process.env,
        CARILLON_TEST_DATABASE_URL: `postgres://carillon@localhost/postgres?host=${encodeURIComponent(home)}`,
      },
    });
    status = await new Promise((resolve) => {
      child.once("error", () => resolve(1));
      child.once("close", (code) => resolve(code ?? 1));
    });
  } finally {
    run("pg_ctl", ["-D", data, "-w", "-m", "immediate", "stop"]);
  }
} finally {
  rmSync(parent, { recursive: true, force: true });
}
process.exitCode = status;

function run(tool: string, toolArgs: readonly string[]): void {
  const { status: code, error } = spawnSync(join(bin, tool), toolArgs, {
    ...account,
    cwd: "/",
    stdio: ["ignore", "ignore", "inherit"],
  });
  if (code !== 0) throw new Error(`${tool} of PostgreSQL ${version} failed: ${error?.message ?? `exit code ${code}`}`);
}

function idOf(flag: "-u" | "-g"): number {
  return Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
}
