import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  AckResponseSchema,
  type ConsumeRequest,
  ExtendLeaseResponseSchema,
  NackResponseSchema,
  PublishBatchResponseSchema,
  PublishResponseSchema,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { queueTopic } from "../db/wakeups.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { expireLeases, leaseMessages, leasesOf, lockRequest, releaseLeases, repeatLeases } from "../store/leases.ts";
import { type MessageRow, publishMessages } from "../store/messages.ts";
import { ackMessage, type DeliveryKey, extendLease, nackMessage } from "../store/settlements.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toMessage } from "./convert-queue.ts";
import { ensureQueue, requireQueue } from "./find-queue.ts";
import { once } from "./once.ts";
import { toNewMessage, warnOfPriority } from "./publishing.ts";

type MessageHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  "publish" | "publishBatch" | "consume" | "ack" | "nack" | "extendLease"
>;

/** How long a waiting consumer relies on wake-ups alone, in milliseconds. Messages with a delay come due without one. */
export const POLL_MS = 250;

/** Stands for a message or a receipt that cannot exist. */
const NOBODY = "00000000-0000-0000-0000-000000000000";

/** The calls on single messages. */
export function messageHandlers(app: AppContext): MessageHandlers {
  return {
    async publish(req, ctx) {
      const message = toNewMessage(app, ctx, "", req);
      const answer = await once(app, ctx, PublishResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, [message]);
        const [id] = await publishMessages(trx, queue, [message]);
        return { messageId: formatId("msg", id ?? NOBODY) };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      app.wakeups.wake("pushes");
      return answer;
    },

    async publishBatch(req, ctx) {
      const messages = req.messages.map((message, i) => toNewMessage(app, ctx, `messages[${i}].`, message));
      const answer = await once(app, ctx, PublishBatchResponseSchema, req, "", async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        warnOfPriority(ctx, queue, messages);
        const ids = await publishMessages(trx, queue, messages);
        return { messageIds: ids.map((id) => formatId("msg", id)) };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      app.wakeups.wake("pushes");
      return answer;
    },

    async consume(req, ctx) {
      const endsAt = performance.now() + (req.waitSeconds ?? 0) * 1_000;
      for (;;) {
        // A caller that has gone is given nothing: nobody would settle it, and the end of its lease is a failure.
        if (ctx.signal.aborted) return {};
        const rows = await leaseFor(app, ctx, req);
        const leftMs = endsAt - performance.now();
        if (rows.length > 0 || leftMs <= 0) {
          if (ctx.signal.aborted) await giveBack(app, ctx, req, rows);
          return { messages: rows.map(toMessage) };
        }
        await app.wakeups.wait(queueTopic(projectOf(ctx), req.queue), Math.min(leftMs, POLL_MS), ctx.signal);
      }
    },

    async ack(req, ctx) {
      const answer = await once(app, ctx, AckResponseSchema, req, "", async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const outcome = await ackMessage(trx, queue, deliveryKey(req));
        return { messageId: req.messageId, ...outcome };
      });
      // Room for the next message of its group, or of a stream that had handed out all it may.
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      return answer;
    },

    async nack(req, ctx) {
      const answer = await once(app, ctx, NackResponseSchema, req, "", async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const outcome = await nackMessage(trx, queue, {
          ...deliveryKey(req),
          requeue: req.requeue ?? true,
          penalty: req.penalty ?? true,
          delaySeconds: req.delaySeconds ?? 0,
          error: req.reason,
        });
        return { messageId: req.messageId, ...outcome };
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      return answer;
    },

    async extendLease(req, ctx) {
      const answer = await once(app, ctx, ExtendLeaseResponseSchema, req, "", async (trx) => {
        const queue = await requireQueue(trx, ctx, req.queue);
        const outcome = await extendLease(trx, queue, deliveryKey(req), req.visibilityTimeout ?? 0);
        return toExtendAnswer(req.messageId, outcome);
      });
      app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
      return answer;
    },
  };
}

function toExtendAnswer(
  messageId: string,
  outcome: Awaited<ReturnType<typeof extendLease>>,
): MessageInitShape<typeof ExtendLeaseResponseSchema> {
  if (!outcome.extended) return { messageId, extended: false, reason: outcome.reason };
  const { leaseExpiresAt } = outcome;
  return { messageId, extended: true, ...(leaseExpiresAt && { leaseExpiresAt: timestampFromDate(leaseExpiresAt) }) };
}

/** One attempt at a hand-out. With a request id, its leases are handed out again while they live. */
async function leaseFor(app: AppContext, ctx: HandlerContext, req: ConsumeRequest): Promise<MessageRow[]> {
  return app.db.transaction().execute(async (trx) => {
    const queue = await requireQueue(trx, ctx, req.queue);
    if (req.requestId !== "") {
      await lockRequest(trx, queue, req.requestId);
      const again = await repeatLeases(trx, queue, req.requestId);
      if (again.length > 0) return again;
    }
    await expireLeases(trx, queue);
    return leaseMessages(trx, queue, {
      limit: req.maxMessages ?? 1,
      visibilitySeconds: req.visibilityTimeout ?? queue.visibility_timeout_seconds,
      requestId: req.requestId,
    });
  });
}

/** Releases what was leased for a caller that went meanwhile, unless it can ask for it again by its request id. */
async function giveBack(app: AppContext, ctx: HandlerContext, req: ConsumeRequest, rows: MessageRow[]): Promise<void> {
  if (rows.length === 0 || req.requestId !== "") return;
  await releaseLeases(app.db, await requireQueue(app.db, ctx, req.queue), leasesOf(rows));
  app.wakeups.wake(queueTopic(projectOf(ctx), req.queue));
}

/** Ids and receipts that cannot be ours become ones that nothing has, so that they are answered like unknown ones. */
function deliveryKey(req: { readonly messageId: string; readonly receipt: string }): DeliveryKey {
  return {
    messageId: parseId("msg", req.messageId) ?? NOBODY,
    receipt: req.receipt === "" ? undefined : parseReceipt(req.receipt),
  };
}

function parseReceipt(receipt: string): string {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(receipt) ? receipt : NOBODY;
}
