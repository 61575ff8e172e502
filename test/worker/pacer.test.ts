import { setImmediate as turnOfLoop } from "node:timers/promises";
import { expect, test } from "vitest";
import { Pacer } from "../../src/worker/pacer.ts";

test("what waits goes on a few at a time, in order, with turns of the event loop in between", async () => {
  const pacer = new Pacer(3);
  const begun: number[] = [];
  const all = [0, 1, 2, 3, 4, 5, 6].map(async (n) => {
    await pacer.turn();
    begun.push(n);
  });
  const counts: number[] = [];
  for (let turn = 0; turn < 4; turn++) {
    counts.push(begun.length);
    await turnOfLoop();
  }
  await Promise.all(all);
  expect(counts).toEqual([0, 3, 6, 7]);
  expect(begun).toEqual([0, 1, 2, 3, 4, 5, 6]);
  // And again after all have begun.
  await pacer.turn();
});

test("of a thousand a part begins in each turn, so that none waits for hundreds of turns", async () => {
  const pacer = new Pacer(3);
  let begun = 0;
  for (let n = 0; n < 1_000; n++) void pacer.turn().then(() => begun++);
  let turns = 0;
  for (; begun < 1_000 && turns < 1_000; turns++) await turnOfLoop();
  expect(turns).toBeLessThan(100);
});
