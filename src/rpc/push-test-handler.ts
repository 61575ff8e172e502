import { randomUUID } from "node:crypto";
import type { ServiceImpl } from "@connectrpc/connect";
import { type QueueService, TestPushSubscriptionResponseSchema } from "../../gen/scheduling/v1/queue_service_pb.js";
import { JSON_TYPE } from "../domain/content-type.ts";
import { formatId } from "../domain/ids.ts";
import { pushRequest } from "../domain/push-request.ts";
import { Refusal } from "../errors.ts";
import { signersOfSubscription } from "../store/push-subscriptions.ts";
import { startPushTest } from "../store/push-tests.ts";
import { finishPush } from "../store/pushes.ts";
import { attemptRecord } from "../webhook/attempt-record.ts";
import type { AttemptOutcome } from "../webhook/post.ts";
import type { AppContext } from "./context.ts";
import { once } from "./once.ts";
import { checkPayload } from "./payload.ts";
import { requireSubscription } from "./push-handlers.ts";

/** Tests under way in this process; each holds a connection of the pool until it is answered. */
const MAX_UNDER_WAY = 4;
/** The longest test, in seconds. The caller waits for it. */
const TEST_TIMEOUT_SECONDS = 10;
/** How much of an answer is shown, in bytes. */
const SHOWN_BYTES = 1_024;
const DEFAULT_PAYLOAD = Buffer.from('{"test": true}');

/** The call that tries a subscription out. */
export function pushTestHandler(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "testPushSubscription"> {
  let underWay = 0;
  return {
    async testPushSubscription(req, ctx) {
      const payload = req.payload ?? DEFAULT_PAYLOAD;
      const contentType = req.contentType || JSON_TYPE;
      checkPayload(app.limits, "payload", payload, contentType);
      if (underWay >= MAX_UNDER_WAY) throw new Refusal("TOO_BUSY");
      underWay += 1;
      try {
        return await once(app, ctx, TestPushSubscriptionResponseSchema, req, req.subscriptionId, async (trx) => {
          const subscription = await requireSubscription(trx, ctx, req.subscriptionId);
          const signers = await signersOfSubscription(trx, subscription);
          // Recorded by themselves: the record is to be there before the dial, and to stay when this call comes to nothing.
          const push = await startPushTest(app.db, subscription, TEST_TIMEOUT_SECONDS);
          const message = {
            message_id: randomUUID(),
            payload,
            content_type: contentType,
            headers: {},
            group_id: "",
            published_at: push.fire_at,
            run_id: push.run_id,
            attempt: push.attempt,
          };
          const request = pushRequest(subscription, [message]);
          const outcome = await app.egress.post({
            ...request,
            url: subscription.url,
            about: { ...request.about, test: "true" },
            signers,
            owner: { projectId: subscription.project_id, ownerId: subscription.subscription_id },
            at: push.started_at,
            timeoutMs: Math.min(subscription.timeout_seconds ?? TEST_TIMEOUT_SECONDS, TEST_TIMEOUT_SECONDS) * 1_000,
            signal: ctx.signal,
          });
          const error = errorOf(outcome);
          const answered = outcome.kind === "failed" ? undefined : outcome;
          await finishPush(app.db, subscription.project_id, push, {
            state: error === undefined ? "succeeded" : "failed",
            error: error ?? null,
            record: attemptRecord(outcome),
            retryInSeconds: 0,
          });
          return {
            subscriptionId: req.subscriptionId,
            runId: formatId("run", push.run_id),
            delivered: error === undefined,
            ...(answered && { responseStatus: answered.status, responseBody: shown(answered.responseBody) }),
            ...(error !== undefined && { error }),
            durationMs: outcome.durationMs,
          };
        });
      } finally {
        underWay -= 1;
      }
    },
  };
}

function errorOf(outcome: AttemptOutcome): string | undefined {
  if (outcome.kind === "delivered") return undefined;
  return outcome.kind === "failed" ? outcome.error : `HTTP ${outcome.status}`;
}

/** What is not UTF-8 shows as replacement characters: a text field carries nothing else. */
function shown(body: Uint8Array): string {
  return Buffer.from(body.subarray(0, SHOWN_BYTES)).toString("utf8");
}
