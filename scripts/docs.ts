/** Writes the pages under `docs/` that are printed from the source. With `--check` it fails where one is stale. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** A page and the arguments that make Node print it. */
const PAGES = [["docs/config.md", ["src/cli/main.ts", "config", "--markdown"]]] as const;

const root = join(import.meta.dirname, "..");
for (const [path, args] of PAGES) {
  const file = join(root, path);
  const text = execFileSync(process.execPath, args, { cwd: root, encoding: "utf8", timeout: 60_000 });
  if (!process.argv.includes("--check")) writeFileSync(file, text);
  else if (!existsSync(file) || readFileSync(file, "utf8") !== text) {
    console.error(`${path} is stale: npm run docs`);
    process.exitCode = 1;
  }
}
