/**
 * Runs every check of the project, one after the other, to the end, and lists the failures. The last line is
 * `N passed, N failed`: tests count one each, and so does every other check.
 *
 * `--ci` adds what only a build machine does. `--only=name,name` runs a part.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

interface Step {
  readonly name: string;
  readonly command: string;
  /** Runs with `--ci` only. */
  readonly ciOnly?: true;
  /** Runs the tests, which are counted one by one from the report that it writes. */
  readonly isTestRun?: true;
}

const LAYERS = "node --import ./scripts/typescript-5-hook.mjs node_modules/.bin/depcruise";

const STEPS: readonly Step[] = [
  { name: "packages", command: "bash .ci/packages", ciOnly: true },
  { name: "format-and-lint", command: "biome check --error-on-warnings" },
  { name: "lint-finds", command: "node scripts/check-lint.ts" },
  { name: "types", command: "tsc -p tsconfig.json" },
  { name: "build", command: "tsc -p tsconfig.build.json --noEmit" },
  { name: "layers", command: `${LAYERS} .` },
  { name: "dead-code", command: "knip" },
  { name: "third-party-protos", command: "node scripts/collect-protos.ts" },
  { name: "proto-lint", command: "buf lint" },
  { name: "proto-format", command: "buf format --diff --exit-code proto" },
  { name: "proto-breaking", command: "node scripts/check-breaking.ts" },
  { name: "generated-is-fresh", command: "node scripts/generate.ts --check" },
  { name: "docs-are-fresh", command: "node scripts/docs.ts --check" },
  { name: "tests", command: "npm test --", isTestRun: true },
  { name: "faults", command: "npm run test:fault --", isTestRun: true },
  // The oldest PostgreSQL that is supported; the other tests run on the embedded one.
  {
    name: "postgres-15",
    command: "node scripts/with-postgres.ts 15 vitest run --project db test/store test/worker",
    isTestRun: true,
    ciOnly: true,
  },
];

/** The tests have their own deadlines; this ends a step that hangs outside of any. */
const STEP_TIMEOUT_MS = 20 * 60_000;

const root = join(import.meta.dirname, "..");
const { values } = parseArgs({ options: { ci: { type: "boolean" }, only: { type: "string" } } });
const only = values.only?.split(",");
const scratch = mkdtempSync(join(tmpdir(), "carillon-check-"));
const failures: string[] = [];
let passed = 0;
try {
  for (const step of STEPS) {
    if (only ? only.includes(step.name) : values.ci || !step.ciOnly) await runStep(step);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
for (const failure of failures) console.log(`failed: ${failure}`);
console.log(`${passed} passed, ${failures.length} failed`);
if (failures.length > 0 || passed === 0) process.exitCode = 1;

async function runStep(step: Step): Promise<void> {
  console.log(`\n--- ${step.name}`);
  const startedAt = performance.now();
  const report = join(scratch, "tests.json");
  const reporters = ` --reporter=default --reporter=json --outputFile.json=${report}`;
  const status = await runShell(step.isTestRun ? step.command + reporters : step.command);
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  const failedBefore = failures.length;
  if (step.isTestRun) countTests(report);
  // Vitest fails without a failing test too: on an unhandled rejection, or when it finds no test file.
  if (status !== 0 && failures.length === failedBefore) failures.push(step.name);
  else if (status === 0 && !step.isTestRun) passed += 1;
  console.log(`--- ${step.name}: ${status === 0 ? "passed" : `failed (${status})`}, ${seconds} s`);
}

/** Resolves with the exit code, or the name of the signal that ended the command. Nothing is read from stdin. */
function runShell(command: string): Promise<number | string> {
  const { promise, resolve } = Promise.withResolvers<number | string>();
  const child = spawn(command, {
    cwd: root,
    shell: true,
    stdio: ["ignore", "inherit", "inherit"],
    timeout: STEP_TIMEOUT_MS,
  });
  child.once("error", (error) => resolve(error.message));
  child.once("close", (code, signal) => resolve(code ?? signal ?? "no status"));
  return promise;
}

interface TestReport {
  readonly testResults: readonly {
    readonly name: string;
    readonly status: string;
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

function countTests(report: string): void {
  let files: TestReport["testResults"];
  try {
    files = (JSON.parse(readFileSync(report, "utf8")) as TestReport).testResults;
  } catch {
    // No report: the exit code alone tells, and the caller records it.
    return;
  }
  for (const file of files) {
    const failed = file.assertionResults.filter((test) => test.status === "failed");
    passed += file.assertionResults.filter((test) => test.status === "passed").length;
    failures.push(...failed.map((test) => `${file.name}: ${test.fullName}`));
    // A file that fails to load has no test to blame.
    if (file.status === "failed" && failed.length === 0) failures.push(file.name);
  }
}
