import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, inject, onTestFinished, test } from "vitest";
import { startProgram } from "./harness.ts";

/** It starts a node and sends for eight seconds; the rest is for a busy machine. */
const TEST_MS = 120_000;

test(
  "the benchmark runs, prints how near Carillon comes to its goals, and writes what it measured",
  async () => {
    const dir = await mkdtemp(join(tmpdir(), "carillon-bench-test-"));
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    // Not the template itself, which others clone while nobody is connected to it.
    const serverUrl = inject("databaseUrl").replace(/^(postgres(?:ql)?:\/\/[^/]*\/)[^?]*/, "$1postgres");
    await using bench = startProgram(
      process.execPath,
      ["bench/run.ts", "--only=publish", "--rounds=1", "--seconds=1", "--no-peers", `--output=${dir}`],
      { CARILLON_BENCH_DATABASE_URL: serverUrl },
    );
    const { code, stdout, stderr } = await bench.ended;

    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/^goal +what +bound +min +median +max$/m);
    expect(stdout).toMatch(/^1 +publish over gRPC \/ graphile-worker .*not measured$/m);
    const results = JSON.parse(await readFile(join(dir, "publish.json"), "utf8"));
    expect(results.versions.node).toBe(process.version);
    for (const face of ["gRPC", "Connect JSON", "Connect binary", "REST"]) {
      const [measured] = results.rounds[`Carillon ${face}`];
      expect(measured.per_s, face).toBeGreaterThan(0);
    }
  },
  TEST_MS,
);
