import { describe, expect, test } from "vitest";
import { leastBusyFirst, placesFor } from "../../src/domain/push-places.ts";

describe("the places of a subscription", () => {
  /** How many requests each of `count` subscriptions holds that take all they can and never end. */
  const held = (count: number, window: number, ownLimit: number | null = null): number[] => {
    const own = new Array<number>(count).fill(0);
    for (let round = 0; round < 50; round++) {
      for (let i = 0; i < count; i++) {
        const free = 64 - own.reduce((sum, one) => sum + one, 0);
        const one = own[i] ?? 0;
        own[i] = one + placesFor({ free, toEndpoint: one, window, own: one, ownLimit });
      }
    }
    return own;
  };

  test("are no more than its endpoint may have, so that some that hang hold little", () => {
    expect(held(5, 2)).toEqual([2, 2, 2, 2, 2]);
    expect(placesFor({ free: 64, toEndpoint: 2, window: 2, own: 0, ownLimit: null })).toBe(0);
  });

  test("are most of all places for one that does well, but never all", () => {
    const [own = 0] = held(1, 1_000);
    expect(own).toBeGreaterThanOrEqual(44);
    expect(own).toBeLessThan(64);
  });

  test("are one at least for each while there is any, and never more than its own limit", () => {
    expect(held(64, 1)).toEqual(new Array(64).fill(1));
    expect(held(3, 1_000, 2)).toEqual([2, 2, 2]);
    expect(placesFor({ free: 0, toEndpoint: 0, window: 4, own: 0, ownLimit: null })).toBe(0);
  });
});

test("the next is always of a project with the least under way, and of one project in order", () => {
  const busy: Record<string, number> = { a: 0, b: 3 };
  const order: string[] = [];
  for (const item of leastBusyFirst(
    ["b1", "a1", "a2", "a3", "a4", "b2", "a5"],
    ([project = ""]) => busy[project] ?? 0,
  )) {
    order.push(item);
    busy[item[0] ?? ""] = (busy[item[0] ?? ""] ?? 0) + 1;
  }
  expect(order).toEqual(["a1", "a2", "a3", "b1", "a4", "b2", "a5"]);
});
