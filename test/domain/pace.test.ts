import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isOver, rampFor, rateAt, slowedFrom, takeSlots } from "../../src/domain/pace.ts";

/** When each of a backlog goes that is asked for every `everyMs` under a ramp, in milliseconds from its start. */
function drain(backlog: number, everyMs: () => number): number[] {
  const pace = rampFor(backlog, 0);
  const sent: number[] = [];
  let nextSlotMs = 0;
  for (let now = 0; sent.length < backlog; now += everyMs()) {
    const slots = takeSlots(nextSlotMs, rateAt(pace, now), backlog - sent.length, now);
    nextSlotMs = slots.nextSlotMs;
    for (let count = 0; count < slots.granted; count++) sent.push(now);
  }
  return sent;
}

describe("a ramp", () => {
  test.each([10_000, 1_000, 100])(
    "gives a backlog of %d in 52 seconds, no second of it over twice the mean",
    (backlog) => {
      const sent = drain(backlog, () => 20);
      const seconds = (sent.at(-1) ?? 0) / 1_000;
      expect(seconds).toBeGreaterThan(48);
      expect(seconds).toBeLessThan(56);
      const perSecond = [...Map.groupBy(sent, (at) => Math.floor(at / 1_000)).values()];
      const busiest = Math.max(...perSecond.map(({ length }) => length));
      expect(busiest).toBeLessThan((2 * backlog) / seconds);
    },
  );

  test("keeps within twice the mean however unevenly it is asked", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1_000, max: 5_000 }),
        fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }),
        (backlog, gaps) => {
          let turn = 0;
          const sent = drain(backlog, () => gaps[turn++ % gaps.length] ?? 1);
          const mean = (1_000 * backlog) / (sent.at(-1) ?? 1);
          for (let first = 0, last = 0; last < sent.length; last++) {
            while ((sent[first] ?? 0) <= (sent[last] ?? 0) - 1_000) first++;
            expect(last - first + 1).toBeLessThanOrEqual(2 * mean + 2);
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test("is over after a minute, once nothing waits", () => {
    const ramp = rampFor(1_000, 0);
    expect(isOver(ramp, 0, 59_999)).toBe(false);
    expect(isOver(ramp, 1, 600_000)).toBe(false);
    expect(isOver(ramp, 0, 60_000)).toBe(true);
  });
});

test("an endpoint that is slowed down gets half of what it got, and that again after a minute at most", () => {
  const pace = slowedFrom(80, 0);
  expect(rateAt(pace, 0)).toBe(40);
  expect(rateAt(pace, 60_000)).toBe(80);
  expect(rateAt(slowedFrom(0, 0), 0)).toBe(1);
});

test("no second has more than the rate below 20 a second, and no more than 1.1 times the rate above", () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0.5, max: 500, noNaN: true }),
      fc.array(fc.integer({ min: 1, max: 3_000 }), { minLength: 1, maxLength: 200 }),
      (rate, gaps) => {
        const sent: number[] = [];
        let nextSlotMs = 0;
        let now = 10_000;
        for (const gap of gaps) {
          now += gap;
          const slots = takeSlots(nextSlotMs, rate, 1_000, now);
          nextSlotMs = slots.nextSlotMs;
          for (let count = 0; count < slots.granted; count++) sent.push(now);
        }
        const most = rate < 20 ? Math.ceil(rate) : 1.1 * rate + 1;
        for (let first = 0, last = 0; last < sent.length; last++) {
          while ((sent[first] ?? 0) <= (sent[last] ?? 0) - 1_000) first++;
          expect(last - first + 1).toBeLessThanOrEqual(most);
        }
      },
    ),
  );
});
