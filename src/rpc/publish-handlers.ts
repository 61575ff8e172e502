import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  PublishBatchResponseSchema,
  PublishResponseSchema,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { queueTopic } from "../db/wakeups.ts";
import { isPlain } from "../store/line.ts";
import { type NewMessage, type PublishedMessage, publishMessages } from "../store/messages.ts";
import { type AppContext, projectOf } from "./context.ts";
import { ensureQueue } from "./find-queue.ts";
import { idempotencyKey, isReplay, once } from "./once.ts";
import { toNewMessage, toPublishBatchResponse, toPublishResponse, warnOfPriority } from "./publishing.ts";

/** The calls that store messages. */
export function publishHandlers(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "publish" | "publishBatch"> {
  return {
    async publish(req, ctx) {
      const messages = [toNewMessage(app, ctx, "", req)];
      const together = await publishTogether(app, ctx, req, messages);
      if (together !== undefined) return toPublishResponse(together);
      const answer = await once(app, ctx, PublishResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, messages);
        return toPublishResponse(await publishMessages(trx, queue, messages));
      });
      countPublished(app, ctx, req.queue, [answer.deduplicated]);
      wake(app, ctx, req.queue, true);
      return answer;
    },

    async publishBatch(req, ctx) {
      const messages = req.messages.map((message, i) => toNewMessage(app, ctx, `messages[${i}].`, message));
      const together = await publishTogether(app, ctx, req, messages);
      if (together !== undefined) return toPublishBatchResponse(together);
      const answer = await once(app, ctx, PublishBatchResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, messages);
        return toPublishBatchResponse(await publishMessages(trx, queue, messages));
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
 * be: a key has to be stored as well, a message is not plain, the queue is missing. (A call with a key has a transaction
 * of several statements, in which it must not hold the turn that other publishers wait for.)
 */
async function publishTogether(
  app: AppContext,
  ctx: HandlerContext,
  req: { readonly queue: string; readonly idempotencyKey: string },
  messages: readonly NewMessage[],
): Promise<readonly PublishedMessage[] | undefined> {
  if (messages.length === 0 || !messages.every(isPlain) || idempotencyKey(ctx, req.idempotencyKey) !== "") {
    return undefined;
  }
  const published = await app.publishes.add(projectOf(ctx), req.queue, messages);
  if (published === undefined) return undefined;
  const { ids, deduplicated, queue } = published;
  warnOfPriority(ctx, queue, messages);
  countPublished(app, ctx, req.queue, deduplicated);
  if (!published.isEmpty) wake(app, ctx, req.queue, published.subscribed);
  return ids.map((message_id, i) => ({ message_id, deduplicated: deduplicated[i] ?? false }));
}

/** Counts messages for the queue's history: not those for which an earlier one stands, nor those of a repeated answer. */
function countPublished(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  deduplicated: readonly (boolean | undefined)[],
): void {
  if (isReplay(ctx)) return;
  app.tally.add(projectOf(ctx), queueName, "published", deduplicated.filter((isOther) => isOther !== true).length);
}

function wake(app: AppContext, ctx: HandlerContext, queueName: string, subscribed: boolean): void {
  app.wakeups.wake(queueTopic(projectOf(ctx), queueName));
  if (subscribed) app.wakeups.wake("pushes");
}
