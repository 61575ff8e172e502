import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { DeadLetterFilterSchema } from "../../gen/scheduling/v1/dead_letter_pb.js";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import type { DeadLetterFilter } from "../store/dead-letter-filter.ts";
import { instantOf } from "./instant.ts";

/** The fields of a filter, as a message of their own or among those of a request. */
interface FilterFields {
  readonly messageIds: readonly string[];
  readonly reason: string;
  readonly since?: Timestamp | undefined;
  readonly until?: Timestamp | undefined;
  readonly groupId?: string | undefined;
  readonly headerContains: string;
  readonly errorContains: string;
}

/**
 * The store's filter. Ids that cannot be ours are passed over, as unknown ones are. `prefix` leads to the fields in the
 * request, for refusals.
 *
 * @throws Refusal FIELD_INVALID
 */
export function toFilter(prefix: string, given: FilterFields | undefined): DeadLetterFilter {
  if (given === undefined) return {};
  const since = given.since && instantOf(`${prefix}since`, given.since);
  const until = given.until && instantOf(`${prefix}until`, given.until);
  if (since !== undefined && until !== undefined && until <= since) {
    throw Refusal.field(`${prefix}until`, `must be after ${prefix}since`);
  }
  return {
    ...(given.messageIds.length > 0 && { messageIds: given.messageIds.flatMap((id) => parseId("msg", id) ?? []) }),
    ...(given.reason !== "" && { reason: given.reason }),
    ...(since !== undefined && { since }),
    ...(until !== undefined && { until }),
    ...(given.groupId !== undefined && { groupId: given.groupId }),
    ...(given.headerContains !== "" && { headerContains: given.headerContains }),
    ...(given.errorContains !== "" && { errorContains: given.errorContains }),
  };
}

/** The contract's filter; undefined where it means every dead letter. */
export function fromFilter(filter: DeadLetterFilter): MessageInitShape<typeof DeadLetterFilterSchema> | undefined {
  const { messageIds, since, until, ...rest } = filter;
  const said = {
    ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined)),
    ...(messageIds && { messageIds: messageIds.map((id) => formatId("msg", id)) }),
    ...(since && { since: timestampFromDate(since) }),
    ...(until && { until: timestampFromDate(until) }),
  };
  return Object.keys(said).length === 0 ? undefined : said;
}

/** Stands for a filter in a cursor; empty for none. */
export function filterTag(filter: DeadLetterFilter): string {
  if (Object.keys(filter).length === 0) return "";
  return createHash("sha256").update(JSON.stringify(filter)).digest("base64url").slice(0, 22);
}
