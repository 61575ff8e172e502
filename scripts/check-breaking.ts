/**
 * Fails when the contract breaks a caller of the last release. The release is compared as `proto/baseline.binpb`, the
 * compiled contract that `npm run release:baseline` writes: the one at the newest `v*` tag, so that a change cannot
 * move its own yardstick, or the file of the work tree where there is no such tag (a shallow clone, a source archive).
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const BASELINE = "proto/baseline.binpb";

const root = join(import.meta.dirname, "..");
const scratch = mkdtempSync(join(tmpdir(), "carillon-baseline-"));
try {
  const image = join(scratch, "baseline.binpb");
  const tag = newestTag();
  writeFileSync(image, tag === undefined ? readFileSync(join(root, BASELINE)) : git(["show", `${tag}:${BASELINE}`]));
  console.log(`compared with ${tag ?? BASELINE}`);
  const { status } = spawnSync("buf", ["breaking", "proto", "--against", image, "--exclude-imports"], {
    cwd: root,
    stdio: "inherit",
    timeout: 60_000,
  });
  if (status !== 0) process.exitCode = 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

/** The highest release tag that the work tree descends from; undefined where there is none, or no git. */
function newestTag(): string | undefined {
  try {
    const tags = git(["tag", "--list", "v*", "--merged", "HEAD", "--sort=-version:refname"]).toString();
    return tags.split("\n")[0] || undefined;
  } catch {
    return undefined;
  }
}

function git(args: readonly string[]): Buffer {
  return execFileSync("git", args, { cwd: root, stdio: ["ignore", "pipe", "ignore"], timeout: 30_000 });
}
