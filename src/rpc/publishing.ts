import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type {
  PublishBatchMessage,
  PublishBatchResponseSchema,
  PublishRequest,
  PublishResponseSchema,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { JSON_TYPE } from "../domain/content-type.ts";
import { formatId } from "../domain/ids.ts";
import { traceContext } from "../domain/trace-context.ts";
import { Refusal } from "../errors.ts";
import type { NewMessage, PublishedMessage } from "../store/messages.ts";
import type { NamedQueueRow } from "../store/queues.ts";
import { checkHeaders } from "../webhook/headers.ts";
import { type AppContext, warn } from "./context.ts";
import { checkPayload } from "./payload.ts";

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
    ttlSeconds: message.ttlSeconds,
    deduplicationKey: message.deduplicationKey || undefined,
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

/** The answer to a publish. */
export function toPublishResponse(
  published: readonly PublishedMessage[],
): MessageInitShape<typeof PublishResponseSchema> {
  const [message] = published;
  if (message === undefined) throw new Error("one message was published");
  return { messageId: formatId("msg", message.message_id), deduplicated: message.deduplicated };
}

/** The answer to a batch. */
export function toPublishBatchResponse(
  published: readonly PublishedMessage[],
): MessageInitShape<typeof PublishBatchResponseSchema> {
  const anyDeduplicated = published.some((message) => message.deduplicated);
  return {
    messageIds: published.map((message) => formatId("msg", message.message_id)),
    deduplicated: anyDeduplicated ? published.map((message) => message.deduplicated) : [],
  };
}

/** Tells the caller when a priority has no effect. */
export function warnOfPriority(
  ctx: HandlerContext,
  queue: Pick<NamedQueueRow, "name" | "enable_priority">,
  messages: readonly Pick<NewMessage, "priority">[],
): void {
  if (!queue.enable_priority && messages.some((message) => message.priority > 0)) {
    warn(ctx, `priority is stored but changes nothing, because queue ${queue.name} has enable_priority off`);
  }
}
