import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  type ConsumeSessionRequest,
  ConsumeSessionResponseSchema,
  type ConsumeStreamRequest,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { Refusal } from "../errors.ts";
import { nextBatch } from "./consume-stream.ts";
import type { AppContext } from "./context.ts";
import { requireQueue } from "./find-queue.ts";
import { toAnswer } from "./message-bytes.ts";
import { ackAll, extendAll, nackAll } from "./settle-handlers.ts";
import { StreamLeases } from "./stream-leases.ts";

type Answer = MessageInitShape<typeof ConsumeSessionResponseSchema>;

/** Hands out messages as ConsumeStream does, and answers what comes back in the same call, one request after the other. */
export function consumeSession(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "consumeSession"> {
  return {
    async *consumeSession(requests, ctx) {
      const incoming = requests[Symbol.asyncIterator]();
      const open = openingOf((await incoming.next()).value);
      const queue = await requireQueue(app.db, ctx, open.queue);
      const ended = new AbortController();
      const signal = AbortSignal.any([ctx.signal, ended.signal]);
      await using leases = new StreamLeases(app, ctx, open, queue.visibility_timeout_seconds);
      try {
        yield {};
        const batch = () => nextBatch(app, ctx, open, leases, signal).then((batch) => ({ batch }) as const);
        const request = () => incoming.next().then((next) => ({ next }) as const);
        let messages = batch();
        let coming = request();
        for (;;) {
          const event = await Promise.race([coming, messages]);
          if ("batch" in event) {
            yield toAnswer(ConsumeSessionResponseSchema, ctx, await leases.renew(event.batch));
            messages = batch();
          } else {
            // What was waited for is called off, and nothing is to be told of it.
            if (event.next.done === true) return void messages.catch(() => {});
            yield await answer(app, ctx, open.queue, event.next.value);
            coming = request();
          }
        }
      } finally {
        ended.abort(new Error("the session is over"));
      }
    },
  };
}

function openingOf(request: ConsumeSessionRequest | undefined): ConsumeStreamRequest {
  if (request?.request.case === "open") return request.request.value;
  throw Refusal.field("open", "must come in the first request of a session");
}

async function answer(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  { request }: ConsumeSessionRequest,
): Promise<Answer> {
  switch (request.case) {
    case "ack":
      return { acked: { results: await ackAll(app, ctx, queueName, request.value.items) } };
    case "nack":
      return { nacked: { results: await nackAll(app, ctx, queueName, request.value.items) } };
    case "extend":
      return { extended: { results: await extendAll(app, ctx, queueName, request.value.items) } };
    default:
      throw Refusal.field("open", "must come in the first request of a session only");
  }
}
