import { dailyExpression } from "./oracle-expressions.ts";
import { bruteForceFires, type OracleExpression, type OracleRules, toWindow, type Window } from "./schedule-oracle.ts";

/** A schedule, and the fires of it that the oracle finds by walking over the wall clock. */
export interface OracleSchedule {
  readonly expression: OracleExpression;
  readonly timezone: string;
  readonly rules: OracleRules;
}

const DEFAULTS: OracleRules = { gap: "run_after", overlap: "auto" };
const every = { minutes: [0] };

/** Schedules whose years have something to them: an hour that is skipped or repeated, half an hour of it, last days. */
export const YEAR_SCHEDULES: readonly OracleSchedule[] = [
  { expression: dailyExpression("0 * * * *", every, true), timezone: "America/New_York", rules: DEFAULTS },
  {
    expression: dailyExpression("30 2 * * *", { minutes: [30], hours: [2] }),
    timezone: "America/New_York",
    rules: DEFAULTS,
  },
  {
    expression: dailyExpression("30 1,2 * * *", { minutes: [30], hours: [1, 2] }),
    timezone: "America/New_York",
    rules: { gap: "skip", overlap: "twice" },
  },
  {
    expression: dailyExpression("*/15 1-2 * * *", { minutes: [0, 15, 30, 45], hours: [1, 2] }),
    timezone: "Australia/Lord_Howe",
    rules: DEFAULTS,
  },
  {
    expression: dailyExpression("45 1 * * *", { minutes: [45], hours: [1] }),
    timezone: "Australia/Lord_Howe",
    rules: { gap: "run_after", overlap: "twice" },
  },
  {
    expression: {
      ...dailyExpression("0 9 * * 5L", { minutes: [0], hours: [9] }),
      takesDay: ({ weekday, day, lastDay }) => weekday === 5 && day + 7 > lastDay,
    },
    timezone: "Australia/Lord_Howe",
    rules: DEFAULTS,
  },
];

const windows = new Map<string, Window>();

/** Every fire after `from` and up to `to`, both at the full minute, in RFC 3339. */
export function oracleFires({ expression, timezone, rules }: OracleSchedule, from: Date, to: Date): string[] {
  // A day before, so that what the clock has shown already is known where the range begins.
  const fromMs = from.getTime() - 86_400_000;
  const key = `${timezone} ${fromMs} ${to.getTime()}`;
  const window = windows.get(key) ?? toWindow(timezone, fromMs, to.getTime() + 60_000, 60_000);
  windows.set(key, window);
  return bruteForceFires(window, expression, rules)
    .filter((at) => at > from.getTime())
    .map((at) => new Date(at).toISOString());
}
