import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  GroupFailurePolicy,
  PushBody,
  PushMode,
  type PushSubscriptionSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type * as rows from "../db/schema.ts";
import { hideCredentials } from "../domain/credentials.ts";
import { formatId } from "../domain/ids.ts";
import { isWrapped } from "../domain/push-request.ts";
import type { NamedSubscriptionRow } from "../store/push-subscriptions.ts";
import { storedName } from "./convert-run.ts";
import { toRetryPolicy } from "./retry-policy.ts";

const MODES = { compete: PushMode.COMPETE, fanout: PushMode.FANOUT } as const;
const BODIES = { raw: PushBody.RAW, wrapped: PushBody.WRAPPED } as const;
const GROUP_FAILURE_POLICIES = {
  block: GroupFailurePolicy.BLOCK,
  skip: GroupFailurePolicy.SKIP,
  park: GroupFailurePolicy.PARK,
} as const;

/** The stored mode, compete for unspecified. */
export function fromPushMode(mode: PushMode | undefined): rows.PushMode {
  return storedName(MODES, mode) ?? "compete";
}

/** The stored form of the body, or null for unspecified. */
export function fromPushBody(body: PushBody | undefined): rows.PushBody | null {
  return storedName(BODIES, body) ?? null;
}

/** The stored policy, block for unspecified. */
export function fromGroupFailurePolicy(policy: GroupFailurePolicy | undefined): rows.GroupFailurePolicy {
  return storedName(GROUP_FAILURE_POLICIES, policy) ?? "block";
}

/** A subscription as callers see it, without its secret. */
export function toSubscription(row: NamedSubscriptionRow): MessageInitShape<typeof PushSubscriptionSchema> {
  return {
    subscriptionId: formatId("sub", row.subscription_id),
    queue: row.queue,
    url: row.url,
    mode: MODES[row.mode],
    ...(row.max_retries !== null && { maxRetries: row.max_retries }),
    ...(row.backoff !== null && { retryPolicy: toRetryPolicy(row.backoff) }),
    ...(row.visibility_timeout_seconds !== null && { visibilityTimeout: row.visibility_timeout_seconds }),
    ...(row.dead_letter_queue !== null && { deadLetterQueue: row.dead_letter_queue }),
    paused: row.paused,
    createdAt: timestampFromDate(row.created_at),
    updatedAt: timestampFromDate(row.updated_at),
    headers: hideCredentials(row.headers),
    ...(row.timeout_seconds !== null && { timeoutSeconds: row.timeout_seconds }),
    ...(row.max_concurrency !== null && { maxConcurrency: row.max_concurrency }),
    body: BODIES[isWrapped(row) ? "wrapped" : "raw"],
    batchSize: row.batch_size,
    batchWindowMs: row.batch_window_ms,
    groupFailurePolicy: GROUP_FAILURE_POLICIES[row.group_failure_policy],
  };
}
