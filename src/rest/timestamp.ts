import { create } from "@bufbuild/protobuf";
import { type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { Wrong } from "./scalar.ts";

/** 0001-01-01T00:00:00Z in seconds since 1970: the least instant of google.protobuf.Timestamp. */
const MIN_SECONDS = -62_135_596_800;
/** 9999-12-31T23:59:59Z in seconds since 1970: the last second of google.protobuf.Timestamp. */
const MAX_SECONDS = 253_402_300_799;
/**
 * Epoch numbers of less than this magnitude are seconds, others are milliseconds. As seconds it is the year 5138, as
 * milliseconds March 1973.
 */
const MILLISECONDS_FROM = 100_000_000_000;

const DATE_TIME =
  /^(\d{4})-(\d{2})-(\d{2})(?:[Tt ](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,20}))?)?(?:([Zz])|([+-])(\d{2}):?(\d{2}))?)?$/;

const HINT = "must be an RFC 3339 time such as 2030-01-31T09:00:00Z, or seconds or milliseconds since 1970";
const OUT_OF_RANGE = new Wrong("must lie in the years 1 to 9999");

/**
 * Reads an instant: RFC 3339 with `T` or a space, any offset, without one UTC, the time of day may be left out; or
 * the digits of an epoch number. Digits beyond nanoseconds are dropped.
 */
export function timestampFromText(text: string): Timestamp | Wrong {
  if (/^-?\d+(\.\d+)?$/.test(text)) return timestampFromEpoch(Number(text));
  const match = DATE_TIME.exec(text);
  if (match === null) return new Wrong(HINT);
  const field = (index: number): number => Number(match[index] ?? 0);
  const [year, month, day, hour, minute, second] = [field(1), field(2), field(3), field(4), field(5), field(6)];
  if (hour > 23) return new Wrong("must have an hour of 00 to 23; midnight is 00:00 of the next day");
  if (second === 60) return new Wrong("must have a second of 00 to 59; leap seconds are not kept");
  if (minute > 59 || second > 59) return new Wrong("must have minutes and seconds of 00 to 59");
  if (field(10) > 23 || field(11) > 59) return new Wrong("must have an offset of at most 23:59");

  // Date.UTC reads the years 0 to 99 as 1900 to 1999; setUTCFullYear does not.
  const date = new Date(Date.UTC(2000, 0, 1, hour, minute, second));
  date.setUTCFullYear(year, month - 1, day);
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return new Wrong("must be a date that exists");
  const offsetSeconds = (field(10) * 60 + field(11)) * 60 * (match[9] === "-" ? -1 : 1);
  const nanos = Number((match[7] ?? "").padEnd(9, "0").slice(0, 9));
  return timestamp(date.getTime() / 1000 - offsetSeconds, nanos);
}

/**
 * Reads an epoch number: seconds below 100,000,000,000 in magnitude, milliseconds from there. Fractions count to the
 * microsecond.
 */
export function timestampFromEpoch(epoch: number): Timestamp | Wrong {
  const seconds = Math.abs(epoch) < MILLISECONDS_FROM ? epoch : epoch / 1000;
  if (!Number.isFinite(seconds)) return OUT_OF_RANGE;
  const whole = Math.floor(seconds);
  const micros = Math.round((seconds - whole) * 1e6);
  return micros === 1e6 ? timestamp(whole + 1, 0) : timestamp(whole, micros * 1000);
}

/** The instant as `YYYY-MM-DDTHH:MM:SS.mmmZ`. What is finer than a millisecond is dropped. */
export function formatTimestamp(value: Timestamp): string {
  const millis = Number(value.seconds) * 1000 + Math.floor(value.nanos / 1e6);
  return new Date(millis).toISOString();
}

function timestamp(seconds: number, nanos: number): Timestamp | Wrong {
  if (seconds < MIN_SECONDS || seconds > MAX_SECONDS) return OUT_OF_RANGE;
  return create(TimestampSchema, { seconds: BigInt(seconds), nanos });
}
