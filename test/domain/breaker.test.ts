import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  admitProbe,
  afterCounts,
  afterProbe,
  type Breaker,
  CLOSED,
  CLOSING_SUCCESSES,
  DISABLED,
  FIRST_PROBE_WAIT_MS,
  LONGEST_PROBE_WAIT_MS,
} from "../../src/domain/breaker.ts";

const opened = afterCounts(CLOSED, { succeeded: 0, failed: 10 }, 0);

describe("a closed breaker", () => {
  test.each([
    { succeeded: 0, failed: 9, state: "closed" },
    { succeeded: 0, failed: 10, state: "open" },
    { succeeded: 3, failed: 7, state: "open" },
    { succeeded: 4, failed: 7, state: "closed" },
    { succeeded: 31, failed: 69, state: "closed" },
    { succeeded: 30, failed: 70, state: "open" },
  ])("is $state after $failed failures and $succeeded successes", ({ state, ...counts }) => {
    expect(afterCounts(CLOSED, counts, 0).state).toBe(state);
  });
});

describe("an open breaker", () => {
  test("lets one probe through after 30 s, and after each that fails or is lost twice as long, up to 10 min", () => {
    const waits: number[] = [];
    let breaker = opened;
    for (let now = 0, last = 0; waits.length < 8; now += 1_000) {
      const probing = admitProbe(breaker, now);
      if (probing === undefined) continue;
      waits.push((now - last) / 1_000);
      last = now;
      breaker = waits.length % 2 === 0 ? probing : afterProbe(probing, false, now + 500);
    }
    expect(waits).toEqual([30, 60, 120, 240, 480, 600, 600, 600]);
  });

  test("closes after three probes that succeed, 30 s apart", () => {
    let breaker: Breaker = opened;
    const states: string[] = [];
    for (const at of [30_000, 60_000, 90_000]) {
      breaker = afterProbe(admitProbe(breaker, at) ?? expect.fail(`no probe at ${at}`), true, at);
      states.push(breaker.state);
    }
    expect(states).toEqual(["half_open", "half_open", "closed"]);
  });

  test("begins anew when fewer than half of the probes since the first success have succeeded", () => {
    let breaker: Breaker = { ...opened, state: "half_open" };
    for (const succeeded of [true, false]) breaker = afterProbe(breaker, succeeded, 0);
    expect(breaker).toMatchObject({ state: "half_open", probesSucceeded: 1, probesFailed: 1 });
    breaker = afterProbe(breaker, false, 0);
    expect(breaker).toMatchObject({ state: "open", probesSucceeded: 0, probesFailed: 0 });
  });
});

test("a disabled breaker is moved by nothing that requests do", () => {
  expect(afterCounts(DISABLED, { succeeded: 0, failed: 100 }, 0)).toBe(DISABLED);
  expect(afterProbe(DISABLED, true, 0)).toBe(DISABLED);
  expect(admitProbe(DISABLED, Number.MAX_SAFE_INTEGER)).toBeUndefined();
});

type Step = { readonly waitMs: number; readonly end: "succeeded" | "failed" | "lost" };

const steps = fc.array(
  fc.record({
    waitMs: fc.integer({ min: 0, max: 2 * LONGEST_PROBE_WAIT_MS }),
    end: fc.constantFrom<Step["end"]>("succeeded", "failed", "lost"),
  }),
  { maxLength: 60 },
);

/** Every probe that went out of an open breaker, and where it stood after that. */
function walk(path: readonly Step[]): { readonly at: number; readonly end: Step["end"]; readonly after: Breaker }[] {
  const probes = [];
  let breaker = opened;
  let now = 0;
  for (const { waitMs, end } of path) {
    now += waitMs;
    const probing = admitProbe(breaker, now);
    if (probing === undefined) continue;
    breaker = end === "lost" ? probing : afterProbe(probing, end === "succeeded", now);
    probes.push({ at: now, end, after: breaker });
  }
  return probes;
}

describe("whatever happens, a breaker", () => {
  test("sends no two probes within 30 seconds, and waits no longer than 10 minutes", () => {
    fc.assert(
      fc.property(steps, (path) => {
        let last = 0;
        for (const { at, after } of walk(path)) {
          expect(at - last).toBeGreaterThanOrEqual(FIRST_PROBE_WAIT_MS);
          if (after.state !== "closed") {
            expect((after.nextProbeAtMs ?? Number.NaN) - at).toBeGreaterThanOrEqual(FIRST_PROBE_WAIT_MS);
            expect((after.nextProbeAtMs ?? Number.NaN) - at).toBeLessThanOrEqual(LONGEST_PROBE_WAIT_MS);
          }
          last = at;
        }
      }),
    );
  });

  test("closes only by a success, with three of them and no fewer than failures since the first", () => {
    fc.assert(
      fc.property(steps, (path) => {
        const probes = walk(path);
        const closing = probes.findIndex(({ after }) => after.state === "closed");
        if (closing < 0) return;
        expect(probes[closing]?.end).toBe("succeeded");
        const told = probes.slice(0, closing + 1).filter(({ end }) => end !== "lost");
        const trial = told.slice(told.findLastIndex(({ after }) => after.state === "open") + 1);
        const successes = trial.filter(({ end }) => end === "succeeded").length;
        expect(successes).toBeGreaterThanOrEqual(CLOSING_SUCCESSES);
        expect(2 * successes).toBeGreaterThanOrEqual(trial.length);
      }),
    );
  });

  test("can always be closed again by probes that succeed", () => {
    fc.assert(
      fc.property(steps, (path) => {
        const before = walk(path).at(-1);
        let breaker = before?.after ?? opened;
        let now = before?.at ?? 0;
        for (let probes = 0; probes < 100 && breaker.state !== "closed"; probes++) {
          now += LONGEST_PROBE_WAIT_MS;
          breaker = afterProbe(admitProbe(breaker, now) ?? expect.fail("no probe"), true, now);
        }
        expect(breaker).toEqual(CLOSED);
      }),
    );
  });
});
