import type { Db } from "../db/schema.ts";
import { queueTopic, type Wakeups } from "../db/wakeups.ts";
import { honourRetryAfter, scheduleMs, WEBHOOK_SCHEDULE_MS } from "../domain/backoff.ts";
import { formatId } from "../domain/ids.ts";
import { LruCache } from "../domain/lru-cache.ts";
import { type HandOutMemory, handOut, newHandOutMemory } from "../store/hand-outs.ts";
import { leasesOf, releaseLeases } from "../store/leases.ts";
import type { MessageRow } from "../store/messages.ts";
import { type PushableQueue, type PushTarget, pushableQueues } from "../store/push-subscriptions.ts";
import { finishPush, type Push, type PushResult, pushedSubscriptions, startPush } from "../store/pushes.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import { ackMessage, nackMessage } from "../store/settlements.ts";
import type { AttemptOutcome, Egress } from "../webhook/post.ts";

export interface PusherOptions {
  readonly db: Db;
  readonly wakeups: Wakeups;
  readonly tally: QueueTally;
  readonly egress: Egress;
  /** Most messages in the course of being pushed by this node. */
  readonly concurrency: number;
  /** Told of a push that failed for a reason of ours; its message comes back when its lease ends. */
  readonly onFault: (fault: unknown) => void;
}

/** Most messages of one queue that one tick takes, so that one full queue does not take every place. */
const QUEUE_SHARE = 8;
/** Queues looked at in one tick. */
const QUEUES = 100;
/** Most queues of which it is remembered how they were last found. */
const MAX_MEMORIES = 1_000;
/** The longest attempt, in seconds, however long the lease is. */
const MAX_TIMEOUT_SECONDS = 900;
/** How much longer the lease is than the attempt, in seconds, so that the outcome can be recorded under it. */
const LEASE_MARGIN_SECONDS = 10;
/** The longest wait that a receiver can ask for, in milliseconds. */
const RETRY_CAP_MS = 36_000_000;

/** Pushes the messages of subscribed queues: leases them as a consumer would, POSTs them, and acks or nacks. */
export class Pusher {
  readonly #options: PusherOptions;
  readonly #inHand = new Set<Promise<void>>();
  readonly #givenUp = new AbortController();
  readonly #memories = new LruCache<HandOutMemory>(MAX_MEMORIES);

  constructor(options: PusherOptions) {
    this.#options = options;
  }

  /** Takes what there is room for and starts pushing it. Returns how many messages it took. */
  async tick(signal: AbortSignal): Promise<number> {
    const { db, concurrency, onFault } = this.#options;
    let taken = 0;
    for (const pushable of await pushableQueues(db, QUEUES)) {
      const room = concurrency - this.#inHand.size;
      if (room <= 0 || signal.aborted) break;
      for (const message of await this.#lease(pushable, Math.min(room, QUEUE_SHARE))) {
        taken += 1;
        const work = this.#push(pushable, message)
          .catch(onFault)
          .finally(() => {
            this.#inHand.delete(work);
            this.#options.wakeups.wake("pushes");
          });
        this.#inHand.add(work);
      }
    }
    return taken;
  }

  /**
   * Resolves when every push in hand is settled. Those that are not after `graceMs` are given up: their messages go back
   * without counting a failure.
   */
  async stop(graceMs: number): Promise<void> {
    const timer = setTimeout(() => this.#givenUp.abort(), graceMs);
    await Promise.all(this.#inHand);
    clearTimeout(timer);
  }

  async #lease({ queue, subscriptions }: PushableQueue, limit: number): Promise<MessageRow[]> {
    const seconds = Math.max(...subscriptions.map((target) => leaseSeconds(queue.visibility_timeout_seconds, target)));
    const memory = this.#memories.getOrBuild(queue.queue_id, newHandOutMemory);
    const request = { limit, visibilitySeconds: seconds + LEASE_MARGIN_SECONDS };
    const leased = (await handOut(this.#options.db, queue.project_id, queue.name, [request], memory))?.[0] ?? [];
    this.#options.tally.add(queue.project_id, queue.name, "delivered", leased.length);
    return leased;
  }

  async #push({ queue, subscriptions }: PushableQueue, message: MessageRow): Promise<void> {
    const { db, wakeups, tally } = this.#options;
    const ids = subscriptions.map((target) => target.subscription_id);
    const done = await pushedSubscriptions(db, queue.project_id, ids, message.message_id);
    const targets = chooseTargets(subscriptions, message, done);
    const attempts = await Promise.all(
      targets.map(async (target) => {
        const timeoutSeconds = Math.min(leaseSeconds(queue.visibility_timeout_seconds, target), MAX_TIMEOUT_SECONDS);
        const push = await startPush(
          db,
          queue,
          target.subscription_id,
          message.message_id,
          timeoutSeconds + LEASE_MARGIN_SECONDS,
        );
        return { target, push, outcome: await this.#post(queue.name, target, message, push, timeoutSeconds) };
      }),
    );
    const failed = attempts.filter(({ outcome }) => outcome.kind !== "delivered");
    const settled = await db.transaction().execute(async (trx) => {
      const key = { messageId: message.message_id, receipt: message.lease_token ?? undefined };
      const delayMs = Math.max(0, ...failed.map(({ outcome }) => retryDelayMs(message.failure_count + 1, outcome)));
      const delaySeconds = Math.ceil(delayMs / 1_000);
      let requeued = true;
      let counted: "acked" | "nacked" | undefined;
      if (failed.length === 0) {
        const ack = await ackMessage(trx, queue, key);
        if (ack.acked && !ack.already) counted = "acked";
      } else if (failed.some(({ outcome }) => outcome.kind === "failed" && outcome.error === "cancelled")) {
        await releaseLeases(trx, queue, leasesOf([message]));
      } else {
        const own = failed.map(({ target }) => target.max_retries ?? queue.max_retries);
        const nacked = await nackMessage(trx, queue, {
          ...key,
          requeue: true,
          delaySeconds,
          error: failed.map(({ outcome }) => describe(outcome)).join("; "),
          maxRetries: Math.max(...own),
          deadLetterQueueId:
            failed.find(({ target }) => target.dead_letter_queue_id)?.target.dead_letter_queue_id ?? undefined,
        });
        requeued = !nacked.nacked || nacked.requeued;
        if (nacked.nacked) counted = "nacked";
      }
      for (const { push, outcome } of attempts) {
        await finishPush(trx, queue.project_id, push, toResult(outcome, requeued, delaySeconds));
      }
      return counted;
    });
    if (settled !== undefined) tally.add(queue.project_id, queue.name, settled, 1);
    wakeups.wake(queueTopic(queue.project_id, queue.name));
  }

  #post(
    queue: string,
    target: PushTarget,
    message: MessageRow,
    push: Push,
    timeoutSeconds: number,
  ): Promise<AttemptOutcome> {
    return this.#options.egress.post({
      url: target.url,
      body: message.payload,
      contentType: message.content_type,
      headers: message.headers,
      about: {
        queue,
        "message-id": formatId("msg", message.message_id),
        "subscription-id": formatId("sub", target.subscription_id),
        "run-id": formatId("run", push.run_id),
        attempt: `${push.attempt}`,
        "published-at": message.published_at.toISOString(),
        ...(message.group_id === "" || !/^[\x20-\x7e]*$/.test(message.group_id)
          ? {}
          : { "group-id": message.group_id }),
      },
      id: formatId("msg", message.message_id),
      secrets: target.secrets,
      timeoutMs: timeoutSeconds * 1_000,
      signal: this.#givenUp.signal,
    });
  }
}

function leaseSeconds(ofQueue: number, target: PushTarget): number {
  return target.visibility_timeout_seconds ?? ofQueue;
}

/**
 * One of the competing subscriptions, another one at each hand-out, and every fan-out subscription that has not been
 * given the message yet.
 */
function chooseTargets(
  subscriptions: readonly PushTarget[],
  message: MessageRow,
  done: ReadonlySet<string>,
): readonly PushTarget[] {
  const competing = subscriptions.filter((target) => target.mode === "compete");
  const served = competing.some((target) => done.has(target.subscription_id));
  const turn = Number.parseInt(message.message_id.slice(-6), 16) + message.receive_count;
  const chosen = served ? undefined : competing[turn % competing.length];
  const fanout = subscriptions.filter((target) => target.mode === "fanout" && !done.has(target.subscription_id));
  return chosen === undefined ? fanout : [chosen, ...fanout];
}

function retryDelayMs(failures: number, outcome: AttemptOutcome): number {
  const waitMs = scheduleMs(WEBHOOK_SCHEDULE_MS, Math.min(failures, WEBHOOK_SCHEDULE_MS.length));
  const askedMs = outcome.kind === "rejected" ? outcome.retryAfterMs : undefined;
  return honourRetryAfter(waitMs, askedMs, RETRY_CAP_MS) ?? 0;
}

function toResult(outcome: AttemptOutcome, requeued: boolean, retryInSeconds: number): PushResult {
  const delivered = outcome.kind === "delivered";
  return {
    state: delivered ? "succeeded" : requeued ? "retrying" : "failed",
    responseStatus: outcome.kind === "failed" ? null : outcome.status,
    error: delivered ? null : describe(outcome),
    durationMs: outcome.durationMs,
    responseBody: outcome.kind === "failed" ? null : outcome.responseBody,
    retryInSeconds: delivered || !requeued ? 0 : retryInSeconds,
  };
}

/** The failure in a few words, as the tenant sees it. */
function describe(outcome: AttemptOutcome): string {
  if (outcome.kind === "failed") return outcome.error;
  return `HTTP ${outcome.status}`;
}
