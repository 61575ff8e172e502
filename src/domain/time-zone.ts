import { Refusal } from "../errors.ts";
import { LruCache } from "./lru-cache.ts";

const SECOND_MS = 1000;
const DAY_MS = 86_400_000;
/** The longest IANA name has 32 characters (America/Argentina/ComodRivadavia). */
const MAX_NAME_LENGTH = 64;

/**
 * The IANA names that have no slash (tz database: etcetera, backward). Intl also takes abbreviations such as PST or
 * IST, which are not IANA names and mean different places to different people.
 */
const SINGLE_WORD_ZONES: ReadonlyMap<string, string> = new Map(
  (
    "CET CST6CDT Cuba EET EST EST5EDT Egypt Eire GB GB-Eire GMT GMT+0 GMT-0 GMT0 Greenwich HST Hongkong Iceland Iran " +
    "Israel Jamaica Japan Kwajalein Libya MET MST MST7MDT NZ NZ-CHAT Navajo PRC PST8PDT Poland Portugal ROC ROK " +
    "Singapore Turkey UCT UTC Universal W-SU WET Zulu"
  )
    .split(" ")
    .map((name) => [name.toLowerCase(), name]),
);

/** Parts of IANA names that are not simply written with one leading capital. */
const ODDLY_CASED_PARTS: ReadonlyMap<string, string> = new Map(
  "ACT ComodRivadavia DeNoronha DumontDUrville EasterIsland GMT IN LHI McMurdo NSW UCT US UTC au es of"
    .split(" ")
    .map((part) => [part.toLowerCase(), part]),
);

/** A time during which a zone's offset from UTC does not change. */
export interface OffsetPeriod {
  /**
   * First instant, in Unix milliseconds. A change of offset happens here when `offsetBeforeMs` differs from `offsetMs`.
   */
  readonly startMs: number;
  /** First instant after the period. The offset may or may not change there. */
  readonly endMs: number;
  /** Wall time minus UTC during the period. */
  readonly offsetMs: number;
  /** The offset just before `startMs`. */
  readonly offsetBeforeMs: number;
}

interface Zone {
  readonly format: Intl.DateTimeFormat;
  readonly years: LruCache<readonly OffsetPeriod[]>;
}

const zones = new LruCache<Zone>(128);
/** Asking Intl costs 0.1 ms. Empty stands for "not a zone". */
const zoneNames = new LruCache<string>(1024);

const UTC_PERIOD: readonly OffsetPeriod[] = [
  { startMs: Number.NEGATIVE_INFINITY, endMs: Number.POSITIVE_INFINITY, offsetMs: 0, offsetBeforeMs: 0 },
];

/**
 * The IANA time zone that `text` names in any letter case, in the case of the tz database. Links such as Asia/Kolkata
 * keep their name. Offsets (+08:00, UTC+8), abbreviations (PST), paths and unknown names are refused.
 *
 * @throws Refusal TIMEZONE_INVALID, naming `field`.
 */
export function parseTimeZone(text: string, field = "timezone"): string {
  const name = text.length > MAX_NAME_LENGTH ? undefined : canonicalZoneName(text);
  if (name === undefined) {
    throw Refusal.field(field, "must be an IANA time zone such as Europe/Berlin or UTC", "TIMEZONE_INVALID");
  }
  return name;
}

/** As `parseTimeZone`, with undefined instead of a refusal. Pass at most a few hundred characters. */
export function canonicalZoneName(text: string): string | undefined {
  if (!text.includes("/")) return SINGLE_WORD_ZONES.get(text.toLowerCase());
  const name = zoneNames.getOrBuild(text, () => findZoneName(text) ?? "");
  return name === "" ? undefined : name;
}

function findZoneName(text: string): string | undefined {
  // Intl also knows SystemV/*, which the tz database dropped.
  if (!/^[A-Za-z]/.test(text) || /^systemv\//i.test(text)) return undefined;
  let resolved: string;
  try {
    resolved = new Intl.DateTimeFormat("en-US", { timeZone: text }).resolvedOptions().timeZone;
  } catch {
    return undefined;
  }
  // Intl answers a link with its target under an old name (Asia/Calcutta), which is not what the caller wrote.
  return resolved.toLowerCase() === text.toLowerCase() ? resolved : withIanaCase(text);
}

function withIanaCase(name: string): string {
  return name
    .toLowerCase()
    .replace(/[^/_-]+/g, (part) => ODDLY_CASED_PARTS.get(part) ?? part.charAt(0).toUpperCase() + part.slice(1));
}

/**
 * The period of constant offset that holds `instantMs`. Periods end at a change of offset or at the end of a UTC year.
 *
 * @param timezone a name from `parseTimeZone`; any other is a fault (RangeError).
 * @param instantMs Unix milliseconds in the years 1970 to 9999.
 */
export function offsetPeriodAt(timezone: string, instantMs: number): OffsetPeriod {
  const periods = timezone === "UTC" ? UTC_PERIOD : offsetPeriodsOfYear(timezone, new Date(instantMs).getUTCFullYear());
  for (const period of periods) {
    if (instantMs < period.endMs) return period;
  }
  throw new RangeError(`no offset period of ${timezone} at ${instantMs}`);
}

/** What the clock of a zone shows at an instant, in RFC 3339 with its offset; seconds of the offset are left out. */
export function localTimeOf(timezone: string, instant: Date): string {
  const { offsetMs } = offsetPeriodAt(timezone, instant.getTime());
  const wall = new Date(instant.getTime() + offsetMs).toISOString().slice(0, 19);
  const minutes = Math.floor(Math.abs(offsetMs) / 60_000);
  const two = (value: number) => String(value).padStart(2, "0");
  return `${wall}${offsetMs < 0 ? "-" : "+"}${two(Math.floor(minutes / 60))}:${two(minutes % 60)}`;
}

function offsetPeriodsOfYear(timezone: string, year: number): readonly OffsetPeriod[] {
  const zone = zones.getOrBuild(timezone, () => ({
    format: new Intl.DateTimeFormat("en-US", {
      timeZone: timezone,
      hourCycle: "h23",
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
    }),
    years: new LruCache<readonly OffsetPeriod[]>(64),
  }));
  return zone.years.getOrBuild(String(year), () => findOffsetPeriods(zone.format, year));
}

/** Looks at the offset once a day, which finds every change: no zone has changed twice within a day since 1970. */
function findOffsetPeriods(format: Intl.DateTimeFormat, year: number): OffsetPeriod[] {
  const yearEndMs = Date.UTC(year + 1, 0, 1);
  // A gap or an overlap of the last days of December may reach into this year: the first period starts where it began.
  let startMs = Math.max(Date.UTC(year, 0, 1) - 3 * DAY_MS, 0);
  let offsetMs = offsetAt(format, startMs);
  let offsetBeforeMs = offsetMs;
  const periods: OffsetPeriod[] = [];
  for (let fromMs = startMs; fromMs < yearEndMs; fromMs += DAY_MS) {
    const toMs = Math.min(fromMs + DAY_MS, yearEndMs);
    const nextOffsetMs = offsetAt(format, toMs);
    if (nextOffsetMs === offsetMs) continue;
    const changeMs = findChange(format, fromMs, toMs, offsetMs);
    if (changeMs >= yearEndMs) break;
    periods.push({ startMs, endMs: changeMs, offsetMs, offsetBeforeMs });
    startMs = changeMs;
    offsetBeforeMs = offsetMs;
    offsetMs = nextOffsetMs;
  }
  periods.push({ startMs, endMs: yearEndMs, offsetMs, offsetBeforeMs });
  return periods;
}

/** The first whole second in (fromMs, toMs] whose offset is not `offsetMs`. */
function findChange(format: Intl.DateTimeFormat, fromMs: number, toMs: number, offsetMs: number): number {
  let before = fromMs / SECOND_MS;
  let after = toMs / SECOND_MS;
  while (after - before > 1) {
    const middle = Math.floor((before + after) / 2);
    if (offsetAt(format, middle * SECOND_MS) === offsetMs) before = middle;
    else after = middle;
  }
  return after * SECOND_MS;
}

function offsetAt(format: Intl.DateTimeFormat, instantMs: number): number {
  // en-US with these options writes MM/DD/YYYY, hh:mm:ss for the years 1000 to 9999.
  const text = format.format(instantMs);
  const part = (start: number, end: number) => Number(text.slice(start, end));
  const wallMs = Date.UTC(part(6, 10), part(0, 2) - 1, part(3, 5), part(12, 14), part(15, 17), part(18, 20));
  return wallMs - instantMs;
}
