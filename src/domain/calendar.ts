const DAY_MS = 86_400_000;

/**
 * A set of small numbers as a table of steps: `table[v]` is the smallest member that is at least `v`, or -1.
 * It is one longer than the largest value, so that `table[v + 1]` is always there.
 */
export type StepTable = Int8Array;

/** The step table of `values`, each between 0 and `max`. */
export function toStepTable(values: Iterable<number>, max: number): StepTable {
  const members = new Set(values);
  const table = new Int8Array(max + 2).fill(-1);
  for (let value = max; value >= 0; value--) {
    table[value] = members.has(value) ? value : (table[value + 1] ?? -1);
  }
  return table;
}

/**
 * Which days of a month a schedule takes, besides those named by number. Days count from 1, weekdays from 0 = Sunday.
 */
export interface DayRules {
  /** Bit d is set when day d of the month is taken. */
  readonly dayBits: number;
  /** Distances from the last day of the month: 0 is `L`, 3 is `L-3`. */
  readonly daysBeforeLast: readonly number[];
  /** `15W`: the weekday (Monday to Friday) nearest to that day, within the month. */
  readonly nearestWeekdays: readonly number[];
  /** `LW`: the last Monday to Friday of the month. */
  readonly lastWeekday: boolean;
  /** Bit w is set when every such weekday is taken. */
  readonly weekdayBits: number;
  /** `1#2`: the second Monday. */
  readonly nthWeekdays: readonly { readonly weekday: number; readonly nth: number }[];
  /** `5L`: the last Friday of the month. */
  readonly lastOfWeekdays: readonly number[];
}

/** The wall-clock times at which a cron expression fires, without a time zone. */
export interface Calendar {
  readonly seconds: StepTable;
  readonly minutes: StepTable;
  readonly hours: StepTable;
  readonly months: StepTable;
  readonly days: DayRules;
  /** Ascending. Undefined means every year. */
  readonly years: readonly number[] | undefined;
  /** Every hour of the day is taken, so a time inside a gap needs no replacement. */
  readonly everyHour: boolean;
  /** The hour field is a wildcard or a step: an hour that the clock repeats fires again. */
  readonly repeatsInOverlap: boolean;
}

/**
 * The first wall time at or after `wallMs` that the calendar takes, or undefined when there is none up to the end of
 * `lastYear`. Wall times are the milliseconds that UTC would show for the same date and time. `wallMs` is a whole
 * second.
 */
export function firstMatchAt(calendar: Calendar, wallMs: number, lastYear: number): number | undefined {
  const wall = new Date(wallMs);
  const secondOfDay = Math.floor((((wallMs % DAY_MS) + DAY_MS) % DAY_MS) / 1000);
  const startYear = wall.getUTCFullYear();
  const startMonth = wall.getUTCMonth() + 1;
  const startDay = wall.getUTCDate();

  const today = takesDay(calendar, startYear, startMonth, startDay) ? firstTimeOfDay(calendar, secondOfDay) : -1;
  if (today >= 0 && startYear <= lastYear) return wallMs + (today - secondOfDay) * 1000;

  // From here on any time of day will do: look for the first taken day after the start.
  let day = startDay + 1;
  let month = startMonth;
  for (let year = startYear; year <= lastYear; year++) {
    if (calendar.years === undefined || calendar.years.includes(year)) {
      for (month = calendar.months[month] ?? -1; month > 0; month = calendar.months[month + 1] ?? -1) {
        const firstDay = year === startYear && month === startMonth ? day : 1;
        const bits = takenDays(calendar.days, year, month) & (-1 << firstDay);
        // Bit 31 is the sign and `-1 << 32` is -1, so day 32 has to be left out by hand.
        if (bits !== 0 && firstDay <= 31) {
          const taken = 31 - Math.clz32(bits & -bits);
          return Date.UTC(year, month - 1, taken) + firstTimeOfDay(calendar, 0) * 1000;
        }
      }
    }
    month = 1;
    day = 1;
  }
  return undefined;
}

/** The first taken second of the day at or after `secondOfDay`, or -1. */
function firstTimeOfDay(calendar: Calendar, secondOfDay: number): number {
  const hour = Math.floor(secondOfDay / 3600);
  const minute = Math.floor(secondOfDay / 60) % 60;
  const second = secondOfDay % 60;
  const firstSecond = calendar.seconds[0] ?? 0;
  const firstMinute = calendar.minutes[0] ?? 0;

  if (calendar.hours[hour] === hour) {
    if (calendar.minutes[minute] === minute) {
      const sameMinute = calendar.seconds[second] ?? -1;
      if (sameMinute >= 0) return hour * 3600 + minute * 60 + sameMinute;
    }
    const laterMinute = calendar.minutes[minute + 1] ?? -1;
    if (laterMinute >= 0) return hour * 3600 + laterMinute * 60 + firstSecond;
  }
  const laterHour = calendar.hours[hour + 1] ?? -1;
  return laterHour < 0 ? -1 : laterHour * 3600 + firstMinute * 60 + firstSecond;
}

function takesDay(calendar: Calendar, year: number, month: number, day: number): boolean {
  if (calendar.years !== undefined && !calendar.years.includes(year)) return false;
  return calendar.months[month] === month && (takenDays(calendar.days, year, month) & (1 << day)) !== 0;
}

/** Bit d of the result is set when day d of that month is taken. `month` is 1 to 12. */
function takenDays(rules: DayRules, year: number, month: number): number {
  const lastDay = new Date(Date.UTC(year, month, 0)).getUTCDate();
  const firstWeekday = new Date(Date.UTC(year, month - 1, 1)).getUTCDay();
  const weekdayOf = (day: number) => (firstWeekday + day - 1) % 7;
  const lastOf = (weekday: number) => lastDay - ((weekdayOf(lastDay) - weekday + 7) % 7);

  let bits = rules.dayBits;
  if (rules.weekdayBits !== 0) {
    for (let day = 1; day <= lastDay; day++) {
      if ((rules.weekdayBits & (1 << weekdayOf(day))) !== 0) bits |= 1 << day;
    }
  }
  for (const distance of rules.daysBeforeLast) {
    if (distance < lastDay) bits |= 1 << (lastDay - distance);
  }
  for (const day of rules.nearestWeekdays) {
    if (day <= lastDay) bits |= 1 << nearestWeekday(day, weekdayOf(day), lastDay);
  }
  if (rules.lastWeekday) bits |= 1 << nearestWeekday(lastDay, weekdayOf(lastDay), lastDay);
  for (const { weekday, nth } of rules.nthWeekdays) {
    const day = 1 + ((weekday - firstWeekday + 7) % 7) + (nth - 1) * 7;
    if (day <= lastDay) bits |= 1 << day;
  }
  for (const weekday of rules.lastOfWeekdays) bits |= 1 << lastOf(weekday);
  // Bit 0 is no day, and bits above the last day belong to longer months.
  return bits & (lastDay === 31 ? -2 : (1 << (lastDay + 1)) - 2);
}

function nearestWeekday(day: number, weekday: number, lastDay: number): number {
  if (weekday === 6) return day > 1 ? day - 1 : day + 2;
  if (weekday === 0) return day < lastDay ? day + 1 : day - 2;
  return day;
}
