import { setTimeout as delay } from "node:timers/promises";
import { isConnectionFault } from "../db/connect.ts";
import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { failedInBatch } from "../domain/push-answer.ts";
import { decideLost, decidePush, type PushResult, type PushRules } from "../domain/push-outcome.ts";
import { leasesOf, releaseLeases } from "../store/leases.ts";
import type { MessageRow } from "../store/messages.ts";
import { settleDeliveries } from "../store/push-deliveries.ts";
import type { Push } from "../store/pushes.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import type { AttemptOutcome } from "../webhook/post.ts";
import type { PushBatch, PushWay } from "./push-batches.ts";
import { endAtSubscription, endInQueue, recordEnds, type Settlement } from "./push-ends.ts";

export interface PushSettlerOptions {
  readonly db: Db;
  readonly wakeups: Wakeups;
  readonly tally: QueueTally;
  /** Aborts when the node does not wait any more for a database that cannot be reached. */
  readonly givenUp: AbortSignal;
}

/** A batch that was sent, and what came of it. */
export interface SentBatch extends PushBatch {
  /** One for each message. */
  readonly pushes: readonly Push[];
  readonly outcome: AttemptOutcome;
  /** Until when its leases hold, by `performance.now()`. */
  readonly heldUntilMs: number;
}

interface Waiting {
  readonly settlements: readonly Settlement[];
  readonly heldUntilMs: number;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

interface Lane {
  readonly way: PushWay;
  readonly waiting: Waiting[];
}

/** Most messages that one transaction settles; one batch may be more. */
const MAX_SETTLED = 200;
/**
 * Waits between attempts to record outcomes while the database fails, in milliseconds. After the last it is given up, unless the
 * database cannot be reached: then it is tried on while a lease holds, since the outcomes are known here only.
 */
const RECORD_RETRY_MS = [50, 200, 1_000, 5_000];
const LAST_RECORD_RETRY_MS = 2_000;

/**
 * Records what came of pushes, and settles their messages. What ends while a transaction of the same lane is under way goes
 * into the next one together, so that a fast receiver does not cost a transaction a message.
 */
export class PushSettler {
  readonly #options: PushSettlerOptions;
  readonly #lanes = new Map<string, Lane>();

  constructor(options: PushSettlerOptions) {
    this.#options = options;
  }

  /** Resolves when the outcome is recorded. Of a lost lease only the attempt is. */
  settle(batch: SentBatch): Promise<void> {
    return this.#enqueue(batch, settlementsOf(batch), batch.heldUntilMs);
  }

  /**
   * Gives up those of the messages that may not be tried again, as their last lease ran out and counted as a failure: the
   * nodes of all their attempts may have died of them. Resolves with the others when that is recorded.
   */
  async giveUpLost<Message extends MessageRow>(way: PushWay, messages: readonly Message[]): Promise<Message[]> {
    const left: Message[] = [];
    const settlements: Settlement[] = [];
    for (const message of messages) {
      const receipt = message.lease_token;
      const decision = decideLost(rulesOf(way, message));
      if (decision === undefined || receipt === null) left.push(message);
      else settlements.push({ message, receipt, target: way.target, attempt: undefined, decision });
    }
    if (settlements.length > 0) await this.#enqueue(way, settlements, 0);
    return left;
  }

  #enqueue(way: PushWay, settlements: readonly Settlement[], heldUntilMs: number): Promise<void> {
    const { queue, target, ofSubscription } = way;
    const key = ofSubscription ? target.subscription_id : queue.queue_id;
    const running = this.#lanes.get(key);
    const lane = running ?? { way, waiting: [] };
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    lane.waiting.push({ settlements, heldUntilMs, resolve, reject });
    if (running === undefined) {
      this.#lanes.set(key, lane);
      void this.#drain(key, lane);
    }
    return promise;
  }

  /** Gives the messages of a batch back that was not sent. */
  async release({ queue, target, ofSubscription, messages }: PushBatch): Promise<void> {
    await this.#options.db.transaction().execute(async (trx) => {
      const leases = leasesOf(messages);
      if (!ofSubscription) return releaseLeases(trx, queue, leases);
      const ends = Array.from(leases, ([receipt, messageId]) => ({
        receipt,
        messageId,
        end: { kind: "release" } as const,
      }));
      await settleDeliveries(trx, queue, target.subscription_id, ends);
    });
    this.#options.wakeups.wake(queueTopic(queue.project_id, queue.name));
  }

  async #drain(key: string, lane: Lane): Promise<void> {
    while (lane.waiting.length > 0) {
      const taken = takeSome(lane.waiting);
      const settlements = taken.flatMap((one) => one.settlements);
      try {
        const heldUntilMs = Math.max(...taken.map((one) => one.heldUntilMs));
        await this.#record(lane.way, settlements, heldUntilMs);
        for (const { resolve } of taken) resolve();
      } catch (error) {
        for (const { reject } of taken) reject(error);
      }
    }
    this.#lanes.delete(key);
  }

  async #record(
    { queue, target, ofSubscription }: PushWay,
    settlements: readonly Settlement[],
    heldUntilMs: number,
  ): Promise<void> {
    const { db, wakeups, tally, givenUp } = this.#options;
    const mayGoOn = (error: unknown): boolean =>
      isConnectionFault(error) && performance.now() < heldUntilMs && !givenUp.aborted;
    for (let tries = 0; ; tries++) {
      try {
        const counts = await db.transaction().execute(async (trx) => {
          const ends = ofSubscription
            ? await endAtSubscription(trx, queue, target, settlements)
            : await endInQueue(trx, queue, settlements);
          await recordEnds(trx, queue, settlements, ends);
          return ends;
        });
        tally.add(queue.project_id, queue.name, "acked", counts.acked);
        tally.add(queue.project_id, queue.name, "nacked", counts.nacked);
        wakeups.wake(queueTopic(queue.project_id, queue.name));
        if (counts.parked.size > 0) wakeups.wake("runs");
        return;
      } catch (error) {
        const waitMs = RECORD_RETRY_MS[tries] ?? (mayGoOn(error) ? LAST_RECORD_RETRY_MS : undefined);
        if (waitMs === undefined) throw error;
        await delay(waitMs);
      }
    }
  }
}

/** Takes waiting batches off the front, one at least. */
function takeSome(waiting: Waiting[]): Waiting[] {
  let count = 0;
  let messages = 0;
  for (const { settlements } of waiting) {
    messages += settlements.length;
    if (count > 0 && messages > MAX_SETTLED) break;
    count += 1;
  }
  return waiting.splice(0, count);
}

function settlementsOf(batch: SentBatch): Settlement[] {
  const { target, messages, pushes, outcome } = batch;
  const results = resultsOf(batch);
  // The same jitter for all of a batch, so that what fails together comes again together.
  const jitter = Math.random();
  return messages.flatMap((message, i) => {
    const push = pushes[i];
    if (push === undefined || message.lease_token === null) return [];
    const decision = decidePush(results[i], rulesOf(batch, message), () => jitter);
    return [{ message, receipt: message.lease_token, target, attempt: { push, outcome }, decision }];
  });
}

function rulesOf({ queue, target }: PushWay, message: MessageRow): PushRules {
  return {
    failures: message.failure_count,
    maxRetries: target.max_retries ?? queue.max_retries,
    backoff: target.backoff,
    groupPolicy: queue.type === "fifo" ? target.group_failure_policy : undefined,
  };
}

/** What the answer says of each message: a 2xx to a batch may name some that failed. */
function resultsOf({ target, messages, outcome }: SentBatch): PushResult[] {
  if (outcome.kind === "delivered") {
    if (target.batch_size === 1) return messages.map(() => undefined);
    const failed = failedInBatch(outcome.responseBody, messages);
    return messages.map(({ message_id: id }) => (failed.has(id) ? { error: failed.get(id) ?? "" } : undefined));
  }
  if (outcome.kind === "failed") {
    return messages.map(() => (outcome.error === "cancelled" ? "cancelled" : { error: outcome.error }));
  }
  const { status, retryAfterMs, retryInMs, permanent } = outcome;
  return messages.map(() => ({ error: `HTTP ${status}`, retryAfterMs, retryInMs, permanent }));
}
