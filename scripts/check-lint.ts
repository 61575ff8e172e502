/**
 * Proves that the linter still finds what this project relies on it to find, by planting one of each in a copy of its
 * configuration. A rule that was renamed, or that infers less after an upgrade, would otherwise fall silent.
 */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** A file, its text, and how often the linter must name the rule in it. */
const PLANTED = [
  [
    "src/store/promise.ts",
    `import { pool } from "./pool.ts";
async function ring(): Promise<void> {}
export function once(): void {
  ring();
  pool.drain();
}
`,
    "lint/nursery/noFloatingPromises",
    2,
  ],
  ["src/store/pool.ts", "export class Pool {\n  async drain(): Promise<void> {}\n}\nexport const pool = new Pool();\n"],
  ["src/db/env.ts", "export const home = process.env.HOME;\n", "lint/style/noProcessEnv", 1],
  ["src/config.ts", "export const home = process.env.HOME;\n", "lint/style/noProcessEnv", 0],
  ["src/worker/get.ts", 'export const answer = fetch("http://example.test");\n', "lint/style/noRestrictedGlobals", 1],
  ["src/domain/due.ts", "export const at = Date.now() + new Date().getTime();\n", "plugin", 2],
  [
    "src/db/one.ts",
    'import { two } from "./two.ts";\nexport const one = () => two;\n',
    "lint/suspicious/noImportCycles",
    1,
  ],
  ["src/db/two.ts", 'import { one } from "./one.ts";\nexport const two = () => one;\n'],
] as const;

const root = join(import.meta.dirname, "..");
const scratch = mkdtempSync(join(tmpdir(), "carillon-lint-"));
try {
  for (const path of ["biome.json", "scripts/lint"]) cpSync(join(root, path), join(scratch, path), { recursive: true });
  for (const [path, text] of PLANTED) {
    mkdirSync(dirname(join(scratch, path)), { recursive: true });
    writeFileSync(join(scratch, path), text);
  }
  const { stdout, status } = spawnSync("biome", ["lint", "--vcs-enabled=false", "--reporter=json", "src"], {
    cwd: scratch,
    encoding: "utf8",
    timeout: 60_000,
  });
  const found = (JSON.parse(stdout) as Report).diagnostics;
  for (const [path, , rule, times] of PLANTED) {
    if (rule === undefined) continue;
    const count = found.filter((entry) => entry.category === rule && entry.location.path.endsWith(path)).length;
    if (count !== times) fail(`${rule} was reported ${count} times in the planted ${path}, not ${times}`);
  }
  if (status === 0) fail("the linter accepted the planted files");
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

interface Report {
  readonly diagnostics: readonly { readonly category: string; readonly location: { readonly path: string } }[];
}

function fail(line: string): void {
  console.error(line);
  process.exitCode = 1;
}
