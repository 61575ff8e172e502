import { defineConfig } from "vitest/config";

/** Starts one PostgreSQL for the whole run, with a migrated template that every test file clones. */
const database = ["test/support/global-setup.ts"];

export default defineConfig({
  test: {
    // A database server works beside the workers: more of them than cores only makes deadlines flaky.
    maxWorkers: 2,
    testTimeout: 60_000,
    // What is waited for takes milliseconds, but not on a machine that is busy with something else.
    expect: { poll: { timeout: 20_000 } },
    hookTimeout: 60_000,
    projects: [
      {
        extends: true,
        test: { name: "unit", include: ["test/*.test.ts", "test/{domain,rest,vault,webhook,http}/**/*.test.ts"] },
      },
      {
        extends: true,
        test: {
          name: "db",
          include: ["test/{db,store,worker,rpc,cli,golden}/**/*.test.ts"],
          globalSetup: database,
        },
      },
      { extends: true, test: { name: "contract", include: ["test/contract/**/*.test.ts"], globalSetup: database } },
      // Slow and only by name: kills processes, steps clocks, cuts connections.
      {
        extends: true,
        test: { name: "fault", include: ["test/fault/**/*.test.ts"], globalSetup: database, testTimeout: 300_000 },
      },
    ],
  },
});
