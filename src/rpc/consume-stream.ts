import { ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import type { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { queueTopic } from "../db/wakeups.ts";
import { expireLeases, type Leases, leaseMessages, leasesOf, liveLeases, releaseLeases } from "../store/leases.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toMessage } from "./convert-queue.ts";
import { requireQueue } from "./find-queue.ts";
import { POLL_MS } from "./message-handlers.ts";

/** Most messages in one answer of the stream. */
const BATCH = 100;

/**
 * Hands out messages until the caller goes, the queue is deleted or the server shuts down.
 *
 * The next messages are only leased when the ones before have been taken off our hands, so a slow client costs no
 * memory here, and at most `max_unacked` leases are out. Those that the client has not settled are released when the
 * call ends, however it ends.
 */
export function consumeStream(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "consumeStream"> {
  return {
    async *consumeStream(req, ctx) {
      const topic = queueTopic(projectOf(ctx), req.queue);
      const maxUnacked = req.maxUnacked ?? 100;
      const heartbeatMs = (req.heartbeatSeconds ?? 15) * 1_000;
      let out: Leases = new Map();
      await using _release = releaseAtEnd(app, ctx, req.queue, () => out);
      await requireQueue(app.db, ctx, req.queue);
      // The first answer carries the headers: it tells the caller that the stream is open.
      yield {};
      let sentAt = performance.now();
      while (!ctx.signal.aborted) {
        const queue = await requireQueue(app.db, ctx, req.queue);
        out = await liveLeases(app.db, queue, out);
        const rows = await app.db.transaction().execute(async (trx) => {
          await expireLeases(trx, queue);
          const limit = Math.min(maxUnacked - out.size, BATCH);
          const visibilitySeconds = req.visibilityTimeout ?? queue.visibility_timeout_seconds;
          return limit > 0 ? leaseMessages(trx, queue, { limit, visibilitySeconds, requestId: "" }) : [];
        });
        out = new Map([...out, ...leasesOf(rows)]);
        // What was leased while the call ended is released, not handed out.
        if (ctx.signal.aborted) break;
        const silentMs = performance.now() - sentAt;
        if (rows.length > 0 || silentMs >= heartbeatMs) {
          yield { messages: rows.map(toMessage) };
          sentAt = performance.now();
        } else {
          await app.wakeups.wait(topic, Math.min(POLL_MS, heartbeatMs - silentMs), ctx.signal);
        }
      }
      throw ConnectError.from(ctx.signal.reason);
    },
  };
}

/**
 * Releases what the stream still has out, when it ends or when the caller's connection goes: a generator that waits for
 * its reader is not resumed by a reader that is gone.
 */
function releaseAtEnd(app: AppContext, ctx: HandlerContext, name: string, out: () => Leases): AsyncDisposable {
  const release = async () => {
    const leases = out();
    if (leases.size === 0) return;
    await releaseLeases(app.db, await requireQueue(app.db, ctx, name), leases);
    app.wakeups.wake(queueTopic(projectOf(ctx), name));
    app.wakeups.wake("pushes");
  };
  // A release that fails leaves the leases to run out by themselves.
  const quietly = () => release().catch(() => {});
  ctx.signal.addEventListener("abort", quietly, { once: true });
  return {
    async [Symbol.asyncDispose]() {
      ctx.signal.removeEventListener("abort", quietly);
      await quietly();
    },
  };
}
