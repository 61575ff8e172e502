import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  DeletePushSubscriptionResponseSchema,
  PausePushSubscriptionResponseSchema,
  PushSubscribeResponseSchema,
  type QueueService,
  ResumePushSubscriptionResponseSchema,
  RotatePushSecretResponseSchema,
  UpdatePushSubscriptionRequestSchema,
  UpdatePushSubscriptionResponseSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { formatCursor } from "../domain/cursor.ts";
import { formatId, parseId } from "../domain/ids.ts";
import { Refusal } from "../errors.ts";
import {
  deletePushSubscription,
  findPushSubscription,
  listPushSubscriptions,
  type NamedSubscriptionRow,
  putPushSubscription,
  updatePushSubscription,
} from "../store/push-subscriptions.ts";
import { setSigningSecret } from "../store/signing-keys.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toSubscription } from "./convert-push.ts";
import { deadLetterQueueIdFor, ensureQueue, requireQueue } from "./find-queue.ts";
import { lastIdOf } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { subscriptionChanges, subscriptionSettings } from "./push-settings.ts";
import { checkSecret, rotateAsAsked, sealSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";
import { writtenFields } from "./update-mask.ts";

type PushHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  | "pushSubscribe"
  | "getPushSubscription"
  | "listPushSubscriptions"
  | "updatePushSubscription"
  | "pausePushSubscription"
  | "resumePushSubscription"
  | "deletePushSubscription"
  | "rotatePushSecret"
>;

/** The calls on push subscriptions. */
export function pushHandlers(app: AppContext): PushHandlers {
  return {
    async pushSubscribe(req, ctx) {
      const settings = subscriptionSettings(app, req);
      const answer = await once(app, ctx, PushSubscribeResponseSchema, req, req.queue, async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        const deadLetterQueue = await deadLetterQueueIdFor(trx, ctx, queue, req.deadLetterQueue);
        const id = await putPushSubscription(trx, {
          ...settings,
          headers: "{}",
          project_id: projectOf(ctx),
          queue_id: queue.queue_id,
          dead_letter_queue_id: deadLetterQueue,
        });
        const owner = { projectId: projectOf(ctx), ownerId: id };
        // Credentials are sealed for the subscription, whose id is known only now.
        const headers = JSON.stringify(headersToStore(app.vault, owner, "headers", req.headers));
        await updatePushSubscription(trx, { project_id: projectOf(ctx), subscription_id: id }, { headers });
        await setSigningSecret(trx, owner, req.secret === "" ? null : sealSecret(app.vault, owner, req.secret));
        return { subscription: toSubscription(await requireSubscription(trx, ctx, formatId("sub", id))) };
      });
      app.wakeups.wake("pushes");
      return answer;
    },

    getPushSubscription: async (req, ctx) => ({
      subscription: toSubscription(await requireSubscription(app.db, ctx, req.subscriptionId)),
    }),

    async listPushSubscriptions(req, ctx) {
      const limit = req.limit ?? PAGE_LIMIT;
      const queue = await requireQueue(app.db, ctx, req.queue);
      const after = lastIdOf({ list: "subscriptions", scope: queue.queue_id, prefix: "sub" }, req.cursor);
      const rows = await listPushSubscriptions(app.db, queue, after, limit + 1);
      const last = rows.length > limit ? rows[limit - 1] : undefined;
      return {
        items: rows.slice(0, limit).map(toSubscription),
        ...(last && {
          nextCursor: formatCursor("subscriptions", queue.queue_id, [formatId("sub", last.subscription_id)]),
        }),
      };
    },

    async updatePushSubscription(req, ctx) {
      const written = writtenFields(UpdatePushSubscriptionRequestSchema, req);
      const answer = await once(
        app,
        ctx,
        UpdatePushSubscriptionResponseSchema,
        req,
        req.subscriptionId,
        async (trx) => {
          const subscription = await requireSubscription(trx, ctx, req.subscriptionId);
          const changes = subscriptionChanges(app, subscription, req, written);
          if (written.has("dead_letter_queue")) {
            const queue = { queue_id: subscription.queue_id, name: subscription.queue };
            changes.dead_letter_queue_id = await deadLetterQueueIdFor(trx, ctx, queue, req.deadLetterQueue ?? "");
          }
          if (written.size > 0 && !(await updatePushSubscription(trx, subscription, changes))) {
            throw new Refusal("SUBSCRIPTION_EXISTS");
          }
          return { subscription: toSubscription(await requireSubscription(trx, ctx, req.subscriptionId)) };
        },
      );
      app.wakeups.wake("pushes");
      return answer;
    },

    pausePushSubscription: (req, ctx) =>
      once(app, ctx, PausePushSubscriptionResponseSchema, req, req.subscriptionId, (trx) =>
        setPaused(trx, ctx, req.subscriptionId, true),
      ),

    async resumePushSubscription(req, ctx) {
      const answer = await once(app, ctx, ResumePushSubscriptionResponseSchema, req, req.subscriptionId, (trx) =>
        setPaused(trx, ctx, req.subscriptionId, false),
      );
      app.wakeups.wake("pushes");
      return answer;
    },

    deletePushSubscription: (req, ctx) =>
      once(app, ctx, DeletePushSubscriptionResponseSchema, req, req.subscriptionId, async (trx) => {
        const subscription = await requireSubscription(trx, ctx, req.subscriptionId);
        await deletePushSubscription(trx, subscription);
        return { subscriptionId: req.subscriptionId, deleted: true };
      }),

    rotatePushSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotatePushSecretResponseSchema, req, req.subscriptionId, async (trx) => {
        const subscription = await requireSubscription(trx, ctx, req.subscriptionId);
        const owner = { projectId: subscription.project_id, ownerId: subscription.subscription_id };
        return { subscriptionId: req.subscriptionId, ...(await rotateAsAsked(app.vault, trx, owner, req)) };
      });
    },
  };
}

/** The caller's subscription of that id. @throws Refusal SUBSCRIPTION_NOT_FOUND */
export async function requireSubscription(
  db: Db,
  ctx: HandlerContext,
  subscriptionId: string,
): Promise<NamedSubscriptionRow> {
  const id = parseId("sub", subscriptionId);
  const subscription = id && (await findPushSubscription(db, projectOf(ctx), id));
  if (!subscription) throw new Refusal("SUBSCRIPTION_NOT_FOUND", { subscription_id: subscriptionId });
  return subscription;
}

async function setPaused(trx: Db, ctx: HandlerContext, subscriptionId: string, paused: boolean) {
  const subscription = await requireSubscription(trx, ctx, subscriptionId);
  if (subscription.paused !== paused) await updatePushSubscription(trx, subscription, { paused });
  return { subscription: toSubscription(await requireSubscription(trx, ctx, subscriptionId)) };
}
