const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;

/** A day as the wall shows it. */
export interface WallDay {
  readonly year: number;
  readonly month: number;
  readonly day: number;
  readonly weekday: number;
  readonly lastDay: number;
}

/** An expression as the oracle knows it: by its values, not by its text. */
export interface OracleExpression {
  readonly text: string;
  /** Index v is true when the value is taken. */
  readonly seconds: readonly boolean[];
  readonly minutes: readonly boolean[];
  readonly hours: readonly boolean[];
  takesDay(day: WallDay): boolean;
  /** Its hour field is a wildcard or a step. */
  readonly steppedHours: boolean;
}

/** Rules for clock changes, by the names of the contract. */
export interface OracleRules {
  readonly gap: "run_after" | "skip";
  readonly overlap: "auto" | "once" | "twice";
}

/** Offsets of one zone from UTC, read from the text "GMT+05:30": another way than the one the code under test takes. */
class Offsets {
  readonly #format: Intl.DateTimeFormat;

  constructor(timezone: string) {
    this.#format = new Intl.DateTimeFormat("en-US", {
      timeZone: timezone,
      timeZoneName: "longOffset",
      hour: "2-digit",
    });
  }

  /** In milliseconds. */
  at(instantMs: number): number {
    const text = this.#format.format(instantMs).split("GMT")[1] ?? "";
    if (text === "") return 0;
    const [hours = 0, minutes = 0] = text.slice(1).split(":").map(Number);
    return (text.startsWith("-") ? -1 : 1) * (hours * 60 + minutes) * MINUTE_MS;
  }
}

/** The minutes in [fromMs, toMs) that begin with another offset than the one before, found by looking every `stepMs`. */
export function offsetChanges(timezone: string, fromMs: number, toMs: number, stepMs = 900_000): number[] {
  const offsets = new Offsets(timezone);
  const changes: number[] = [];
  let before = offsets.at(fromMs);
  for (let at = fromMs + stepMs; at < toMs + stepMs; at += stepMs) {
    const offset = offsets.at(at);
    if (offset === before) continue;
    let same = at - stepMs;
    let changed = at;
    while (changed - same > MINUTE_MS) {
      const middle = same + Math.floor((changed - same) / 2 / MINUTE_MS) * MINUTE_MS;
      if (offsets.at(middle) === before) same = middle;
      else changed = middle;
    }
    if (changed < toMs) changes.push(changed);
    before = offset;
  }
  return changes;
}

/** A window of time in one zone: what the wall shows at each step of it. */
export interface Window {
  readonly timezone: string;
  readonly fromMs: number;
  readonly stepMs: number;
  /** Wall times are the milliseconds that UTC would show for the same date and time. */
  readonly wallMs: Float64Array;
  readonly hours: Uint8Array;
  readonly minutes: Uint8Array;
  readonly seconds: Uint8Array;
}

/** The window from `fromMs` up to `toMs`. The offset is read anew at each minute. */
export function toWindow(timezone: string, fromMs: number, toMs: number, stepMs: number): Window {
  const offsets = new Offsets(timezone);
  const wallMs = new Float64Array(Math.ceil((toMs - fromMs) / stepMs));
  let offset = 0;
  for (let index = 0, at = fromMs; at < toMs; index++, at += stepMs) {
    if (index === 0 || at % MINUTE_MS === 0) offset = offsets.at(at);
    wallMs[index] = at + offset;
  }
  const parts = (unitMs: number, count: number) => Uint8Array.from(wallMs, (wall) => Math.floor(wall / unitMs) % count);
  return {
    timezone,
    fromMs,
    stepMs,
    wallMs,
    hours: parts(3_600_000, 24),
    minutes: parts(MINUTE_MS, 60),
    seconds: parts(1000, 60),
  };
}

const days = new Map<number, WallDay>();

function dayOf(wallMs: number): WallDay {
  const number = Math.floor(wallMs / DAY_MS);
  let day = days.get(number);
  if (day === undefined) {
    const date = new Date(number * DAY_MS);
    const year = date.getUTCFullYear();
    const month = date.getUTCMonth() + 1;
    const lastDay = new Date(Date.UTC(year, month, 0)).getUTCDate();
    day = { year, month, day: date.getUTCDate(), weekday: date.getUTCDay(), lastDay };
    days.set(number, day);
  }
  return day;
}

/**
 * Every fire in the window, by walking over each step of real time and each wall time that is skipped:
 * - A wall time that matches fires when the clock shows it.
 * - A matching time that was skipped fires later by the length of the gap, unless the rule is to skip it or the
 *   expression takes every hour of the day.
 * - A time that the clock has shown before fires again by the rule `twice`, and by `auto` for wildcards and steps with
 *   more than one hour.
 */
export function bruteForceFires(window: Window, expression: OracleExpression, rules: OracleRules): number[] {
  const hourCount = expression.hours.filter(Boolean).length;
  const fillsGaps = rules.gap === "run_after" && hourCount < 24;
  const paced = hourCount === 24 || (expression.steppedHours && hourCount > 1);
  const repeats = rules.overlap === "twice" || (rules.overlap === "auto" && paced);

  const takes = (hour: number, minute: number, second: number, wallMs: number): boolean =>
    expression.hours[hour] === true &&
    expression.minutes[minute] === true &&
    expression.seconds[second] === true &&
    expression.takesDay(dayOf(wallMs));
  const takesSkipped = (wallMs: number): boolean =>
    takes(
      Math.floor(wallMs / 3_600_000) % 24,
      Math.floor(wallMs / MINUTE_MS) % 60,
      Math.floor(wallMs / 1000) % 60,
      wallMs,
    );

  const fires = new Set<number>();
  const { fromMs, stepMs } = window;
  let latestShownMs = Number.NEGATIVE_INFINITY;
  let previousMs: number | undefined;
  for (let index = 0; index < window.wallMs.length; index++) {
    const wallMs = window.wallMs[index] ?? 0;
    const at = fromMs + index * stepMs;
    if (fillsGaps && previousMs !== undefined) {
      for (let skipped = previousMs + stepMs; skipped < wallMs; skipped += stepMs) {
        if (takesSkipped(skipped)) fires.add(at + skipped - previousMs - stepMs);
      }
    }
    const isRepeat = wallMs <= latestShownMs;
    latestShownMs = Math.max(latestShownMs, wallMs);
    previousMs = wallMs;
    const isTaken = takes(window.hours[index] ?? 0, window.minutes[index] ?? 0, window.seconds[index] ?? 0, wallMs);
    if (isTaken && (repeats || !isRepeat)) fires.add(at);
  }
  // What is skipped at the end of the window may fire after it.
  const endMs = fromMs + window.wallMs.length * stepMs;
  return [...fires].filter((at) => at < endMs).sort((a, b) => a - b);
}
