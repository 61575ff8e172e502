import { ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import type { ConsumeStreamRequest, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { Refusal } from "../errors.ts";
import type { MessageRow } from "../store/messages.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toMessage } from "./convert-queue.ts";
import { requireQueue } from "./find-queue.ts";
import { StreamLeases } from "./stream-leases.ts";

/**
 * Hands out messages until the caller goes, the queue is deleted or the server shuts down.
 *
 * The next messages are only leased when the ones before have been taken off our hands, so a slow client costs no
 * memory here, and at most its credit is out. What the client has not settled is released when the call ends.
 */
export function consumeStream(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "consumeStream"> {
  return {
    async *consumeStream(req, ctx) {
      const queue = await requireQueue(app.db, ctx, req.queue);
      await using leases = new StreamLeases(app, ctx, req, queue.visibility_timeout_seconds);
      // The first answer carries the headers: it tells the caller that the stream is open.
      yield {};
      for (;;) yield { messages: (await nextBatch(app, ctx, req, leases, ctx.signal)).map(toMessage) };
    },
  };
}

/**
 * The next messages of a stream, as many as it has room for; none when it is time for a heartbeat.
 *
 * @throws Refusal QUEUE_NOT_FOUND when the queue is gone; ConnectError when the signal aborts.
 */
export async function nextBatch(
  app: AppContext,
  ctx: HandlerContext,
  open: ConsumeStreamRequest,
  leases: StreamLeases,
  signal: AbortSignal,
): Promise<readonly MessageRow[]> {
  const endsAt = performance.now() + (open.heartbeatSeconds ?? 15) * 1_000;
  while (!signal.aborted) {
    const leftMs = endsAt - performance.now();
    if (leftMs <= 0) return [];
    if (leases.room === 0) {
      await leases.waitForRoom(leftMs, signal);
      continue;
    }
    const request = { limit: leases.batch, visibilitySeconds: open.visibilityTimeout };
    const rows = await app.handOuts.take(projectOf(ctx), open.queue, request, leftMs, signal);
    if (rows === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: open.queue });
    const added = await leases.add(rows);
    // What was leased while the call ended is released with the rest, not handed out.
    if (added.length > 0 && !signal.aborted) return added;
  }
  throw ConnectError.from(signal.reason);
}
