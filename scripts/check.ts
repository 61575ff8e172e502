/**
 * Runs every check of the project, one after the other, to the end, and lists the failures. The last line is
 * `N passed, N failed`: tests count one each, and so does every other check. A few files with failing tests run once
 * more by themselves (docs/decisions/second-runs.md).
 *
 * `--ci` adds what only a build machine does. `--only=name,name` runs a part.
 */
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { parseArgs } from "node:util";

interface Step {
  readonly name: string;
  readonly command: string;
  /** The test files that the command runs, where it is not told that otherwise. */
  readonly files?: string;
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
    command: "node scripts/with-postgres.ts 15 vitest run --project db",
    files: "test/store test/worker",
    isTestRun: true,
    ciOnly: true,
  },
];

/** Most test files of a step that run again. With more, something is broken rather than out of step. */
const MAX_SECOND_RUNS = 3;
/** The tests have their own deadlines; this ends a step that hangs outside of any. */
const STEP_TIMEOUT_MS = 20 * 60_000;

const root = join(import.meta.dirname, "..");
const { values } = parseArgs({ options: { ci: { type: "boolean" }, only: { type: "string" } } });
const only = values.only?.split(",");
/** One for all tests, so that what runs again meets the same. Each prints it. */
const seed = process.env["CARILLON_TEST_SEED"] ?? `${randomInt(2 ** 31)}`;
const scratch = mkdtempSync(join(tmpdir(), "carillon-check-"));
const failures: string[] = [];
const unsteady: string[] = [];
let passed = 0;
try {
  for (const step of STEPS) {
    if (only ? only.includes(step.name) : values.ci || !step.ciOnly) await runStep(step);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
for (const test of unsteady) console.log(`unsteady: ${test}: failed, then passed by itself`);
for (const failure of failures) console.log(`failed: ${failure}`);
console.log(`${passed} passed, ${failures.length} failed`);
if (failures.length > 0 || passed === 0) process.exitCode = 1;

async function runStep(step: Step): Promise<void> {
  console.log(`\n--- ${step.name}`);
  const startedAt = performance.now();
  const isPassed = step.isTestRun ? await runTests(step) : (await runShell(step.command)) === 0;
  if (!step.isTestRun) {
    if (isPassed) passed += 1;
    else failures.push(step.name);
  }
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  console.log(`--- ${step.name}: ${isPassed ? "passed" : "failed"}, ${seconds} s`);
}

/** Runs the tests of a step, a few files with failing ones twice, and counts them. Says whether all have passed in the end. */
async function runTests(step: Step): Promise<boolean> {
  const first = await runVitest(step, step.files ?? "");
  const files = new Set(first.failed.map(({ file }) => file));
  if (files.size === 0 || files.size > MAX_SECOND_RUNS) return note(step, first);

  console.log(`\n--- ${step.name}, again: ${[...files].join(" ")}`);
  const again = await runVitest(step, [...files].join(" "));
  const isAgain = ({ file }: Test): boolean => files.has(file);
  const names = new Set(again.passed.map(nameOf));
  // What did not come to run again has failed.
  const lost = first.failed.filter((test) => test.name !== undefined && !names.has(nameOf(test)));
  const failed = new Map([...again.failed, ...lost].map((test) => [nameOf(test), test]));
  unsteady.push(...first.failed.map(nameOf).filter((name) => !failed.has(name)));
  const passedFirst = first.passed.filter((test) => !isAgain(test));
  return note(step, {
    passed: [...passedFirst, ...again.passed],
    failed: [...failed.values()],
    isBroken: again.isBroken,
  });
}

/** Counts the tests of a run. One that failed without a failing test is a failure itself. */
function note(step: Step, run: TestRun): boolean {
  passed += run.passed.length;
  failures.push(...run.failed.map(nameOf));
  if (run.isBroken && run.failed.length === 0) failures.push(step.name);
  return run.failed.length === 0 && !run.isBroken;
}

/** Resolves with the exit code, or the name of the signal that ended the command. Nothing is read from stdin. */
function runShell(command: string): Promise<number | string> {
  const { promise, resolve } = Promise.withResolvers<number | string>();
  const child = spawn(command, {
    cwd: root,
    shell: true,
    stdio: ["ignore", "inherit", "inherit"],
    // Tests start hundreds of nodes and commands, which compile the same files.
    env: { ...process.env, NODE_COMPILE_CACHE: join(scratch, "compiled"), CARILLON_TEST_SEED: seed },
    timeout: STEP_TIMEOUT_MS,
  });
  child.once("error", (error) => resolve(error.message));
  child.once("close", (code, signal) => resolve(code ?? signal ?? "no status"));
  return promise;
}

interface Test {
  readonly file: string;
  /** Undefined for a file that does not load: it has no test to blame. */
  readonly name: string | undefined;
}

interface TestRun {
  readonly passed: readonly Test[];
  readonly failed: readonly Test[];
  /** Vitest failed by more than its tests: an unhandled rejection, no test file, no report. */
  readonly isBroken: boolean;
}

function nameOf({ file, name }: Test): string {
  return name === undefined ? file : `${file}: ${name}`;
}

interface TestReport {
  readonly testResults: readonly {
    readonly name: string;
    readonly status: string;
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

async function runVitest({ command }: Step, files: string): Promise<TestRun> {
  const report = join(scratch, "tests.json");
  rmSync(report, { force: true });
  const status = await runShell(`${command} ${files} --reporter=default --reporter=json --outputFile.json=${report}`);
  let results: TestReport["testResults"];
  try {
    results = (JSON.parse(readFileSync(report, "utf8")) as TestReport).testResults;
  } catch {
    return { passed: [], failed: [], isBroken: true };
  }
  const of = (wanted: string): Test[] =>
    results.flatMap(({ name: file, assertionResults }) =>
      assertionResults
        .filter(({ status: ofTest }) => ofTest === wanted)
        .map(({ fullName }) => ({ file: relative(root, file), name: fullName })),
    );
  const failedTests = of("failed");
  const unloaded = results
    .map(({ name, status: ofFile }) => ({ file: relative(root, name), ofFile }))
    .filter(({ file, ofFile }) => ofFile === "failed" && !failedTests.some((test) => test.file === file))
    .map(({ file }) => ({ file, name: undefined }));
  const failed = [...failedTests, ...unloaded];
  return { passed: of("passed"), failed, isBroken: status !== 0 && failed.length === 0 };
}
