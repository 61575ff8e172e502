import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  type AckBatchItem,
  AckBatchResponseSchema,
  AckResponseSchema,
  type ExtendLeaseBatchItem,
  ExtendLeaseBatchResponseSchema,
  ExtendLeaseResponseSchema,
  type NackBatchItem,
  NackBatchResponseSchema,
  NackResponseSchema,
  type QueueService,
} from "../../gen/scheduling/v1/queue_service_pb.js";
import type { Db } from "../db/schema.ts";
import { queueTopic, settledTopic } from "../db/wakeups.ts";
import { NIL_UUID, parseId } from "../domain/ids.ts";
import type { NamedQueueRow } from "../store/queues.ts";
import { ackMessages, extendEach, nackMessages } from "../store/settlements.ts";
import type { DeliveryKey } from "../store/standings.ts";
import { type AppContext, projectOf } from "./context.ts";
import { requireQueue } from "./find-queue.ts";
import { idempotencyKey, isReplay, once } from "./once.ts";

type SettleHandlers = Pick<
  ServiceImpl<typeof QueueService>,
  "ack" | "nack" | "extendLease" | "ackBatch" | "nackBatch" | "extendLeaseBatch"
>;

type AckResult = MessageInitShape<typeof AckResponseSchema>;
type NackResult = MessageInitShape<typeof NackResponseSchema>;
type ExtendResult = MessageInitShape<typeof ExtendLeaseResponseSchema>;

/** The calls that end or move leases, for one message or for many. */
export function settleHandlers(app: AppContext): SettleHandlers {
  return {
    async ack(req, ctx) {
      if (idempotencyKey(ctx, req.idempotencyKey) === "") return first(await ackAll(app, ctx, req.queue, [req]));
      const answer = await once(app, ctx, AckResponseSchema, req, "", async (trx) =>
        first(await ackSingly(trx, await requireQueue(trx, ctx, req.queue), [req])),
      );
      tell(app, ctx, req.queue, [answer]);
      return answer;
    },

    async ackBatch(req, ctx) {
      if (idempotencyKey(ctx, req.idempotencyKey) === "") {
        return { results: await ackAll(app, ctx, req.queue, req.items) };
      }
      const answer = await once(app, ctx, AckBatchResponseSchema, req, "", async (trx) => ({
        results: await ackSingly(trx, await requireQueue(trx, ctx, req.queue), req.items),
      }));
      tell(app, ctx, req.queue, answer.results ?? []);
      return answer;
    },

    async nack(req, ctx) {
      const answer = await once(app, ctx, NackResponseSchema, req, "", async (trx) =>
        first(await nackSingly(trx, await requireQueue(trx, ctx, req.queue), [req])),
      );
      tell(app, ctx, req.queue, [answer]);
      return answer;
    },

    async nackBatch(req, ctx) {
      const answer = await once(app, ctx, NackBatchResponseSchema, req, "", async (trx) => ({
        results: await nackSingly(trx, await requireQueue(trx, ctx, req.queue), req.items),
      }));
      tell(app, ctx, req.queue, answer.results ?? []);
      return answer;
    },

    async extendLease(req, ctx) {
      const answer = await once(app, ctx, ExtendLeaseResponseSchema, req, "", async (trx) =>
        first(await extendSingly(trx, await requireQueue(trx, ctx, req.queue), [req])),
      );
      tell(app, ctx, req.queue, [answer].filter(isReleased));
      return answer;
    },

    async extendLeaseBatch(req, ctx) {
      const answer = await once(app, ctx, ExtendLeaseBatchResponseSchema, req, "", async (trx) => ({
        results: await extendSingly(trx, await requireQueue(trx, ctx, req.queue), req.items),
      }));
      tell(app, ctx, req.queue, (answer.results ?? []).filter(isReleased));
      return answer;
    },
  };
}

/** Acks with other callers' acks: what came from the line by its receipt in one statement, and the rest in few. */
export async function ackAll(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  items: readonly Pick<AckBatchItem, "messageId" | "receipt">[],
): Promise<AckResult[]> {
  const keys = items.map(deliveryKey);
  const inLine = await app.acks.add(projectOf(ctx), queueName, keys);
  const others = keys.filter((_, i) => inLine[i] === undefined);
  const singly = others.length === 0 ? [] : await app.singleAcks.add(projectOf(ctx), queueName, others);
  // Without items the queue is still looked for.
  if (items.length === 0 || singly === undefined) await requireQueue(app.db, ctx, queueName);
  let next = 0;
  const results = items.map(({ messageId }, i) => {
    const acked = inLine[i];
    return { messageId, ...(acked === undefined ? singly?.[next++] : { acked: true, late: acked.late }) };
  });
  tell(app, ctx, queueName, results, { keys, wakesConsumers: others.length > 0 });
  return results;
}

async function ackSingly(
  trx: Db,
  queue: NamedQueueRow,
  items: readonly Pick<AckBatchItem, "messageId" | "receipt">[],
): Promise<AckResult[]> {
  const outcomes = await ackMessages(trx, queue, items.map(deliveryKey));
  return items.map(({ messageId }, i) => ({ messageId, ...outcomes[i] }));
}

/** Gives messages back. */
export async function nackAll(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  items: readonly NackBatchItem[],
): Promise<NackResult[]> {
  const results = await app.db
    .transaction()
    .execute(async (trx) => nackSingly(trx, await requireQueue(trx, ctx, queueName), items));
  tell(app, ctx, queueName, results);
  return results;
}

/** Moves the ends of leases. */
export async function extendAll(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  items: readonly ExtendLeaseBatchItem[],
): Promise<ExtendResult[]> {
  const results = await app.db
    .transaction()
    .execute(async (trx) => extendSingly(trx, await requireQueue(trx, ctx, queueName), items));
  tell(app, ctx, queueName, results.filter(isReleased));
  return results;
}

async function nackSingly(
  trx: Db,
  queue: NamedQueueRow,
  items: readonly Omit<NackBatchItem, "$typeName">[],
): Promise<NackResult[]> {
  const outcomes = await nackMessages(
    trx,
    queue,
    items.map((item) => ({
      ...deliveryKey(item),
      requeue: item.requeue ?? true,
      penalty: item.penalty ?? true,
      delaySeconds: item.delaySeconds ?? 0,
      error: item.reason,
    })),
  );
  return items.map(({ messageId }, i) => ({ messageId, ...outcomes[i] }));
}

async function extendSingly(
  trx: Db,
  queue: NamedQueueRow,
  items: readonly Omit<ExtendLeaseBatchItem, "$typeName">[],
): Promise<ExtendResult[]> {
  const outcomes = await extendEach(
    trx,
    queue,
    items.map((item) => ({ ...deliveryKey(item), visibilitySeconds: item.visibilityTimeout ?? 0 })),
  );
  return items.map(({ messageId }, i) => {
    const outcome = outcomes[i];
    if (outcome?.extended !== true) return { messageId, ...outcome };
    const { leaseExpiresAt } = outcome;
    return {
      messageId,
      extended: true,
      ...(leaseExpiresAt && { leaseExpiresAt: timestampFromDate(leaseExpiresAt) }),
    };
  });
}

function first<T>([result]: readonly T[]): T {
  if (result === undefined) throw new Error("a result for each item was promised");
  return result;
}

/** What became of an attempt to settle a message. */
interface Settlement {
  readonly messageId?: string | undefined;
  readonly acked?: boolean | undefined;
  readonly already?: boolean | undefined;
  readonly nacked?: boolean | undefined;
  readonly extended?: boolean | undefined;
}

/** Whether a lease was ended by its extension. */
function isReleased(result: ExtendResult): boolean {
  return result.extended === true && result.leaseExpiresAt === undefined;
}

/**
 * Says which messages were settled: there may be room for the next of a group, or of a stream that was full. `keys` are those
 * of the results, where they have been read already.
 */
function tell(
  app: AppContext,
  ctx: HandlerContext,
  queueName: string,
  results: readonly Settlement[],
  { keys, wakesConsumers = true }: { readonly keys?: readonly DeliveryKey[]; readonly wakesConsumers?: boolean } = {},
): void {
  const ids: string[] = [];
  let [acked, nacked] = [0, 0];
  for (const [i, result] of results.entries()) {
    if (!result.acked && !result.nacked && !result.extended) continue;
    ids.push(keys?.[i]?.messageId ?? parseId("msg", result.messageId ?? "") ?? NIL_UUID);
    if (result.acked && !result.already) acked += 1;
    if (result.nacked) nacked += 1;
  }
  if (ids.length === 0) return;
  const project = projectOf(ctx);
  if (!isReplay(ctx)) {
    app.tally.add(project, queueName, "acked", acked);
    app.tally.add(project, queueName, "nacked", nacked);
  }
  app.handOuts.settled(ids);
  app.wakeups.wake(settledTopic(project, queueName));
  if (wakesConsumers) app.wakeups.wake(queueTopic(project, queueName));
}

/** Ids and receipts that cannot be ours become ones that nothing has, so that they are answered like unknown ones. */
function deliveryKey(req: { readonly messageId: string; readonly receipt: string }): DeliveryKey {
  return {
    messageId: parseId("msg", req.messageId) ?? NIL_UUID,
    receipt: req.receipt === "" ? undefined : parseReceipt(req.receipt),
  };
}

function parseReceipt(receipt: string): string {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(receipt) ? receipt : NIL_UUID;
}
