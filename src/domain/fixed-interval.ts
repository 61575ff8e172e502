import { CronSyntaxError } from "./cron-field.ts";

/**
 * Fires whenever the Unix time minus the phase is a multiple of the interval. It needs no stored state and no time
 * zone.
 */
export interface FixedInterval {
  readonly intervalMs: number;
  /** At least 0 and less than `intervalMs`. */
  readonly phaseMs: number;
}

const UNIT_SECONDS: ReadonlyMap<string, number> = new Map([
  ["d", 86_400],
  ["h", 3600],
  ["m", 60],
  ["s", 1],
]);

/** A leap year: the longest interval that `@every` takes. */
const MAX_INTERVAL_SECONDS = 366 * 86_400;

/**
 * Reads the part after `@every `: a duration such as `1h30m`, and after a slash the phase: `1h/15m` fires at a quarter
 * past. Units are d, h, m and s, each at most once and in that order; 1 s to 366 days.
 *
 * @throws CronSyntaxError
 */
export function parseFixedInterval(text: string): FixedInterval {
  const slash = text.indexOf("/");
  const interval = durationSeconds(slash < 0 ? text : text.slice(0, slash));
  const phase = slash < 0 ? 0 : durationSeconds(text.slice(slash + 1));
  if (interval < 1 || interval > MAX_INTERVAL_SECONDS) {
    throw new CronSyntaxError("@every: the interval must be 1s to 366d");
  }
  if (phase >= interval)
    throw new CronSyntaxError("@every: the phase after the slash must be shorter than the interval");
  return { intervalMs: interval * 1000, phaseMs: phase * 1000 };
}

/** The first instant strictly after `afterMs`, both in Unix milliseconds. */
export function nextOfInterval(interval: FixedInterval, afterMs: number): number {
  const { intervalMs, phaseMs } = interval;
  return (Math.floor((afterMs - phaseMs) / intervalMs) + 1) * intervalMs + phaseMs;
}

function durationSeconds(text: string): number {
  let total = 0;
  let digits = "";
  let smallestUnit = Number.POSITIVE_INFINITY;
  for (const char of text) {
    if (char >= "0" && char <= "9") {
      digits += char;
      if (digits.length <= 9) continue;
    }
    const unit = UNIT_SECONDS.get(char);
    if (unit === undefined || digits === "" || unit >= smallestUnit) return failDuration(text);
    total += Number(digits) * unit;
    smallestUnit = unit;
    digits = "";
  }
  if (digits !== "" || smallestUnit === Number.POSITIVE_INFINITY) return failDuration(text);
  return total;
}

function failDuration(text: string): never {
  throw new CronSyntaxError(`@every: "${text}" is not a duration such as 90s or 1h30m`);
}
