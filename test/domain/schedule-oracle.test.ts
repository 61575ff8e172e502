import { expect, test } from "vitest";
import { nextFireAt, parseSchedule, type Schedule } from "../../src/domain/schedule.ts";
import { sized } from "../fault/scale.ts";
import { seededRandom } from "../fault/seed.ts";
import { dailyExpression, randomExpression } from "./oracle-expressions.ts";
import {
  bruteForceFires,
  type OracleExpression,
  type OracleRules,
  offsetChanges,
  toWindow,
  type Window,
} from "./schedule-oracle.ts";

const HOUR_MS = 3_600_000;
const FROM_MS = Date.UTC(2000, 0, 1);
const TO_MS = Date.UTC(2041, 0, 1);

/** Half an hour of change, two hours, negative summer time, a month's pause, days and midnights that are skipped. */
const PECULIAR_ZONES = [
  "Australia/Lord_Howe",
  "Antarctica/Troll",
  "Europe/Dublin",
  "Africa/Casablanca",
  "Africa/Cairo",
  "America/Havana",
  "America/Sao_Paulo",
  "America/St_Johns",
  "America/Santiago",
  "America/New_York",
  "Asia/Beirut",
  "Asia/Gaza",
  "Pacific/Apia",
  "Pacific/Fakaofo",
  "Pacific/Kiritimati",
  "Pacific/Kwajalein",
];
const GAPS = ["run_after", "skip"] as const;
const OVERLAPS = ["auto", "once", "twice"] as const;

/** Expressions that every run looks at: hours in which clocks are changed, and what people write most. */
const ALWAYS: readonly OracleExpression[] = [
  dailyExpression("0 * * * *", { minutes: [0] }, true),
  dailyExpression("*/20 * * * *", { minutes: [0, 20, 40] }, true),
  dailyExpression("0 */2 * * *", { minutes: [0], hours: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22] }, true),
  dailyExpression("30 1/2 * * *", { minutes: [30], hours: [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23] }, true),
  dailyExpression("0 */24 * * *", { minutes: [0], hours: [0] }, true),
  dailyExpression("0 22-2 * * *", { minutes: [0], hours: [22, 23, 0, 1, 2] }),
  dailyExpression("@daily", { minutes: [0], hours: [0] }),
  dailyExpression("@hourly", { minutes: [0] }, true),
  ...[0, 1, 2, 3, 4, 23].map((hour) => dailyExpression(`30 ${hour} * * *`, { minutes: [30], hours: [hour] })),
];
const BY_SECOND: readonly OracleExpression[] = [
  dailyExpression("*/25 10-59 2 * * *", { seconds: [0, 25, 50], minutes: range(10, 59), hours: [2] }),
  dailyExpression("*/20 * * * * *", { seconds: [0, 20, 40] }, true),
];

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

test("a schedule fires exactly when a brute-force walk over the wall clock says so", {
  timeout: sized(3 * HOUR_MS, 600_000),
}, () => {
  const random = seededRandom("oracle of schedules");
  const wanted = sized(1_000_000, 100_000);
  const expressions = [...ALWAYS, ...draw(200, () => drawPossible(random, false))];
  const bySecond = [...BY_SECOND, ...draw(8, () => drawPossible(random, true))];
  const changes = changesOf(sized(Number.POSITIVE_INFINITY, 12), random);

  let cases = 0;
  const differences: string[] = [];
  for (const { timezone, at, isPeculiar } of changes) {
    // At full size every change of every zone is walked through, however many cases that makes.
    if (cases >= wanted && sized(0, 1) === 1) break;
    const byMinute = toWindow(timezone, at - 30 * HOUR_MS, at + 30 * HOUR_MS, 60_000);
    const inSeconds = isPeculiar ? toWindow(timezone, at - 2 * HOUR_MS, at + 2 * HOUR_MS, 1_000) : undefined;
    for (const [window, all] of [[byMinute, expressions] as const, [inSeconds, bySecond] as const]) {
      if (window === undefined) continue;
      for (const expression of all) {
        const rules = { gap: pick(random, GAPS), overlap: pick(random, OVERLAPS) };
        cases++;
        const difference = compare(window, expression, rules);
        if (difference !== undefined) differences.push(difference);
      }
    }
    if (differences.length > 20) break;
  }
  console.log(`oracle of schedules: ${cases} cases, ${differences.length} differences`);
  expect(differences).toEqual([]);
  expect(cases).toBeGreaterThanOrEqual(wanted);
});

interface Change {
  readonly timezone: string;
  readonly at: number;
  readonly isPeculiar: boolean;
}

/** The changes of the peculiar zones and of `others` more, in random order. */
function changesOf(others: number, random: () => number): Change[] {
  const rest = Intl.supportedValuesOf("timeZone").filter((zone) => !PECULIAR_ZONES.includes(zone) && zone !== "UTC");
  const zones = [...PECULIAR_ZONES, ...shuffled(rest, random).slice(0, others)];
  const changes = zones.flatMap((timezone) => {
    const isPeculiar = PECULIAR_ZONES.includes(timezone);
    const found = offsetChanges(timezone, FROM_MS, TO_MS, 6 * HOUR_MS);
    // A zone without changes is looked at once.
    return (found.length > 0 ? found : [Date.UTC(2026, 11, 31)]).map((at) => ({ timezone, at, isPeculiar }));
  });
  return shuffled(changes, random);
}

function shuffled<T>(items: readonly T[], random: () => number): T[] {
  return items
    .map((item) => ({ item, place: random() }))
    .sort((a, b) => a.place - b.place)
    .map(({ item }) => item);
}

function pick<T>(random: () => number, items: readonly T[]): T {
  return items[Math.floor(random() * items.length)] as T;
}

function draw<T>(count: number, next: () => T): T[] {
  return Array.from({ length: count }, next);
}

/** An expression that is not refused: that it never fires is a matter of days, which other tests look at. */
function drawPossible(random: () => number, bySecond: boolean): OracleExpression {
  for (;;) {
    const expression = randomExpression(random, bySecond);
    try {
      parseSchedule({ expression: expression.text, timezone: "UTC", seed: "" });
      return expression;
    } catch (error) {
      if (!String(error).includes("never fires")) throw error;
    }
  }
}

function compare(window: Window, expression: OracleExpression, { gap, overlap }: OracleRules): string | undefined {
  const schedule = parseSchedule({
    expression: expression.text,
    timezone: window.timezone,
    seed: "",
    rules: { dstGap: gap, dstOverlap: overlap, startAt: null, endAt: null },
  });
  const expected = bruteForceFires(window, expression, { gap, overlap });
  const found = firesWithin(schedule, window);
  const index = range(0, Math.max(expected.length, found.length)).find((at) => expected[at] !== found[at]);
  if (index === undefined || (expected.length === found.length && index >= found.length)) return undefined;
  const at = (instant: number | undefined) => (instant === undefined ? "none" : new Date(instant).toISOString());
  return (
    `${expression.text} in ${window.timezone}, ${gap}, ${overlap}, from ${at(window.fromMs)}: ` +
    `expected ${at(expected[index])}, found ${at(found[index])}`
  );
}

function firesWithin(schedule: Schedule, window: Window): number[] {
  const endMs = window.fromMs + window.wallMs.length * window.stepMs;
  const fires: number[] = [];
  let at = nextFireAt(schedule, new Date(window.fromMs - 1));
  while (at !== undefined && at.getTime() < endMs) {
    fires.push(at.getTime());
    at = nextFireAt(schedule, at);
  }
  return fires;
}
