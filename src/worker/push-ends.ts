import type { Db, QueueRow } from "../db/schema.ts";
import { formatId } from "../domain/ids.ts";
import type { PushDecision } from "../domain/push-outcome.ts";
import { emitEvent } from "../store/events.ts";
import { releaseLeases } from "../store/leases.ts";
import type { MessageRow } from "../store/messages.ts";
import { settleDeliveries } from "../store/push-deliveries.ts";
import type { PushTarget } from "../store/pushable.ts";
import { abandonPush, finishPush, type Push } from "../store/pushes.ts";
import { ackMessages, nackMessages, uncountHandOuts } from "../store/settlements.ts";
import { attemptRecord } from "../webhook/attempt-record.ts";
import type { AttemptOutcome } from "../webhook/post.ts";

/** One message of a batch, with what is to become of it. */
export interface Settlement {
  readonly message: MessageRow;
  readonly receipt: string;
  readonly target: PushTarget;
  /** Undefined: nothing was sent under this lease, since the one before ran out once too often. */
  readonly attempt: { readonly push: Push; readonly outcome: AttemptOutcome } | undefined;
  readonly decision: PushDecision;
}

/** No number of failures makes a dead letter: the domain decides. */
const NEVER = 2_147_483_647;
/** How long a parked group's first message waits, in seconds, unless somebody resumes it: beyond every retention. */
const PARKED_SECONDS = 315_360_000;

/** What a transaction did: receipts, and how many. */
export interface Ends {
  readonly buried: ReadonlySet<string>;
  readonly parked: ReadonlySet<string>;
  readonly acked: number;
  readonly nacked: number;
}

/** Settles messages that are leased from the queue as a consumer's are. In the order of ids, as all that lock several. */
export async function endInQueue(trx: Db, queue: QueueRow, settlements: readonly Settlement[]): Promise<Ends> {
  const buried = new Set<string>();
  const parked = new Set<string>();
  const inOrder = settlements.toSorted((a, b) => (a.message.message_id < b.message.message_id ? -1 : 1));
  const acks = inOrder.filter(({ decision }) => decision.kind === "ack");
  const acked = await ackMessages(
    trx,
    queue,
    acks.map(({ message, receipt }) => ({ messageId: message.message_id, receipt })),
  );
  const released = inOrder.filter(({ decision }) => decision.kind === "release");
  await releaseLeases(trx, queue, new Map(released.map(({ message, receipt }) => [receipt, message.message_id])));
  const failed = inOrder.flatMap(({ message, receipt, target, decision }) =>
    decision.kind === "ack" || decision.kind === "release" ? [] : [{ message, receipt, target, decision }],
  );
  const untried = inOrder.filter(({ attempt }) => attempt === undefined);
  await uncountHandOuts(
    trx,
    queue,
    untried.map(({ message, receipt }) => ({ messageId: message.message_id, receipt })),
  );
  const outcomes = await nackMessages(
    trx,
    queue,
    failed.map(({ message, receipt, target, decision }) => ({
      messageId: message.message_id,
      receipt,
      requeue: true,
      delaySeconds: decision.kind === "retry" ? decision.delaySeconds : decision.kind === "park" ? PARKED_SECONDS : 0,
      error: decision.error,
      maxRetries: decision.kind === "bury" ? 0 : NEVER,
      deadLetterQueueId: target.dead_letter_queue_id ?? undefined,
    })),
  );
  let nacked = 0;
  for (const [i, { receipt, decision }] of failed.entries()) {
    if (!outcomes[i]?.nacked) continue;
    nacked += 1;
    if (decision.kind === "bury") buried.add(receipt);
    if (decision.kind === "park") parked.add(receipt);
  }
  return { buried, parked, acked: acked.filter((each) => each.acked && !each.already).length, nacked };
}

/** Settles messages that were given over to a subscription. */
export async function endAtSubscription(
  trx: Db,
  queue: QueueRow,
  target: PushTarget,
  settlements: readonly Settlement[],
): Promise<Ends> {
  const deadLetterQueueId = target.dead_letter_queue_id ?? undefined;
  const live = await settleDeliveries(
    trx,
    queue,
    target.subscription_id,
    settlements.map(({ message, receipt, attempt, decision }) => ({
      messageId: message.message_id,
      receipt,
      untried: attempt === undefined,
      end: decision.kind === "bury" ? { ...decision, deadLetterQueueId } : decision,
    })),
  );
  const receiptsOf = (...kinds: readonly PushDecision["kind"][]) =>
    new Set(
      settlements
        .filter(({ receipt, decision }) => live.has(receipt) && kinds.includes(decision.kind))
        .map(({ receipt }) => receipt),
    );
  return {
    buried: receiptsOf("bury"),
    parked: receiptsOf("park"),
    acked: receiptsOf("ack").size,
    nacked: receiptsOf("retry", "bury", "park").size,
  };
}

/** Records what came of the pushes, and tells of groups that were parked. */
export async function recordEnds(
  trx: Db,
  queue: QueueRow,
  settlements: readonly Settlement[],
  { buried, parked }: Ends,
): Promise<void> {
  for (const settlement of settlements) await recordPush(trx, queue, settlement, buried);
  for (const settlement of settlements) {
    if (parked.has(settlement.receipt)) await raiseParked(trx, queue, settlement);
  }
}

async function recordPush(
  trx: Db,
  queue: QueueRow,
  settlement: Settlement,
  buried: ReadonlySet<string>,
): Promise<void> {
  const { message, target, attempt, decision, receipt } = settlement;
  const state = decision.kind === "ack" ? "succeeded" : buried.has(receipt) ? "failed" : "retrying";
  const error = decision.kind === "ack" ? null : decision.kind === "release" ? "cancelled" : decision.error;
  const retryInSeconds =
    decision.kind === "retry" ? decision.delaySeconds : decision.kind === "park" ? PARKED_SECONDS : 0;
  if (attempt !== undefined) {
    const { push, outcome } = attempt;
    const result = { state, error, record: attemptRecord(outcome), retryInSeconds } as const;
    await finishPush(trx, queue.project_id, push, result);
  } else if (state !== "succeeded") {
    const key = { subscriptionId: target.subscription_id, messageId: message.message_id };
    await abandonPush(trx, queue.project_id, key, { state, error, retryInSeconds });
  }
}

async function raiseParked(trx: Db, queue: QueueRow, { message, target, decision }: Settlement): Promise<void> {
  await emitEvent(trx, queue.project_id, {
    type: "push.group.parked",
    data: {
      queue: queue.name,
      subscription_id: formatId("sub", target.subscription_id),
      group_id: message.group_id,
      message_id: formatId("msg", message.message_id),
      error: decision.kind === "park" ? decision.error : undefined,
    },
    aboutUrl: target.url,
  });
}
