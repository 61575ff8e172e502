import { describe, expect, test } from "vitest";
import { Wrong } from "../../src/rest/scalar.ts";
import { formatTimestamp, timestampFromEpoch, timestampFromText } from "../../src/rest/timestamp.ts";

function read(text: string): string {
  const value = timestampFromText(text);
  return value instanceof Wrong ? value.rule : formatTimestamp(value);
}

describe("an instant", () => {
  test.each([
    ["2030-01-31T09:00:00Z", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31t09:00:00z", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31 09:00:00", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31T09:00", "2030-01-31T09:00:00.000Z"],
    ["2030-01-31", "2030-01-31T00:00:00.000Z"],
    ["2030-01-31T09:00:00+08:00", "2030-01-31T01:00:00.000Z"],
    ["2030-01-31T09:00:00-0330", "2030-01-31T12:30:00.000Z"],
    ["2030-01-31T09:00:00+23:59", "2030-01-30T09:01:00.000Z"],
    ["2030-01-31T09:00:00-23:59", "2030-02-01T08:59:00.000Z"],
    ["2030-01-31T09:00:00.1239Z", "2030-01-31T09:00:00.123Z"],
    ["2028-02-29T00:00:00Z", "2028-02-29T00:00:00.000Z"],
    ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"],
    ["9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"],
    ["1900000000", "2030-03-17T17:46:40.000Z"],
    ["1900000000000", "2030-03-17T17:46:40.000Z"],
    ["1900000000.5", "2030-03-17T17:46:40.500Z"],
    ["-1", "1969-12-31T23:59:59.000Z"],
    ["0", "1970-01-01T00:00:00.000Z"],
  ])("%s is read", (text, expected) => {
    expect(read(text)).toBe(expected);
  });

  test.each([
    ["...", /RFC 3339/],
    ["", /RFC 3339/],
    ["infinity", /RFC 3339/],
    ["now", /RFC 3339/],
    ["2030-1-31T09:00:00Z", /RFC 3339/],
    ["300000-01-01T00:00:00Z", /RFC 3339/],
    ["2030-01-31T09:00:00 UTC", /RFC 3339/],
    ["2030-01-31T09:00:00Z\n", /RFC 3339/],
    ["1e9", /RFC 3339/],
    ["2030-01-31T24:00:00Z", /hour/],
    ["2030-06-30T23:59:60Z", /leap/],
    ["2030-01-31T09:60:00Z", /minutes/],
    ["2030-01-31T09:00:00+24:00", /offset/],
    ["2030-02-30T00:00:00Z", /exists/],
    ["2029-02-29T00:00:00Z", /exists/],
    ["2030-13-01T00:00:00Z", /exists/],
    ["2030-00-10T00:00:00Z", /exists/],
    ["0000-12-31T00:00:00Z", /years/],
    ["0001-01-01T00:00:00+00:01", /years/],
    ["9999-12-31T23:59:59-00:01", /years/],
    ["99999999999999999", /years/],
  ])("%s is refused in words", (text, rule) => {
    expect(read(text)).toMatch(rule);
  });

  test("is read from epoch seconds below 100,000,000,000 and from milliseconds from there", () => {
    const date = (epoch: number): string => {
      const value = timestampFromEpoch(epoch);
      return value instanceof Wrong ? value.rule : formatTimestamp(value);
    };
    expect(date(99_999_999_999)).toBe("5138-11-16T09:46:39.000Z");
    expect(date(100_000_000_000)).toBe("1973-03-03T09:46:40.000Z");
    expect(date(1.9999999)).toBe("1970-01-01T00:00:02.000Z");
    for (const epoch of [Number.POSITIVE_INFINITY, -1e300, Number.NaN]) expect(date(epoch)).toMatch(/years/);
  });

  test("is written in UTC with milliseconds", () => {
    expect(formatTimestamp(timestampFromText("2030-01-31T09:00:00.0009+01:00") as never)).toBe(
      "2030-01-31T08:00:00.000Z",
    );
    expect(formatTimestamp(timestampFromEpoch(-0.5) as never)).toBe("1969-12-31T23:59:59.500Z");
    expect(formatTimestamp(timestampFromText("0001-01-01") as never)).toBe("0001-01-01T00:00:00.000Z");
  });
});
