import { describe, expect, test } from "vitest";
import { type Load, type Room, share } from "../../src/domain/fair-share.ts";

interface Due {
  readonly projectId: string;
  readonly endpointId: string;
  readonly blocked: boolean;
}

function due(count: number, projectId: string, endpointId: string, blocked = false): Due[] {
  return Array.from({ length: count }, () => ({ projectId, endpointId, blocked }));
}

const room: Room = { proven: 8, new: 4, slow: 2 };

function shareOf(
  candidates: readonly Due[],
  loads: Record<string, Partial<Load>> = {},
  busy: Record<string, number> = {},
) {
  const shares = share(
    candidates,
    ({ endpointId }) => ({ standing: "proven", inFlight: 0, window: 100, ...loads[endpointId] }),
    (projectId) => busy[projectId] ?? 0,
    room,
  );
  const count = (of: readonly Due[]) => {
    const entries = Object.entries(Object.groupBy(of, ({ endpointId }) => endpointId));
    return Object.fromEntries(entries.map(([id, items]) => [id, items?.length]));
  };
  const { scarce } = shares;
  return { chosen: count(shares.chosen), blocked: count(shares.blocked), full: count(shares.full), scarce };
}

describe("the room is shared", () => {
  test("among endpoints, however much longer one of them is due", () => {
    expect(shareOf([...due(200, "p", "a"), ...due(2, "p", "b")]).chosen).toEqual({ a: 6, b: 2 });
  });

  test("among projects first, and among the endpoints of each then", () => {
    const candidates = [...due(50, "p", "a"), ...due(50, "p", "b"), ...due(50, "p", "c"), ...due(50, "q", "d")];
    expect(shareOf(candidates).chosen).toEqual({ a: 2, b: 1, c: 1, d: 4 });
  });

  test("counting what is under way already", () => {
    expect(shareOf([...due(50, "p", "a"), ...due(50, "q", "b")], {}, { p: 6 }).chosen).toEqual({ a: 1, b: 7 });
  });

  test("up to the window of an endpoint, and what is beyond it is told", () => {
    const loads = { a: { inFlight: 3, window: 5 } };
    expect(shareOf(due(10, "p", "a"), loads)).toEqual({
      chosen: { a: 2 },
      blocked: {},
      full: { a: 8 },
      scarce: new Set(),
    });
  });

  test("and what waits for the room alone is in nobody's way", () => {
    expect(shareOf(due(20, "p", "a"), { a: { window: 8 } })).toEqual({
      chosen: { a: 8 },
      blocked: {},
      full: {},
      scarce: new Set(["proven"]),
    });
  });

  test("so that new endpoints leave some to proven ones, and slow ones all of it", () => {
    const loads = { n: { standing: "new" }, s: { standing: "slow" } } as const;
    const candidates = [...due(50, "p", "n"), ...due(50, "p", "s"), ...due(50, "p", "good")];
    expect(shareOf(candidates, loads)).toMatchObject({
      chosen: { n: 4, good: 4, s: 2 },
      scarce: new Set(["new", "slow", "proven"]),
    });
  });

  test("and what some were left behind for is told", () => {
    const loads = { n: { standing: "new" } } as const;
    expect(shareOf([...due(5, "p", "n"), ...due(2, "p", "good")], loads).scarce).toEqual(new Set(["new"]));
    expect(shareOf([...due(4, "p", "n"), ...due(2, "p", "good")], loads).scarce).toEqual(new Set());
  });

  test("by nobody whose endpoint takes nothing", () => {
    expect(shareOf([...due(3, "p", "a", true), ...due(1, "p", "b")])).toMatchObject({
      chosen: { b: 1 },
      blocked: { a: 3 },
    });
  });
});
