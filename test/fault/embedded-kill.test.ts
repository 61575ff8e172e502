import { expect, test } from "vitest";
import { identifyProcess } from "../../src/db/embedded-processes.ts";
import { processesOf, usedDataDir } from "../db/embedded-harness.ts";
import { call, eachOf, must, until } from "./calls.ts";
import { postmasterPid } from "./cluster.ts";
import { startNode } from "./node.ts";

const MESSAGES = 600;
const KILL_AFTER = 200;

test("kill -9 of a Carillon with its own PostgreSQL loses nothing that it acknowledged", async () => {
  const dataDir = await usedDataDir();
  const env = { CARILLON_DATA_DIR: dataDir, CARILLON_DATABASE_URL: "", DATABASE_URL: "" };
  const doomed = await startNode(env);
  const serverPid = await postmasterPid(dataDir);
  const server = await identifyProcess(serverPid);
  expect(server).toBeDefined();

  const acked = new Set<number>();
  const unknown = new Set<number>();
  let killed: Promise<void> | undefined;
  await eachOf(
    Array.from({ length: MESSAGES }, (_, n) => n),
    16,
    async (n) => {
      const outcome = await call(
        doomed.url,
        "POST",
        "/queue/publish",
        { queue: "orders", payload: { n } },
        { key: `k${n}` },
      );
      if (outcome.kind === "ok") acked.add(n);
      else if (outcome.kind === "unknown") unknown.add(n);
      else throw new Error(JSON.stringify(outcome));
      if (acked.size >= KILL_AFTER) killed ??= doomed.kill();
    },
  );
  await killed;
  expect(doomed.child.signalCode).toBe("SIGKILL");
  expect(acked.size).toBeGreaterThanOrEqual(KILL_AFTER);
  expect(unknown.size).toBeGreaterThan(0);

  // The new one takes the directory over, so the old server must have ended.
  const next = await startNode(env);
  expect(await identifyProcess(serverPid)).not.toEqual(server);
  expect(await postmasterPid(dataDir)).not.toBe(serverPid);

  await eachOf(unknown, 16, async (n) => {
    await must(next.url, "POST", "/queue/publish", { queue: "orders", payload: { n } }, { key: `k${n}` });
  });
  const found: number[] = [];
  for (;;) {
    const { messages } = await must(next.url, "POST", "/queue/consume", { queue: "orders", max_messages: 100 });
    if (messages.length === 0) break;
    for (const { payload } of messages) found.push(payload.n);
  }
  expect(found.sort((a, b) => a - b)).toEqual(Array.from({ length: MESSAGES }, (_, n) => n));

  expect((await next.terminate()).code).toBe(0);
  await until("no process of the directory is left", 10_000, async () =>
    (await processesOf(dataDir)).length === 0 ? true : undefined,
  );
});
