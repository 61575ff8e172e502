/**
 * Generates `gen/` from the protos, offline. With `--check` it writes nothing and fails where `gen/` is stale; that
 * compares files, so it says the same whatever git thinks of the work tree. `.protos/` has to be filled before.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");

if (process.argv.includes("--check")) {
  const fresh = mkdtempSync(join(tmpdir(), "carillon-gen-"));
  try {
    run("buf", ["generate", "--output", fresh]);
    run("diff", ["--recursive", "--brief", "gen", join(fresh, "gen")], "gen/ is stale: npm run generate");
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
} else run("buf", ["generate"]);

function run(command: string, args: readonly string[], hint = `${command} failed`): void {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit", timeout: 120_000 });
  if (status === 0) return;
  console.error(error?.message ?? hint);
  process.exitCode = 1;
}
