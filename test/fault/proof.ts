import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import { call, until } from "./calls.ts";
import { check } from "./checker.ts";
import type { Recorder } from "./history.ts";
import type { Workload } from "./workload.ts";

/** What the clients' clock and the server's may differ by within a lease where neither is set: they are one machine's. */
const DRIFT_MS = 20;
const SHOWN = 20;

/** Watches whether the machine's clock, which is the database's, is set while a test runs. */
export interface ClockSlip extends AsyncDisposable {
  /** By how much it was, in milliseconds. */
  readonly ms: number;
}

export function clockSlip(): ClockSlip {
  const offset = (): number => Date.now() - performance.now();
  let least = offset();
  let most = least;
  const look = (): void => {
    least = Math.min(least, offset());
    most = Math.max(most, offset());
  };
  const timer = setInterval(look, 100);
  return {
    get ms() {
      look();
      return most - least;
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
    },
  };
}

/**
 * Waits until the queue is empty by its own account and then by pulls from every node. The clients have to be at work:
 * what they have in hand comes to an end by them or by time.
 */
export async function drain(work: Workload): Promise<void> {
  await until("the queue is empty", 120_000, async () => {
    const outcome = await call(work.urls()[0] ?? "", "GET", `/queue/stats/${work.queue}`);
    if (outcome.kind !== "ok") return undefined;
    const { available, delayed, in_flight } = outcome.body;
    return available + delayed + in_flight === 0 ? true : undefined;
  });
  for (const url of work.urls()) {
    const outcome = await call(url, "POST", "/queue/consume", { queue: work.queue, wait_seconds: 1 });
    expect(outcome).toMatchObject({ kind: "ok", body: { messages: [] } });
  }
  work.history.drained = true;
}

/** Fails where the history shows a broken promise. The whole history is left in a file then. */
export async function expectPromisesKept(name: string, history: Recorder, slip: ClockSlip): Promise<void> {
  const { publications, handOuts, settlements, redeliveries, unknowns, streams } = history;
  const unanswered = [...unknowns].map(([what, count]) => `\n  ${count} × ${what}`).join("");
  console.log(
    `${name}: ${publications.length} published, ${handOuts.length} hand-outs, ${redeliveries} of them again, ` +
      `${settlements.length} settlements, ${streams.length} streams; without an answer:${unanswered}`,
  );
  const violations = check(history, DRIFT_MS + slip.ms);
  if (violations.length === 0) return;
  const file = join(tmpdir(), `carillon-history-${process.pid}-${Date.now()}.json`);
  await writeFile(file, JSON.stringify({ violations, publications, handOuts, settlements }));
  const shown = violations.slice(0, SHOWN).map(({ kind, text }) => `${kind}: ${text}`);
  expect.fail(`${name}: ${violations.length} violations, history in ${file}:\n${shown.join("\n")}`);
}
