import { expect, test } from "vitest";
import { Wakeups } from "../../src/db/wakeups.ts";
import { startLoop, type TickResult } from "../../src/worker/loop.ts";

const FOR_EVER_MS = 600_000;

/** A tick that gives the results in turn, then nothing to do; `at(n)` resolves when it runs for the nth time. */
function scripted(results: readonly (TickResult | Error)[]) {
  const runs = Array.from({ length: 20 }, () => Promise.withResolvers<void>());
  let count = 0;
  return {
    at: (run: number) => runs[run - 1]?.promise,
    count: () => count,
    async tick(): Promise<TickResult> {
      const result = results[count] ?? { done: 0 };
      runs[count++]?.resolve();
      if (result instanceof Error) throw result;
      return result;
    },
  };
}

const onError = (name: string, error: unknown) => expect.fail(`${name}: ${error}`);

test("goes on at once while there is work", async () => {
  const script = scripted([{ done: 1 }, { done: 1 }, { done: 0 }]);
  await using _ = startLoop(script.tick, { name: "t", idleMs: FOR_EVER_MS, onError });
  await script.at(3);
  expect(script.count()).toBe(3);
});

test("ticks when the next thing is due", async () => {
  const script = scripted([{ done: 0, nextDueInMs: 30 }]);
  const startedMs = performance.now();
  await using _ = startLoop(script.tick, { name: "t", idleMs: FOR_EVER_MS, onError });
  await script.at(2);
  expect(performance.now() - startedMs).toBeGreaterThanOrEqual(29);
});

test("ticks again for a wake-up that came while it was ticking", async () => {
  // Nobody listens at the other end, so that no echo by NOTIFY comes later and hides a hint that was lost.
  await using wakeups = new Wakeups("postgres://127.0.0.1:1/nothing");
  const inTick = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  const again = Promise.withResolvers<void>();
  let count = 0;
  const tick = async (): Promise<TickResult> => {
    if (++count === 1) {
      inTick.resolve();
      await release.promise;
    } else again.resolve();
    return { done: 0 };
  };
  await using _ = startLoop(tick, { name: "t", idleMs: FOR_EVER_MS, wakeups, topic: "runs", onError });
  await inTick.promise;
  wakeups.wake("runs");
  release.resolve();
  await again.promise;
});

test("tells of the first error of a streak only, and goes on", async () => {
  const script = scripted([new Error("1"), new Error("2"), { done: 1 }, new Error("3")]);
  const told: string[] = [];
  await using _ = startLoop(script.tick, { name: "t", idleMs: 1, onError: (_name, error) => told.push(`${error}`) });
  await script.at(5);
  expect(told).toEqual(["Error: 1", "Error: 3"]);
});

test("disposing tells the tick in hand and waits for it", async () => {
  const inTick = Promise.withResolvers<void>();
  let ended = false;
  const loop = startLoop(
    (signal) =>
      new Promise((resolve) => {
        signal.addEventListener("abort", () => {
          setImmediate(() => {
            ended = true;
            resolve({ done: 1 });
          });
        });
        inTick.resolve();
      }),
    { name: "t", idleMs: 1, onError },
  );
  await inTick.promise;
  await loop[Symbol.asyncDispose]();
  expect(ended).toBe(true);
});

test("a pass ends the wait, and gives the result of a tick that began after it was asked for", async () => {
  const script = scripted([{ done: 0 }, { done: 0, nextDueInMs: 7 }]);
  await using loop = startLoop(script.tick, { name: "t", idleMs: FOR_EVER_MS, onError });
  await script.at(1);
  expect(await loop.pass()).toEqual({ done: 0, nextDueInMs: 7 });
  expect(script.count()).toBe(2);
});

test("a pass fails with its tick, and when the loop ends", async () => {
  const script = scripted([{ done: 0 }, new Error("no database")]);
  const loop = startLoop(script.tick, { name: "t", idleMs: FOR_EVER_MS, onError: () => {} });
  await script.at(1);
  await expect(loop.pass()).rejects.toThrow("no database");
  const last = expect(loop.pass()).rejects.toThrow("the t has ended");
  await loop[Symbol.asyncDispose]();
  await last;
  await expect(loop.pass()).rejects.toThrow("the t has ended");
});

test("while it is held there is a tick for each pass and no other, and afterwards it goes on by itself", async () => {
  const script = scripted([{ done: 0 }, { done: 1 }, { done: 1 }]);
  await using wakeups = new Wakeups("postgres://127.0.0.1:1/nothing");
  await using loop = startLoop(script.tick, { name: "t", idleMs: FOR_EVER_MS, wakeups, topic: "runs", onError });
  await script.at(1);
  const release = loop.hold();
  expect(await loop.pass()).toEqual({ done: 1 });
  wakeups.wakeHere("runs");
  expect(await loop.pass()).toEqual({ done: 1 });
  await new Promise(setImmediate);
  expect(script.count()).toBe(3);
  release();
  await script.at(4);
});
