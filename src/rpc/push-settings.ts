import type { PushSubscribeRequest, UpdatePushSubscriptionRequest } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { PushSubscriptionRow } from "../db/schema.ts";
import type { KeyOwner } from "../domain/signing-key.ts";
import { Refusal } from "../errors.ts";
import type { NewSubscription, SubscriptionChanges } from "../store/push-subscriptions.ts";
import { checkTarget } from "../webhook/target.ts";
import type { AppContext } from "./context.ts";
import { fromGroupFailurePolicy, fromPushBody, fromPushMode } from "./convert-push.ts";
import { backoffToStore } from "./retry-policy.ts";
import { checkSecret } from "./secret.ts";
import { headersToStore } from "./secret-headers.ts";

/** What a subscription is apart from its queues and from what is sealed for it. */
export type SubscriptionSettings = Omit<
  NewSubscription,
  "project_id" | "queue_id" | "dead_letter_queue_id" | "headers"
>;

/**
 * The settings that a request describes, with defaults for what it leaves out.
 *
 * @throws Refusal TARGET_REFUSED, FIELD_INVALID
 */
export function subscriptionSettings(app: AppContext, req: PushSubscribeRequest): SubscriptionSettings {
  checkSecret(req.secret);
  const settings = {
    url: checkTarget("url", req.url, app.targets),
    mode: fromPushMode(req.mode),
    max_retries: req.maxRetries ?? null,
    backoff: backoffToStore(req.retryPolicy),
    visibility_timeout_seconds: req.visibilityTimeout ?? null,
    timeout_seconds: req.timeoutSeconds ?? null,
    max_concurrency: req.maxConcurrency ?? null,
    body: fromPushBody(req.body),
    batch_size: req.batchSize ?? 1,
    batch_window_ms: req.batchWindowMs ?? 0,
    group_failure_policy: fromGroupFailurePolicy(req.groupFailurePolicy),
  };
  checkBatchBody(settings);
  return settings;
}

/**
 * What an update writes, apart from the dead letter queue.
 *
 * @param written the fields that the request writes.
 * @throws Refusal TARGET_REFUSED, FIELD_INVALID
 */
export function subscriptionChanges(
  app: AppContext,
  subscription: PushSubscriptionRow,
  req: UpdatePushSubscriptionRequest,
  written: ReadonlySet<string>,
): SubscriptionChanges {
  const changes = {
    ...(written.has("url") && { url: checkTarget("url", req.url ?? "", app.targets) }),
    ...(written.has("max_retries") && { max_retries: req.maxRetries ?? null }),
    ...(written.has("retry_policy") && { backoff: backoffToStore(req.retryPolicy) }),
    ...(written.has("visibility_timeout") && { visibility_timeout_seconds: req.visibilityTimeout ?? null }),
    ...(written.has("mode") && { mode: fromPushMode(req.mode) }),
    ...(written.has("paused") && { paused: req.paused ?? false }),
    ...(written.has("headers") && {
      headers: JSON.stringify(headersToStore(app.vault, ownerOf(subscription), "headers", req.headers)),
    }),
    ...(written.has("timeout_seconds") && { timeout_seconds: req.timeoutSeconds ?? null }),
    ...(written.has("max_concurrency") && { max_concurrency: req.maxConcurrency ?? null }),
    ...(written.has("body") && { body: fromPushBody(req.body) }),
    ...(written.has("batch_size") && { batch_size: req.batchSize ?? 1 }),
    ...(written.has("batch_window_ms") && { batch_window_ms: req.batchWindowMs ?? 0 }),
    ...(written.has("group_failure_policy") && {
      group_failure_policy: fromGroupFailurePolicy(req.groupFailurePolicy),
    }),
  };
  checkBatchBody({ ...subscription, ...changes });
  return changes;
}

function ownerOf({ project_id, subscription_id }: PushSubscriptionRow): KeyOwner {
  return { projectId: project_id, ownerId: subscription_id };
}

function checkBatchBody({ body, batch_size }: Pick<PushSubscriptionRow, "body" | "batch_size">): void {
  if (body === "raw" && batch_size > 1) {
    throw Refusal.field("body", "must be wrapped where batch_size is above 1: a raw body holds one message");
  }
}
