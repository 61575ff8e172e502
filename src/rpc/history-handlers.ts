import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { Refusal } from "../errors.ts";
import { queueHistory } from "../store/queue-history.ts";
import type { AppContext } from "./context.ts";
import { toActivity } from "./convert-queue.ts";
import { requireQueue } from "./find-queue.ts";
import { instantOf } from "./instant.ts";

/** What minutes are kept in, in seconds: buckets are made of whole ones. */
const MINUTE = 60;

/** The call on what went through a queue. */
export function historyHandlers(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "getQueueHistory"> {
  return {
    async getQueueHistory(req, ctx) {
      const bucketSeconds = req.bucketSeconds ?? MINUTE;
      if (bucketSeconds % MINUTE !== 0) throw Refusal.field("bucket_seconds", `must be a multiple of ${MINUTE}`);
      const since = req.since && instantOf("since", req.since);
      const until = req.until && instantOf("until", req.until);
      if (since !== undefined && until !== undefined && since >= until) {
        throw Refusal.field("since", "must be before until");
      }
      const queue = await requireQueue(app.db, ctx, req.queue);
      const rows = await queueHistory(app.db, queue, { since, until, bucketSeconds });
      return {
        bucketSeconds,
        buckets: rows.map((row) => ({
          startsAt: timestampFromDate(row.starts_at),
          activity: toActivity(row),
          ...(row.depth !== null && { depth: row.depth }),
          ...(row.oldest_age_seconds !== null && { oldestAgeSeconds: row.oldest_age_seconds }),
        })),
      };
    },
  };
}
