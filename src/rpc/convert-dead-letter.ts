import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type RedriveSchema, RedriveState } from "../../gen/scheduling/v1/dead_letter_pb.js";
import type { DeadLetterSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { DeathRecord, RedriveRow } from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import type { DeadLetterRow } from "../store/dead-letters.ts";
import { filterOfRedrive } from "../store/redrives.ts";
import { toMessage } from "./convert-queue.ts";
import { fromFilter } from "./dead-letter-filter.ts";

const STATES = {
  running: RedriveState.RUNNING,
  succeeded: RedriveState.SUCCEEDED,
  canceled: RedriveState.CANCELED,
  failed: RedriveState.FAILED,
} as const;

export function toDeadLetter(row: DeadLetterRow): MessageInitShape<typeof DeadLetterSchema> {
  const over = (of: (death: DeathRecord) => number) => row.deaths.reduce((sum, death) => sum + of(death), 0);
  return {
    message: toMessage(row),
    failures: row.failure_count + over((death) => death.failures),
    returns: row.return_count + over((death) => death.returns),
    expiries: row.expiry_count + over((death) => death.expiries),
    firstSourceQueue: row.deaths[0]?.queue ?? "",
    deaths: row.deaths.map(({ died_at, error, ...death }) => ({
      ...death,
      diedAt: timestampFromDate(new Date(died_at)),
      ...(error !== null && { error }),
    })),
  };
}

export function toRedrive(row: RedriveRow): MessageInitShape<typeof RedriveSchema> {
  const filter = fromFilter(filterOfRedrive(row));
  return {
    redriveId: formatId("rdr", row.redrive_id),
    queue: row.queue_name,
    ...(row.to_queue_id !== row.queue_id && { toQueue: row.to_queue_name }),
    ...(filter && { filter }),
    ...(row.messages_per_second !== null && { messagesPerSecond: row.messages_per_second }),
    state: STATES[row.state],
    matched: row.matched,
    moved: row.moved,
    startedAt: timestampFromDate(row.started_at),
    ...(row.finished_at !== null && { finishedAt: timestampFromDate(row.finished_at) }),
    ...(row.error !== null && { error: row.error }),
  };
}
