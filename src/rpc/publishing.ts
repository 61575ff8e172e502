import type { HandlerContext } from "@connectrpc/connect";
import type { PublishBatchMessage, PublishRequest } from "../../gen/scheduling/v1/queue_service_pb.js";
import type { NewMessage } from "../store/messages.ts";
import type { NamedQueueRow } from "../store/queues.ts";
import { checkHeaders } from "../webhook/headers.ts";
import { type AppContext, warn } from "./context.ts";
import { checkPayload, JSON_TYPE } from "./payload.ts";

/**
 * The message to store. `prefix` leads to its fields in the request, for refusals.
 *
 * @throws Refusal PAYLOAD_TOO_LARGE, FIELD_INVALID
 */
export function toNewMessage(
  app: AppContext,
  prefix: string,
  message: PublishRequest | PublishBatchMessage,
): NewMessage {
  const payload = message.payload ?? new Uint8Array();
  checkPayload(app.limits, `${prefix}payload`, payload, message.contentType);
  return {
    payload,
    contentType: message.contentType || JSON_TYPE,
    headers: checkHeaders(`${prefix}headers`, message.headers),
    groupId: message.groupId,
    priority: message.priority ?? 0,
    delaySeconds: message.delaySeconds ?? 0,
  };
}

/** Tells the caller when a priority has no effect. */
export function warnOfPriority(ctx: HandlerContext, queue: NamedQueueRow, messages: readonly NewMessage[]): void {
  if (!queue.enable_priority && messages.some((message) => message.priority > 0)) {
    warn(ctx, `priority is stored but changes nothing, because queue ${queue.name} has enable_priority off`);
  }
}
