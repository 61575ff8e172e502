import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { formatCursor, parseCursor } from "../domain/cursor.ts";
import { formatId } from "../domain/ids.ts";
import { type BlockedGroupRow, listBlockedGroups, queueBlock } from "../store/groups.ts";
import type { AppContext } from "./context.ts";
import { requireQueue } from "./find-queue.ts";
import { PAGE_LIMIT } from "./page.ts";

/** The calls on groups of messages. */
export function groupHandlers(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "listBlockedGroups"> {
  return {
    async listBlockedGroups(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const after = parseCursor("blocked_groups", req.queue, req.cursor)?.[0];
      const { rows, block } = await app.db.transaction().execute(async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const block = await queueBlock(trx, queue);
        return { block, rows: await listBlockedGroups(trx, queue, after, limit + 1) };
      });
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map(toBlockedGroup),
        ...(last === undefined ? {} : { nextCursor: formatCursor("blocked_groups", req.queue, [last.group_id]) }),
        ...(block === undefined ? {} : { queueReason: block.reason }),
        ...(block?.until ? { queueUntil: timestampFromDate(block.until) } : {}),
      };
    },
  };
}

function toBlockedGroup(row: BlockedGroupRow) {
  return {
    groupId: row.group_id,
    reason: row.reason,
    ...(row.message_id === null ? {} : { messageId: formatId("msg", row.message_id) }),
    ...(row.until === null ? {} : { until: timestampFromDate(row.until) }),
    ...(row.failure_count === null ? {} : { failures: row.failure_count }),
    depth: row.depth,
    inFlight: row.in_flight,
    oldestAgeSeconds: row.oldest_age_seconds,
  };
}
