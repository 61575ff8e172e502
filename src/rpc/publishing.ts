import type { HandlerContext } from "@connectrpc/connect";
import type { PublishBatchMessage, PublishRequest } from "../../gen/scheduling/v1/queue_service_pb.js";
import { traceContext } from "../domain/trace-context.ts";
import { Refusal } from "../errors.ts";
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
  ctx: HandlerContext,
  prefix: string,
  message: PublishRequest | PublishBatchMessage,
): NewMessage {
  const payload = message.payload ?? new Uint8Array();
  checkPayload(app.limits, `${prefix}payload`, payload, message.contentType);
  return {
    payload,
    contentType: message.contentType || JSON_TYPE,
    headers: headersOf(ctx, `${prefix}headers`, message.headers),
    groupId: message.groupId,
    priority: message.priority ?? 0,
    delaySeconds: message.delaySeconds ?? 0,
  };
}

/**
 * The headers to keep with a message. A trace context is kept where it is valid: the one among the message's own headers,
 * or else the one of the request, if there is room for it.
 */
function headersOf(
  ctx: HandlerContext,
  field: string,
  given: Readonly<Record<string, string>>,
): Record<string, string> {
  const headers = checkHeaders(field, given);
  if (headers["traceparent"] === undefined && headers["tracestate"] === undefined) {
    const parent = ctx.requestHeader.get("traceparent");
    const context = parent === null ? undefined : traceContext(parent, ctx.requestHeader.get("tracestate") ?? "");
    return context === undefined ? headers : withRoomFor(headers, { ...context });
  }
  const { traceparent = "", tracestate = "", ...others } = headers;
  const kept: Record<string, string> = { ...others, ...traceContext(traceparent, tracestate) };
  for (const name of ["traceparent", "tracestate"]) {
    if (headers[name] !== undefined && kept[name] === undefined)
      warn(ctx, `${field}: ${name} is not valid and left out`);
  }
  return kept;
}

function withRoomFor(headers: Record<string, string>, more: Record<string, string>): Record<string, string> {
  try {
    return checkHeaders("headers", { ...headers, ...more });
  } catch (error) {
    if (error instanceof Refusal) return headers;
    throw error;
  }
}

/** Tells the caller when a priority has no effect. */
export function warnOfPriority(
  ctx: HandlerContext,
  queue: Pick<NamedQueueRow, "name" | "enable_priority">,
  messages: readonly NewMessage[],
): void {
  if (!queue.enable_priority && messages.some((message) => message.priority > 0)) {
    warn(ctx, `priority is stored but changes nothing, because queue ${queue.name} has enable_priority off`);
  }
}
