import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  PublishBatchResponseSchema,
  PublishResponseSchema,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { queueTopic } from "../db/wakeups.ts";
import { formatId } from "../domain/ids.ts";
import { isPlain, publishInLine } from "../store/line.ts";
import { type NewMessage, type PublishedMessage, publishMessages } from "../store/messages.ts";
import type { NamedQueueRow } from "../store/queues.ts";
import { type AppContext, projectOf } from "./context.ts";
import { ensureQueue } from "./find-queue.ts";
import { idempotencyKey, isReplay, once } from "./once.ts";
import { toNewMessage, toPublishBatchResponse, toPublishResponse, warnOfPriority } from "./publishing.ts";

/** The calls that store messages. */
export function publishHandlers(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "publish" | "publishBatch"> {
  return {
    async publish(req, ctx) {
      const messages = [toNewMessage(app, ctx, "", req)];
      const ids = await publishTogether(app, ctx, req, messages);
      if (ids !== undefined) return { messageId: formatId("msg", ids[0] ?? "") };
      const answer = await once(app, ctx, PublishResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, messages);
        return toPublishResponse(await storeMessages(trx, queue, messages));
      });
      countPublished(app, ctx, req.queue, [answer.deduplicated]);
      wake(app, ctx, req.queue, true);
      return answer;
    },

    async publishBatch(req, ctx) {
      const messages = req.messages.map((message, i) => toNewMessage(app, ctx, `messages[${i}].`, message));
      const ids = await publishTogether(app, ctx, req, messages);
      if (ids !== undefined) return { messageIds: ids.map((id) => formatId("msg", id)) };
      const answer = await once(app, ctx, PublishBatchResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, messages);
        return toPublishBatchResponse(await storeMessages(trx, queue, messages));
      });
      countPublished(
        app,
        ctx,
        req.queue,
        messages.map((_, i) => answer.deduplicated?.[i]),
      );
      wake(app, ctx, req.queue, true);
      return answer;
    },
  };
}

/**
 * Stores plain messages in one statement with those of other callers. Undefined, and nothing is stored, where that cannot
 * be: a key has to be stored as well, a message is not plain, the queue is missing or has no line.
 */
async function publishTogether(
  app: AppContext,
  ctx: HandlerContext,
  req: { readonly queue: string; readonly idempotencyKey: string },
  messages: readonly NewMessage[],
): Promise<readonly string[] | undefined> {
  if (messages.length === 0 || !messages.every(isPlain) || idempotencyKey(ctx, req.idempotencyKey) !== "") {
    return undefined;
  }
  const placed = await app.publishes.add(projectOf(ctx), req.queue, messages);
  if (placed === undefined) return undefined;
  warnOfPriority(ctx, { name: req.queue, enable_priority: false }, messages);
  countPublished(
    app,
    ctx,
    req.queue,
    messages.map(() => false),
  );
  if (!placed.isEmpty) wake(app, ctx, req.queue, placed.subscribed);
  return placed.ids;
}

/** Stores messages in the transaction: in the line where they may stand there, else singly. */
async function storeMessages(
  trx: Db,
  queue: NamedQueueRow,
  messages: readonly NewMessage[],
): Promise<PublishedMessage[]> {
  if (messages.length > 0 && messages.every(isPlain)) {
    const placed = await publishInLine(trx, queue.project_id, queue.name, messages);
    if (placed !== undefined) return placed.ids.map((message_id) => ({ message_id, deduplicated: false }));
  }
  return publishMessages(trx, queue, messages);
}

function countPublished(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  deduplicated: readonly (boolean | undefined)[],
): void {
  if (isReplay(ctx)) return;
  app.tally.add(projectOf(ctx), queueName, "published", deduplicated.filter((repeated) => !repeated).length);
}

function wake(app: AppContext, ctx: HandlerContext, queueName: string, subscribed: boolean): void {
  app.wakeups.wake(queueTopic(projectOf(ctx), queueName));
  if (subscribed) app.wakeups.wake("pushes");
}
