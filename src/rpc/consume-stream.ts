import { ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import {
  type ConsumeStreamRequest,
  ConsumeStreamResponseSchema,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import { Refusal } from "../errors.ts";
import { type AppContext, projectOf } from "./context.ts";
import { requireQueue } from "./find-queue.ts";
import { toAnswer } from "./message-bytes.ts";
import { type StreamBatch, StreamLeases } from "./stream-leases.ts";

/**
 * Hands out messages until the caller goes, the queue is deleted or the server shuts down.
 *
 * One answer is leased ahead of the one that is being written, so that neither waits for the other. No more than that: a
 * slow client costs the memory of one answer here, and at most its credit is out. What the client has not settled is
 * released when the call ends.
 */
export function consumeStream(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "consumeStream"> {
  return {
    async *consumeStream(req, ctx) {
      const queue = await requireQueue(app.db, ctx, req.queue);
      const ended = new AbortController();
      const signal = AbortSignal.any([ctx.signal, ended.signal]);
      await using leases = new StreamLeases(app, ctx, req, queue.visibility_timeout_seconds);
      const lease = () => nextBatch(app, ctx, req, leases, signal);
      // The first answer carries the headers: it tells the caller that the stream is open.
      yield {};
      let ahead = lease();
      try {
        for (;;) {
          const batch = await ahead;
          ahead = lease();
          // Heard of when it is its turn.
          ahead.catch(() => {});
          yield toAnswer(ConsumeStreamResponseSchema, ctx, await leases.renew(batch));
        }
      } finally {
        ended.abort(new Error("the stream is over"));
      }
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
): Promise<StreamBatch> {
  const endsAt = performance.now() + (open.heartbeatSeconds ?? 15) * 1_000;
  while (!signal.aborted) {
    const leftMs = endsAt - performance.now();
    if (leftMs <= 0) return { rows: [], leasedAt: performance.now() };
    if (leases.room === 0) {
      await leases.waitForRoom(leftMs, signal);
      continue;
    }
    const request = { limit: leases.batch, visibilitySeconds: open.visibilityTimeout };
    const rows = await app.handOuts.take(projectOf(ctx), open.queue, request, leftMs, signal);
    if (rows === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: open.queue });
    const leasedAt = performance.now();
    const added = await leases.add(rows);
    // What was leased while the call ended is released with the rest, not handed out.
    if (added.length > 0 && !signal.aborted) return { rows: added, leasedAt };
  }
  throw ConnectError.from(signal.reason);
}
