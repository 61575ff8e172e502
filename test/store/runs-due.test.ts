import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { endpointOf } from "../../src/domain/endpoint.ts";
import { type DueQuery, type DueRuns, dueRuns } from "../../src/store/runs-due.ts";
import { type RunWorld, runWorld } from "../support/runs.ts";

/** Due tasks in this order, each for the endpoint of its letter; all due at once where `together`. */
async function scheduled(world: RunWorld, letters: string, together = false): Promise<void> {
  for (const [n, letter] of [...letters].entries()) {
    await world.tasks.scheduleTask({
      url: `https://a.example/${letter}`,
      runAt: timestampFromMs(together ? 0 : n),
    });
  }
}

const endpointIdOf = (letter: string) => endpointOf(`https://a.example/${letter}`).endpointId;

/** The letters of what was found: of the first ones, then of those beyond. */
function lettersOf({ runs }: DueRuns): [string, string] {
  const names = new Map([..."abcdefgh"].map((letter) => [endpointIdOf(letter), letter]));
  const letters = (beyond: boolean) =>
    runs.filter((run) => run.beyond === beyond).map(({ endpointId }) => names.get(endpointId));
  return [letters(false).join(""), letters(true).join("")];
}

/** Looks until there is nothing more beyond, and says what each look has found there. */
async function sweep(world: RunWorld, query: DueQuery & { readonly reads: number }): Promise<string[]> {
  const found: string[] = [];
  let { next } = await dueRuns(world.db, query);
  while (next !== undefined) {
    expect(found.length).toBeLessThan(20);
    const looked = await dueRuns(world.db, { ...query, beyond: { after: next, reads: query.reads } });
    found.push(lettersOf(looked)[1]);
    next = looked.next;
  }
  return found;
}

describe.each([
  ["one after the other", false],
  ["at one instant", true],
])("a look beyond the first runs, which are due %s", (_, together) => {
  test("goes on from where the last one ended, and finds those of other endpoints", async () => {
    await using world = await runWorld();
    await scheduled(world, "aaaaabaaacaaadd", together);
    const first = await dueRuns(world.db, { limit: 3, parkedLimit: 3 });
    expect(lettersOf(first)).toEqual(["aaa", ""]);
    expect(first.more).toBe(true);
    expect(await sweep(world, { limit: 3, parkedLimit: 3, reads: 4 })).toEqual(["b", "c", "dd", ""]);
  });

  test("passes over full endpoints, and has an end", async () => {
    await using world = await runWorld();
    await scheduled(world, "aaabcbcb", together);
    const full = [{ projectId: world.projectId, endpointId: endpointIdOf("b") }];
    expect(await sweep(world, { limit: 3, parkedLimit: 3, full, reads: 5 })).toEqual(["cc", ""]);
    expect(await sweep(world, { limit: 3, parkedLimit: 3, full, reads: 9 })).toEqual(["cc"]);
  });

  test("finds no more than it may, and goes on behind the last one", async () => {
    await using world = await runWorld();
    await scheduled(world, "aabbbbcd", together);
    expect(await sweep(world, { limit: 2, parkedLimit: 2, reads: 100 })).toEqual(["bb", "bb", "cd", ""]);
  });

  test("finds no more than eight of one endpoint", async () => {
    await using world = await runWorld();
    await scheduled(world, `${"a".repeat(10)}${"b".repeat(9)}c`, together);
    expect(await sweep(world, { limit: 10, parkedLimit: 10, reads: 100 })).toEqual([`${"b".repeat(8)}c`]);
  });
});
