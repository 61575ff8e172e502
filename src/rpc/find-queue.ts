import type { HandlerContext } from "@connectrpc/connect";
import type { Db } from "../db/schema.ts";
import { Refusal } from "../errors.ts";
import { closesDeadLetterCycle, createQueue, findQueue, type NamedQueueRow, QUEUE_DEFAULTS } from "../store/queues.ts";
import { type AppContext, projectOf, warn } from "./context.ts";

/** The caller's queue of that name. @throws Refusal QUEUE_NOT_FOUND */
export async function requireQueue(db: Db, ctx: HandlerContext, name: string): Promise<NamedQueueRow> {
  const queue = await findQueue(db, projectOf(ctx), name);
  if (queue === undefined) throw new Refusal("QUEUE_NOT_FOUND", { queue: name });
  return queue;
}

/** The caller's queue of that name, created with default settings when there is none and the operator allows it. */
export async function ensureQueue(app: AppContext, trx: Db, ctx: HandlerContext, name: string): Promise<NamedQueueRow> {
  if (!app.limits.autoCreateQueues) return requireQueue(trx, ctx, name);
  const found = await findQueue(trx, projectOf(ctx), name);
  if (found !== undefined) return found;
  const { queue, created } = await createQueue(trx, projectOf(ctx), name, QUEUE_DEFAULTS);
  if (created) warn(ctx, `queue ${name} did not exist and was created with default settings`);
  return queue;
}

/**
 * The id of the queue that is to take dead letters of `queue`, or of one of its subscriptions; null for the empty name.
 *
 * @throws Refusal DEAD_LETTER_QUEUE_MISSING, DEAD_LETTER_QUEUE_CYCLE
 */
export async function deadLetterQueueIdFor(
  trx: Db,
  ctx: HandlerContext,
  queue: { readonly queue_id: string; readonly name: string },
  name: string,
): Promise<string | null> {
  const id = await deadLetterQueueId(trx, ctx, name);
  if (id !== null && (await closesDeadLetterCycle(trx, projectOf(ctx), queue.queue_id, id))) {
    throw new Refusal("DEAD_LETTER_QUEUE_CYCLE", { queue: queue.name, dead_letter_queue: name });
  }
  return id;
}

/** The id of the queue that is to take dead letters; null for the empty name. @throws Refusal DEAD_LETTER_QUEUE_MISSING */
export async function deadLetterQueueId(trx: Db, ctx: HandlerContext, name: string): Promise<string | null> {
  if (name === "") return null;
  const queue = await findQueue(trx, projectOf(ctx), name);
  if (queue === undefined) throw new Refusal("DEAD_LETTER_QUEUE_MISSING", { dead_letter_queue: name });
  return queue.queue_id;
}
