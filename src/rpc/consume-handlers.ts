import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { ConsumeRequest, QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { queueTopic } from "../db/wakeups.ts";
import { Refusal } from "../errors.ts";
import { handOut } from "../store/hand-outs.ts";
import { lockRequest, repeatLeases } from "../store/leases.ts";
import type { MessageRow } from "../store/messages.ts";
import { type AppContext, projectOf } from "./context.ts";
import { toMessages } from "./convert-queue.ts";
import { requireQueue } from "./find-queue.ts";

/** How long a caller that can ask again relies on wake-ups alone, in milliseconds. */
const POLL_MS = 250;

/** The call that pulls messages. */
export function consumeHandlers(app: AppContext): Pick<ServiceImpl<typeof QueueService>, "consume"> {
  return {
    async consume(req, ctx) {
      const waitMs = (req.waitSeconds ?? 0) * 1_000;
      const request = { limit: req.maxMessages ?? 1, visibilitySeconds: req.visibilityTimeout };
      const rows =
        req.requestId === ""
          ? await app.handOuts.take(projectOf(ctx), req.queue, request, waitMs, ctx.signal)
          : await takeAgain(app, ctx, req, waitMs);
      if (rows === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: req.queue });
      const backlog = await app.backlogs.read(projectOf(ctx), req.queue);
      return { messages: toMessages(rows), ...(backlog && { backlog }) };
    },
  };
}

/**
 * A hand-out that its caller can ask for again, by its request id, while the leases live. A caller that goes meanwhile
 * gets it then, so nothing is given back.
 */
async function takeAgain(
  app: AppContext,
  ctx: HandlerContext,
  req: ConsumeRequest,
  waitMs: number,
): Promise<MessageRow[]> {
  const endsAt = performance.now() + waitMs;
  for (;;) {
    if (ctx.signal.aborted) return [];
    const { again, rows } = await app.db.transaction().execute(async (trx) => {
      const queue = await requireQueue(trx, ctx, req.queue);
      await lockRequest(trx, queue, req.requestId);
      const again = await repeatLeases(trx, queue, req.requestId);
      if (again.length > 0) return { again: true, rows: again };
      const request = {
        limit: Math.min(req.maxMessages ?? 1, app.handOuts.mostOf(projectOf(ctx), req.queue)),
        visibilitySeconds: req.visibilityTimeout,
        requestId: req.requestId,
      };
      return { again: false, rows: (await handOut(trx, queue.project_id, queue.name, [request]))?.[0] ?? [] };
    });
    if (!again) app.tally.add(projectOf(ctx), req.queue, "delivered", rows.length);
    const leftMs = endsAt - performance.now();
    if (rows.length > 0 || leftMs <= 0) return rows;
    await app.wakeups.wait(queueTopic(projectOf(ctx), req.queue), Math.min(leftMs, POLL_MS), ctx.signal);
  }
}
