import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { type QueueService, ResumeGroupResponseSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db, QueueRow } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { formatCursor, parseCursor } from "../domain/cursor.ts";
import { formatId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import { type BlockedGroupRow, listBlockedGroups, queueBlock } from "../store/groups.ts";
import { listGroupsOfSubscription, resumeGroup, resumeGroupOfSubscription } from "../store/push-groups.ts";
import { type AppContext, projectOf } from "./context.ts";
import { requireQueue } from "./find-queue.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { requireSubscription } from "./push-handlers.ts";

/** The calls on groups of messages. */
export function groupHandlers(
  app: AppContext,
): Pick<ServiceImpl<typeof QueueService>, "listBlockedGroups" | "resumeGroup"> {
  return {
    async listBlockedGroups(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const scope = `${req.queue}/${req.subscriptionId}`;
      const after = parseCursor("blocked_groups", scope, req.cursor)?.[0];
      const { rows, block } = await app.db.transaction().execute(async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const block = await queueBlock(trx, queue);
        const subscription = await subscriptionOf(trx, ctx, queue, req.subscriptionId);
        const rows =
          subscription === undefined
            ? await listBlockedGroups(trx, queue, after, limit + 1)
            : await listGroupsOfSubscription(trx, queue, subscription.subscription_id, after, limit + 1);
        return { block, rows };
      });
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map(toBlockedGroup),
        ...(last === undefined ? {} : { nextCursor: formatCursor("blocked_groups", scope, [last.group_id]) }),
        ...(block === undefined ? {} : { queueReason: block.reason }),
        ...(block?.until ? { queueUntil: timestampFromDate(block.until) } : {}),
      };
    },

    async resumeGroup(req, ctx) {
      const answer = await once(app, ctx, ResumeGroupResponseSchema, req, req.queue, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const subscription = await subscriptionOf(trx, ctx, queue, req.subscriptionId);
        const messageId =
          subscription === undefined
            ? await resumeGroup(trx, queue, req.groupId, req.skip)
            : await resumeGroupOfSubscription(trx, queue, subscription, req.groupId, req.skip);
        if (messageId === undefined) throw new Refusal("GROUP_NOT_WAITING", { group_id: JSON.stringify(req.groupId) });
        return { queue: req.queue, groupId: req.groupId, messageId: formatId("msg", messageId), skipped: req.skip };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      app.wakeups.wake("pushes");
      return answer;
    },
  };
}

/** The queue's subscription of that id; undefined for the empty id. @throws Refusal SUBSCRIPTION_NOT_FOUND */
async function subscriptionOf(trx: Db, ctx: HandlerContext, queue: QueueRow, id: string) {
  if (id === "") return undefined;
  const subscription = await requireSubscription(trx, ctx, id);
  if (subscription.queue_id !== queue.queue_id) throw new Refusal("SUBSCRIPTION_NOT_FOUND", { subscription_id: id });
  return subscription;
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
