import { describe, expect, test } from "vitest";
import { effectiveAt } from "../../src/domain/spreading.ts";

const AT = new Date("2026-05-01T12:00:00Z");
const TOMORROW = new Date("2026-05-02T12:00:00Z");
const lateness = (spreadSeconds: number, jitterSeconds: number, seed: string, at = AT, next?: Date) =>
  (effectiveAt({ spreadSeconds, jitterSeconds }, seed, at, next).getTime() - at.getTime()) / 1000;

describe("the effective time of a fire", () => {
  test("is the fire time where nothing is spread", () => {
    expect(lateness(0, 0, "cron_1")).toBe(0);
  });

  test("keeps the job's own place in the window, and jobs fill the window evenly", () => {
    const places = Array.from({ length: 1000 }, (_, index) => lateness(600, 0, `cron_${index}`));
    expect(lateness(600, 0, "cron_7", TOMORROW)).toBe(places[7]);
    expect(Math.max(...places)).toBeLessThan(600);
    for (let minute = 0; minute < 10; minute++) {
      const inMinute = places.filter((place) => Math.floor(place / 60) === minute).length;
      expect(inMinute).toBeGreaterThan(60);
      expect(inMinute).toBeLessThan(140);
    }
  });

  test("moves by chance from fire to fire, and is the same for the same fire", () => {
    const fires = Array.from({ length: 50 }, (_, index) => new Date(AT.getTime() + index * 86_400_000));
    const delays = fires.map((at) => lateness(0, 60, "cron_1", at));
    expect(new Set(delays).size).toBeGreaterThan(40);
    expect(fires.map((at) => lateness(0, 60, "cron_1", at))).toEqual(delays);
  });

  test("is always before the next fire time", () => {
    for (let index = 0; index < 100; index++) {
      const delay = lateness(86_400, 86_400, `cron_${index}`, AT, new Date(AT.getTime() + 1000));
      expect(delay).toBeLessThan(1);
    }
  });
});
