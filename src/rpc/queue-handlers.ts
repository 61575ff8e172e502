import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  type CreateQueueRequest,
  CreateQueueResponseSchema,
  DeleteQueueResponseSchema,
  PauseQueueResponseSchema,
  PurgeQueueResponseSchema,
  type QueueService,
  QueueType,
  ResumeQueueResponseSchema,
  UpdateQueueRequestSchema,
  UpdateQueueResponseSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { formatCursor, parseCursor } from "../domain/cursor.ts";
import { Refusal } from "../errors.ts";
import { purgeQueue } from "../store/purge.ts";
import { lastHour } from "../store/queue-history.ts";
import { queueStats } from "../store/queue-stats.ts";
import {
  createQueue,
  deleteQueue,
  isDeadLetterQueue,
  listQueues,
  lockQueue,
  type NamedQueueRow,
  QUEUE_DEFAULTS,
  type QueueChanges,
  updateQueue,
} from "../store/queues.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toQueue, toStats } from "./convert-queue.ts";
import { deadLetterQueueId, deadLetterQueueIdFor, requireQueue } from "./find-queue.ts";
import { flowChanges, flowSettings, saidOfFlow } from "./flow-limits.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { writtenFields } from "./update-mask.ts";

type QueueHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  | "createQueue"
  | "getQueue"
  | "listQueues"
  | "updateQueue"
  | "pauseQueue"
  | "resumeQueue"
  | "deleteQueue"
  | "purgeQueue"
  | "getQueueStats"
>;

/** The calls on a queue's definition and on its contents as a whole. */
export function queueHandlers(app: AppContext): QueueHandlers {
  return {
    createQueue: (req, ctx) =>
      once(app, ctx, CreateQueueResponseSchema, req, "", async (trx) => {
        const deadLetterQueue = await deadLetterQueueId(trx, ctx, req.deadLetterQueue);
        if (req.deadLetterQueue === req.queue) {
          throw new Refusal("DEAD_LETTER_QUEUE_CYCLE", { queue: req.queue, dead_letter_queue: req.queue });
        }
        const { queue, created } = await createQueue(trx, projectOf(ctx), req.queue, {
          type: req.type === QueueType.FIFO ? "fifo" : "standard",
          dead_letter_queue_id: deadLetterQueue,
          max_retries: req.maxRetries ?? QUEUE_DEFAULTS.max_retries,
          message_retention_days: req.messageRetentionDays ?? QUEUE_DEFAULTS.message_retention_days,
          visibility_timeout_seconds: req.visibilityTimeoutDefault ?? QUEUE_DEFAULTS.visibility_timeout_seconds,
          enable_priority: req.enablePriority,
          ...flowSettings(req),
          require_receipt: req.requireReceipt,
          content_deduplication: req.contentDeduplication,
          ...(req.deduplicationWindowSeconds !== undefined && {
            deduplication_window_seconds: req.deduplicationWindowSeconds,
          }),
        });
        if (!created) assertSameSettings(queue, req);
        return { queue: toQueue(queue) };
      }),

    getQueue: async (req, ctx) => ({ queue: toQueue(await requireQueue(app.db, ctx, req.queue)) }),

    async listQueues(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const after = parseCursor("queues", "", req.cursor)?.[0] ?? "";
      const rows = await listQueues(app.db, projectOf(ctx), after, limit + 1);
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map(toQueue),
        ...(last === undefined ? {} : { nextCursor: formatCursor("queues", "", [last.name]) }),
      };
    },

    async updateQueue(req, ctx) {
      const answer = await once(app, ctx, UpdateQueueResponseSchema, req, req.queue, async (trx) => {
        const queue = await lockQueue(trx, projectOf(ctx), req.queue);
        if (queue === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: req.queue });
        const written = writtenFields(UpdateQueueRequestSchema, req);
        const changes: QueueChanges = {
          ...(written.has("max_retries") && { max_retries: req.maxRetries ?? QUEUE_DEFAULTS.max_retries }),
          ...(written.has("message_retention_days") && {
            message_retention_days: req.messageRetentionDays ?? QUEUE_DEFAULTS.message_retention_days,
          }),
          ...(written.has("visibility_timeout_default") && {
            visibility_timeout_seconds: req.visibilityTimeoutDefault ?? QUEUE_DEFAULTS.visibility_timeout_seconds,
          }),
          ...(written.has("enable_priority") && {
            enable_priority: req.enablePriority ?? QUEUE_DEFAULTS.enable_priority,
          }),
          ...(written.has("require_receipt") && { require_receipt: req.requireReceipt ?? false }),
          ...(written.has("content_deduplication") && { content_deduplication: req.contentDeduplication ?? false }),
          ...(written.has("deduplication_window_seconds") && {
            deduplication_window_seconds: req.deduplicationWindowSeconds ?? QUEUE_DEFAULTS.deduplication_window_seconds,
          }),
          ...(written.has("paused") && { paused: req.paused ?? false }),
          ...flowChanges(req, written, queue.type),
        };
        if (written.has("dead_letter_queue")) {
          changes.dead_letter_queue_id = await deadLetterQueueIdFor(trx, ctx, queue, req.deadLetterQueue ?? "");
        }
        if (written.size > 0) await updateQueue(trx, queue, changes);
        return { queue: toQueue(await requireQueue(trx, ctx, req.queue)) };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      return answer;
    },

    pauseQueue: (req, ctx) =>
      once(app, ctx, PauseQueueResponseSchema, req, req.queue, (trx) => setPaused(trx, ctx, req.queue, true)),

    async resumeQueue(req, ctx) {
      const answer = await once(app, ctx, ResumeQueueResponseSchema, req, req.queue, (trx) =>
        setPaused(trx, ctx, req.queue, false),
      );
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      app.wakeups.wake("pushes");
      return answer;
    },

    async deleteQueue(req, ctx) {
      const answer = await once(app, ctx, DeleteQueueResponseSchema, req, req.queue, async (trx) => {
        const queue = await lockQueue(trx, projectOf(ctx), req.queue);
        if (queue === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: req.queue });
        if (!req.force && (await isDeadLetterQueue(trx, queue)))
          throw new Refusal("QUEUE_IN_USE", { queue: req.queue });
        await deleteQueue(trx, queue);
        return { queue: req.queue, deleted: true };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      return answer;
    },

    purgeQueue: (req, ctx) =>
      once(app, ctx, PurgeQueueResponseSchema, req, req.queue, async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        return { queue: req.queue, purged: await purgeQueue(trx, queue) };
      }),

    async getQueueStats(req, ctx) {
      const queue = await requireQueue(app.db, ctx, req.queue);
      return { stats: toStats(queue, await queueStats(app.db, queue), await lastHour(app.db, queue)) };
    },
  };
}

async function setPaused(trx: Db, ctx: HandlerContext, name: string, paused: boolean) {
  const queue = await lockQueue(trx, projectOf(ctx), name);
  if (queue === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: name });
  if (queue.paused !== paused) await updateQueue(trx, queue, { paused });
  return { queue: toQueue(await requireQueue(trx, ctx, name)) };
}

/** Creating again is safe as long as what the caller says agrees with what is there; what is left out is not compared. */
function assertSameSettings(queue: NamedQueueRow, req: CreateQueueRequest): void {
  const said: readonly (readonly [field: string, said: unknown, is: unknown])[] = [
    [
      "type",
      req.type === QueueType.UNSPECIFIED ? undefined : req.type === QueueType.FIFO ? "fifo" : "standard",
      queue.type,
    ],
    ["dead_letter_queue", req.deadLetterQueue || undefined, queue.dead_letter_queue],
    ["max_retries", req.maxRetries, queue.max_retries],
    ["message_retention_days", req.messageRetentionDays, queue.message_retention_days],
    ["visibility_timeout_default", req.visibilityTimeoutDefault, queue.visibility_timeout_seconds],
    ["enable_priority", req.enablePriority || undefined, queue.enable_priority],
    ...saidOfFlow(req, queue),
    ["require_receipt", req.requireReceipt || undefined, queue.require_receipt],
    ["content_deduplication", req.contentDeduplication || undefined, queue.content_deduplication],
    ["deduplication_window_seconds", req.deduplicationWindowSeconds, queue.deduplication_window_seconds],
  ];
  const other = said.find(([, value, is]) => value !== undefined && value !== is);
  if (other !== undefined) throw new Refusal("QUEUE_EXISTS", { queue: req.queue, field: other[0] });
}
