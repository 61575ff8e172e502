import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  DeletePushSubscriptionResponseSchema,
  PushMode,
  PushSubscribeResponseSchema,
  type QueueService,
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
  rotatePushSecret,
  type SubscriptionChanges,
  updatePushSubscription,
} from "../store/push-subscriptions.ts";
import { newSecret } from "../webhook/sign.ts";
import { checkTarget } from "../webhook/target.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toSubscription } from "./convert-queue.ts";
import { deadLetterQueueIdFor, ensureQueue, requireQueue } from "./find-queue.ts";
import { lastIdOf } from "./newest-first.ts";
import { once } from "./once.ts";
import { PAGE_LIMIT } from "./page.ts";
import { checkSecret } from "./secret.ts";
import { writtenFields } from "./update-mask.ts";

/** Seconds for which an old secret signs beside the new one where the caller does not say. */
const ROTATION_OVERLAP_SECONDS = 86_400;

type PushHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  | "pushSubscribe"
  | "getPushSubscription"
  | "listPushSubscriptions"
  | "updatePushSubscription"
  | "deletePushSubscription"
  | "rotatePushSecret"
>;

/** The calls on push subscriptions. */
export function pushHandlers(app: AppContext): PushHandlers {
  return {
    async pushSubscribe(req, ctx) {
      const url = checkTarget("url", req.url, app.targets);
      checkSecret(req.secret);
      const answer = await once(app, ctx, PushSubscribeResponseSchema, req, req.queue, async (trx) => {
        const queue = await ensureQueue(app, trx, ctx, req.queue);
        const deadLetterQueue = await deadLetterQueueIdFor(trx, ctx, queue, req.deadLetterQueue);
        const id = await putPushSubscription(trx, {
          project_id: projectOf(ctx),
          queue_id: queue.queue_id,
          url,
          mode: toMode(req.mode),
          secret: req.secret === "" ? null : req.secret,
          previous_secret: null,
          previous_valid_until: null,
          max_retries: req.maxRetries ?? null,
          visibility_timeout_seconds: req.visibilityTimeout ?? null,
          dead_letter_queue_id: deadLetterQueue,
        });
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
          const changes: SubscriptionChanges = {
            ...(written.has("url") && { url: checkTarget("url", req.url ?? "", app.targets) }),
            ...(written.has("max_retries") && { max_retries: req.maxRetries ?? null }),
            ...(written.has("visibility_timeout") && { visibility_timeout_seconds: req.visibilityTimeout ?? null }),
            ...(written.has("mode") && { mode: toMode(req.mode ?? PushMode.COMPETE) }),
            ...(written.has("paused") && { paused: req.paused ?? false }),
          };
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

    deletePushSubscription: (req, ctx) =>
      once(app, ctx, DeletePushSubscriptionResponseSchema, req, req.subscriptionId, async (trx) => {
        const id = parseId("sub", req.subscriptionId);
        if (id === undefined || !(await deletePushSubscription(trx, projectOf(ctx), id))) {
          throw new Refusal("SUBSCRIPTION_NOT_FOUND", { subscription_id: req.subscriptionId });
        }
        return { subscriptionId: req.subscriptionId, deleted: true };
      }),

    rotatePushSecret(req, ctx) {
      checkSecret(req.secret);
      return once(app, ctx, RotatePushSecretResponseSchema, req, req.subscriptionId, async (trx) => {
        const subscription = await requireSubscription(trx, ctx, req.subscriptionId);
        const secret = req.secret === "" ? newSecret() : req.secret;
        const until = await rotatePushSecret(trx, subscription, secret, req.overlapSeconds ?? ROTATION_OVERLAP_SECONDS);
        if (until === undefined) throw new Refusal("SUBSCRIPTION_NOT_FOUND", { subscription_id: req.subscriptionId });
        return {
          subscriptionId: req.subscriptionId,
          ...(req.secret === "" && { secret }),
          previousValidUntil: timestampFromDate(until),
        };
      });
    },
  };
}

/** The caller's subscription of that id. @throws Refusal SUBSCRIPTION_NOT_FOUND */
async function requireSubscription(db: Db, ctx: HandlerContext, subscriptionId: string): Promise<NamedSubscriptionRow> {
  const id = parseId("sub", subscriptionId);
  const subscription = id && (await findPushSubscription(db, projectOf(ctx), id));
  if (!subscription) throw new Refusal("SUBSCRIPTION_NOT_FOUND", { subscription_id: subscriptionId });
  return subscription;
}

function toMode(mode: PushMode): "compete" | "fanout" {
  return mode === PushMode.FANOUT ? "fanout" : "compete";
}
