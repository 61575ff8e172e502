import type { OracleExpression, WallDay } from "./schedule-oracle.ts";

type Random = () => number;

/** One field: the text that is given to the code under test, and the values that it means. */
interface Field {
  readonly text: string;
  readonly values: ReadonlySet<number>;
  readonly any: boolean;
  readonly stepped: boolean;
}

/** A day field: as a rule over days of the calendar. */
interface DayField {
  readonly text: string;
  readonly any: boolean;
  takes(day: WallDay): boolean;
}

const NAMES = {
  month: ["", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
  weekday: ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
};

const pick = <T>(random: Random, items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;
const between = (random: Random, min: number, max: number) => min + Math.floor(random() * (max - min + 1));
const table = (values: ReadonlySet<number>, size: number) =>
  Array.from({ length: size }, (_, value) => values.has(value));

/** The values from `first` on to `last`, over the end of the cycle where they wrap, every `step`. */
function cycle(first: number, last: number, min: number, max: number, step = 1): Set<number> {
  const values = new Set<number>();
  let distance = 0;
  for (let value = first; ; value = value === max ? min : value + 1, distance++) {
    if (distance % step === 0) values.add(value);
    if (value === last) return values;
  }
}

/** A field of numbers within `min` and `max`; `likely` are values that are drawn more often. */
function numbers(
  random: Random,
  min: number,
  max: number,
  likely: readonly number[],
  name: (value: number) => string = String,
): Field {
  const one = () => (likely.length > 0 && random() < 0.7 ? pick(random, likely) : between(random, min, max));
  switch (between(random, 0, 8)) {
    case 0:
    case 1: {
      return { text: "*", values: cycle(min, max, min, max), any: true, stepped: true };
    }
    case 2: {
      const step = between(random, 2, Math.max(2, Math.floor((max - min) / 2)));
      return { text: `*/${step}`, values: cycle(min, max, min, max, step), any: false, stepped: true };
    }
    case 3: {
      const first = one();
      const last = one();
      return { text: `${name(first)}-${name(last)}`, values: cycle(first, last, min, max), any: false, stepped: false };
    }
    case 4: {
      const first = one();
      const last = one();
      const step = between(random, 1, 5);
      const text = `${name(first)}-${name(last)}/${step}`;
      return { text, values: cycle(first, last, min, max, step), any: false, stepped: true };
    }
    case 5: {
      const first = one();
      const step = between(random, 1, 7);
      return { text: `${first}/${step}`, values: cycle(first, max, min, max, step), any: false, stepped: true };
    }
    case 6: {
      const values = new Set([one(), one(), one()]);
      return { text: [...values].map(name).join(","), values, any: false, stepped: false };
    }
    default: {
      const value = one();
      return { text: name(value), values: new Set([value]), any: false, stepped: false };
    }
  }
}

/** The Monday to Friday of the month that is nearest to its day `wanted`, by looking at each. */
function nearestWorkingDay({ day, weekday, lastDay }: WallDay, wanted: number): number {
  let nearest = 0;
  for (let candidate = 1; candidate <= lastDay; candidate++) {
    const weekdayOf = (((weekday + candidate - day) % 7) + 7) % 7;
    const isWorking = weekdayOf >= 1 && weekdayOf <= 5;
    if (isWorking && (nearest === 0 || Math.abs(candidate - wanted) < Math.abs(nearest - wanted))) nearest = candidate;
  }
  return nearest;
}

function daysOfMonth(random: Random): DayField {
  const number = between(random, 1, 31);
  switch (between(random, 0, 9)) {
    case 0:
      return { text: "L", any: false, takes: ({ day, lastDay }) => day === lastDay };
    case 1: {
      const distance = between(random, 1, 30);
      return { text: `L-${distance}`, any: false, takes: ({ day, lastDay }) => day === lastDay - distance };
    }
    case 2:
      return { text: "LW", any: false, takes: (day) => day.day === nearestWorkingDay(day, day.lastDay) };
    case 3: {
      const takes = (day: WallDay) => number <= day.lastDay && day.day === nearestWorkingDay(day, number);
      return { text: `${number}W`, any: false, takes };
    }
    case 4: {
      const { text, values, any } = numbers(random, 1, 31, []);
      return { text, any, takes: ({ day }) => values.has(day) };
    }
    case 5: {
      const { text, values, any } = numbers(random, 1, 31, []);
      if (any) return { text: "?", any, takes: () => true };
      return { text: `${text},L`, any, takes: ({ day, lastDay }) => values.has(day) || day === lastDay };
    }
    default:
      return { text: "*", any: true, takes: () => true };
  }
}

function daysOfWeek(random: Random): DayField {
  const weekday = between(random, 0, 6);
  const written = pick(random, [String(weekday), NAMES.weekday[weekday] ?? "", String(weekday === 0 ? 7 : weekday)]);
  switch (between(random, 0, 9)) {
    case 0: {
      const takes = (day: WallDay) => day.weekday === weekday && day.day + 7 > day.lastDay;
      return { text: `${written}L`, any: false, takes };
    }
    case 1: {
      const nth = between(random, 1, 5);
      const takes = (day: WallDay) => day.weekday === weekday && Math.ceil(day.day / 7) === nth;
      return { text: `${written}#${nth}`, any: false, takes };
    }
    case 2: {
      const { text, values, any } = numbers(random, 0, 6, [], (value) => NAMES.weekday[value] ?? "");
      return { text, any, takes: (day) => values.has(day.weekday) };
    }
    case 3:
      return { text: written, any: false, takes: (day) => day.weekday === weekday };
    default:
      return { text: pick(random, ["*", "?"]), any: true, takes: () => true };
  }
}

/** The hours in which clocks are changed, and those around them. */
const LIKELY_HOURS = [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 22, 23];
const LIKELY_MINUTES = [0, 0, 0, 1, 15, 30, 30, 45, 59];

/** An expression drawn at random. With `bySecond` it has 6 or 7 fields, else 5. */
export function randomExpression(random: Random, bySecond: boolean): OracleExpression {
  const second = bySecond
    ? numbers(random, 0, 59, [0, 15, 30, 59])
    : { text: "", values: new Set([0]), any: false, stepped: false };
  const minute = numbers(random, 0, 59, LIKELY_MINUTES);
  let hour = numbers(random, 0, 23, LIKELY_HOURS);
  // Few of the expressions fire so often that most of a run would be theirs.
  while (hour.values.size * minute.values.size > 120 && random() < 0.97) hour = numbers(random, 0, 23, LIKELY_HOURS);
  const month =
    random() < 0.8
      ? { text: "*", values: cycle(1, 12, 1, 12), any: true }
      : numbers(random, 1, 12, [3, 4, 9, 10, 11], (value) => NAMES.month[value] ?? "");
  const inMonth = daysOfMonth(random);
  const inWeek = daysOfWeek(random);
  const year = bySecond && random() < 0.3 ? between(random, 2000, 2030) : undefined;
  const years = year === undefined ? "" : ` ${year}-${year + 15}`;
  const either = !inMonth.any && !inWeek.any;
  return {
    text: `${second.text} ${minute.text} ${hour.text} ${inMonth.text} ${month.text} ${inWeek.text}${years}`.trim(),
    seconds: table(second.values, 60),
    minutes: table(minute.values, 60),
    hours: table(hour.values, 24),
    steppedHours: hour.stepped,
    takesDay(day) {
      if (!month.values.has(day.month)) return false;
      if (year !== undefined && (day.year < year || day.year > year + 15)) return false;
      const takesInMonth = inMonth.takes(day);
      const takesInWeek = inWeek.takes(day);
      return either ? takesInMonth || takesInWeek : takesInMonth && takesInWeek;
    },
  };
}

/** An expression for times of the day, on every day. */
export function dailyExpression(
  text: string,
  times: { readonly seconds?: number[]; readonly minutes?: number[]; readonly hours?: number[] },
  steppedHours = false,
): OracleExpression {
  const all = (size: number) => Array.from({ length: size }, (_, value) => value);
  return {
    text,
    seconds: table(new Set(times.seconds ?? [0]), 60),
    minutes: table(new Set(times.minutes ?? all(60)), 60),
    hours: table(new Set(times.hours ?? all(24)), 24),
    takesDay: () => true,
    steppedHours,
  };
}
