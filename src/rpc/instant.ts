import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import { Refusal } from "../errors.ts";

/** The instant of a timestamp, to the millisecond. @throws Refusal FIELD_INVALID outside the years 1 to 9999 */
export function instantOf(field: string, timestamp: Timestamp): Date {
  const instant = timestampDate(timestamp);
  const year = instant.getUTCFullYear();
  // An instant that Date cannot hold has no year.
  if (!(year >= 1 && year <= 9999)) throw Refusal.field(field, "must be in the years 1 to 9999");
  return instant;
}
