/** What the wall clock of a zone shows. */
export interface Wall {
  readonly year: number;
  readonly month: number;
  readonly day: number;
  readonly weekday: number;
  readonly hour: number;
  readonly minute: number;
  readonly second: number;
  readonly lastDay: number;
}

const offsetFormats = new Map<string, Intl.DateTimeFormat>();

/**
 * The offset from UTC in milliseconds, read from the text "GMT+05:30", which is another way than the one the code under
 * test takes.
 */
function offsetAt(timezone: string, instantMs: number): number {
  let format = offsetFormats.get(timezone);
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US", { timeZone: timezone, timeZoneName: "longOffset", hour: "2-digit" });
    offsetFormats.set(timezone, format);
  }
  const text = format.format(instantMs).split("GMT")[1] ?? "";
  if (text === "") return 0;
  const [hours = 0, minutes = 0] = text.slice(1).split(":").map(Number);
  return (text.startsWith("-") ? -1 : 1) * (hours * 60 + minutes) * 60_000;
}

/** The instants in [fromMs, toMs) where the offset changes, found by looking at every quarter of an hour. */
export function offsetChanges(timezone: string, fromMs: number, toMs: number): number[] {
  const step = 900_000;
  const changes: number[] = [];
  let before = offsetAt(timezone, fromMs);
  for (let at = fromMs + step; at < toMs; at += step) {
    const offset = offsetAt(timezone, at);
    if (offset !== before) changes.push(at);
    before = offset;
  }
  return changes;
}

function toWall(wallMs: number): Wall {
  const date = new Date(wallMs);
  const year = date.getUTCFullYear();
  const month = date.getUTCMonth() + 1;
  return {
    year,
    month,
    day: date.getUTCDate(),
    weekday: date.getUTCDay(),
    hour: date.getUTCHours(),
    minute: date.getUTCMinutes(),
    second: date.getUTCSeconds(),
    lastDay: new Date(Date.UTC(year, month, 0)).getUTCDate(),
  };
}

/** A window of time in one zone: the wall time at each step of it. */
export interface Window {
  readonly fromMs: number;
  readonly stepMs: number;
  readonly wallMs: readonly number[];
  readonly walls: readonly Wall[];
}

export function toWindow(timezone: string, fromMs: number, toMs: number, stepMs: number): Window {
  const wallMs: number[] = [];
  for (let at = fromMs; at < toMs; at += stepMs) wallMs.push(at + offsetAt(timezone, at));
  return { fromMs, stepMs, wallMs, walls: wallMs.map(toWall) };
}

/** How an expression behaves where the clock changes. */
export interface ClockChangeRule {
  readonly repeats: boolean;
  readonly fillsGaps: boolean;
}

/** Every fire in the window, by walking over each step of real time and each wall time that is skipped. */
export function bruteForceFires(window: Window, matches: (wall: Wall) => boolean, rule: ClockChangeRule): number[] {
  const fires = new Set<number>();
  let latestShownMs = Number.NEGATIVE_INFINITY;
  window.wallMs.forEach((wallMs, index) => {
    const at = window.fromMs + index * window.stepMs;
    const previousMs = window.wallMs[index - 1];
    if (rule.fillsGaps && previousMs !== undefined) {
      for (let skipped = previousMs + window.stepMs; skipped < wallMs; skipped += window.stepMs) {
        if (matches(toWall(skipped))) fires.add(at + skipped - previousMs - window.stepMs);
      }
    }
    const isRepeat = wallMs <= latestShownMs;
    latestShownMs = Math.max(latestShownMs, wallMs);
    const wall = window.walls[index];
    if (wall !== undefined && matches(wall) && (rule.repeats || !isRepeat)) fires.add(at);
  });
  return [...fires].sort((a, b) => a - b);
}
