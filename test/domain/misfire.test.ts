import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type FirePlan,
  MAX_COUNTED_MISSES,
  MAX_FIRES_PER_CALL,
  type MisfirePolicy,
  planFires,
} from "../../src/domain/misfire.ts";
import { nextFireAt, parseSchedule } from "../../src/domain/schedule.ts";

const schedule = (expression: string, timezone = "UTC") => parseSchedule({ expression, timezone, seed: "" });
const every5Minutes = schedule("*/5 * * * *");
const everySecond = schedule("* * * * * *");
const at = (time: string) => new Date(`2026-05-01T${time}Z`);
const DUE = at("12:00:00");

function summary(plan: FirePlan) {
  const time = (date: Date | undefined) => date?.toISOString().slice(11, 19);
  return {
    fire: plan.fire.map((fire) => `${time(fire.fireAt)}${fire.caughtUp ? " late" : ""}`),
    missed: plan.missed && `${time(plan.missed.from)}-${time(plan.missed.to)} ${plan.missed.count}`,
    next: time(plan.next),
  };
}

const plan = (policy: MisfirePolicy, now: string, windowSeconds?: number) =>
  summary(planFires(every5Minutes, DUE, at(now), policy, windowSeconds));

describe("a fire that is on time", () => {
  test.each(["skip", "once", "all"] as const)("runs under %s", (policy) => {
    const onTime = { fire: ["12:00:00"], missed: undefined, next: "12:05:00" };
    expect(plan(policy, "12:00:00")).toEqual(onTime);
    expect(plan(policy, "12:00:10")).toEqual(onTime);
    expect(plan(policy, "11:59:59.999")).toEqual({ fire: [], missed: undefined, next: "12:00:00" });
  });

  test.each(["skip", "once", "all"] as const)("runs with every other one of the last 10 s under %s", (policy) => {
    const result = summary(planFires(everySecond, DUE, at("12:00:03"), policy));
    expect(result).toEqual({
      fire: ["12:00:00", "12:00:01", "12:00:02", "12:00:03"],
      missed: undefined,
      next: "12:00:04",
    });
  });
});

describe("fires that are late", () => {
  test("skip: none of them runs and each is counted", () => {
    expect(plan("skip", "12:00:11")).toEqual({ fire: [], missed: "12:00:00-12:00:00 1", next: "12:05:00" });
    expect(plan("skip", "12:14:00")).toEqual({ fire: [], missed: "12:00:00-12:10:00 3", next: "12:15:00" });
    expect(plan("skip", "12:15:02")).toEqual({ fire: ["12:15:00"], missed: "12:00:00-12:10:00 3", next: "12:20:00" });
  });

  test("once: only the latest one runs and the earlier ones are counted", () => {
    expect(plan("once", "12:00:11")).toEqual({ fire: ["12:00:00 late"], missed: undefined, next: "12:05:00" });
    expect(plan("once", "12:14:00")).toEqual({
      fire: ["12:10:00 late"],
      missed: "12:00:00-12:05:00 2",
      next: "12:15:00",
    });
    expect(plan("once", "12:15:02")).toEqual({ fire: ["12:15:00"], missed: "12:00:00-12:10:00 3", next: "12:20:00" });
  });

  test("once: nothing runs when the latest one is older than the window", () => {
    expect(plan("once", "12:04:00", 239)).toEqual({ fire: [], missed: "12:00:00-12:00:00 1", next: "12:05:00" });
    expect(plan("once", "12:04:00", 240)).toEqual({ fire: ["12:00:00 late"], missed: undefined, next: "12:05:00" });
  });

  test("all: every one in the window runs, oldest first, and those before it are counted", () => {
    expect(plan("all", "12:14:00")).toEqual({
      fire: ["12:00:00 late", "12:05:00 late", "12:10:00 late"],
      missed: undefined,
      next: "12:15:00",
    });
    expect(plan("all", "12:14:00", 600)).toEqual({
      fire: ["12:05:00 late", "12:10:00 late"],
      missed: "12:00:00-12:00:00 1",
      next: "12:15:00",
    });
    expect(plan("all", "12:04:00", 10)).toEqual({ fire: [], missed: "12:00:00-12:00:00 1", next: "12:05:00" });
  });

  test("all: a long backlog is handed out in bounded parts without a loss or a repeat", () => {
    const now = at("12:30:00");
    const seen: number[] = [];
    let due: Date | undefined = DUE;
    while (due !== undefined && due <= now) {
      const part = planFires(everySecond, due, now, "all");
      expect(part.fire.length).toBeLessThanOrEqual(MAX_FIRES_PER_CALL);
      expect(part.missed).toBeUndefined();
      seen.push(...part.fire.map((fire) => fire.fireAt.getTime()));
      due = part.next;
    }
    expect(seen).toEqual(Array.from({ length: 1801 }, (_, i) => DUE.getTime() + i * 1000));
  });

  test("a schedule that has ended leaves no next fire", () => {
    const ended = schedule("0 0 12 1 5 ? 2026");
    expect(summary(planFires(ended, DUE, at("12:20:00"), "once"))).toEqual({
      fire: ["12:00:00 late"],
      missed: undefined,
      next: undefined,
    });
    expect(summary(planFires(ended, DUE, at("12:20:00"), "skip"))).toEqual({
      fire: [],
      missed: "12:00:00-12:00:00 1",
      next: undefined,
    });
  });
});

describe("a job by the second that was down for three weeks", () => {
  const now = new Date(DUE.getTime() + 21 * 86_400_000);

  test.each(["skip", "once", "all"] as const)(
    "is planned in bounded time under %s, and its count says that it is capped",
    (policy) => {
      const started = performance.now();
      const { fire, missed, next } = planFires(everySecond, DUE, now, policy);
      expect(performance.now() - started).toBeLessThan(250);
      expect(missed).toMatchObject({ from: DUE, count: MAX_COUNTED_MISSES, countIsCapped: true });
      const firstFire = { skip: now.getTime() - 10_000, once: now.getTime(), all: now.getTime() - 3_600_000 }[policy];
      expect(fire[0]?.fireAt.getTime()).toBe(firstFire);
      expect(missed?.to.getTime()).toBe(firstFire - 1000);
      expect(next?.getTime()).toBe(policy === "all" ? firstFire + 100_000 : now.getTime() + 1000);
    },
  );

  test("is counted exactly when it fires at a fixed interval", () => {
    const { missed } = planFires(schedule("@every 1s"), DUE, now, "once");
    expect(missed).toEqual({ from: DUE, to: new Date(now.getTime() - 1000), count: 21 * 86_400, countIsCapped: false });
  });
});

test("no fire time is lost, repeated or both run and missed, under any policy, outage and window", () => {
  fc.assert(
    fc.property(
      fc.constantFrom<MisfirePolicy>("skip", "once", "all"),
      fc.constantFrom("*/5 * * * *", "*/7 * * * * *", "0 */2 * * *", "@every 90s", "30 2 * * *"),
      fc.constantFrom("UTC", "America/New_York"),
      fc.integer({ min: 0, max: 90_000 }),
      fc.integer({ min: 10, max: 100_000 }),
      (policy, expression, timezone, outageSeconds, windowSeconds) => {
        const job = schedule(expression, timezone);
        const due = nextFireAt(job, new Date("2026-10-31T20:00:00Z")) as Date;
        const now = new Date(due.getTime() + outageSeconds * 1000);
        const { fire, missed, next } = planFires(job, due, now, policy, windowSeconds);
        const expected: number[] = [];
        let upcoming: Date | undefined = due;
        while (upcoming !== undefined && upcoming <= now) {
          expected.push(upcoming.getTime());
          upcoming = nextFireAt(job, upcoming);
        }
        const handedOut = fire.map(({ fireAt }) => fireAt.getTime());
        const firstFire = handedOut[0] ?? now.getTime() + 1;
        const before = expected.filter((time) => time < firstFire);
        expect(missed?.from.getTime()).toBe(before[0]);
        expect(missed?.to.getTime()).toBe(before.at(-1));
        expect(missed?.count ?? 0).toBe(missed?.countIsCapped ? MAX_COUNTED_MISSES : before.length);
        const rest = expected.filter((time) => time >= firstFire);
        expect(handedOut).toEqual(rest.slice(0, MAX_FIRES_PER_CALL));
        expect(next?.getTime()).toBe(rest[MAX_FIRES_PER_CALL] ?? upcoming?.getTime());
        for (const { fireAt, caughtUp } of fire) {
          expect(caughtUp).toBe(now.getTime() - fireAt.getTime() > 10_000);
          if (caughtUp) expect(now.getTime() - fireAt.getTime()).toBeLessThanOrEqual(windowSeconds * 1000);
        }
      },
    ),
    { numRuns: 300 },
  );
});
