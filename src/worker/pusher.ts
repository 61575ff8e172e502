import type { Db, QueueRow } from "../db/schema.ts";
import type { Wakeups } from "../db/wakeups.ts";
import { endpointOf } from "../domain/endpoint.ts";
import { LruCache } from "../domain/lru-cache.ts";
import { leastBusyFirst, placesFor } from "../domain/push-places.ts";
import { pushRequest } from "../domain/push-request.ts";
import { admitRequests, releaseRoom } from "../store/endpoint-admission.ts";
import { type HandOutMemory, handOut, newHandOutMemory } from "../store/hand-outs.ts";
import type { MessageRow } from "../store/messages.ts";
import { leaseDeliveries } from "../store/push-deliveries.ts";
import { fanOut } from "../store/push-fanout.ts";
import { dueSubscriptions, type PushableQueue, type PushTarget, pushableQueues } from "../store/pushable.ts";
import { type Push, startPush } from "../store/pushes.ts";
import type { QueueTally } from "../store/queue-tally.ts";
import type { AttemptOutcome, Egress } from "../webhook/post.ts";
import { type EndpointWatch, flightEnd } from "./endpoint-watch.ts";
import { type Flight, InFlight } from "./in-flight.ts";
import { type PushBatch, PushBatches, type PushWay } from "./push-batches.ts";
import { PushSettler } from "./push-settler.ts";
import { attemptSeconds, heldMs, leaseSeconds } from "./push-times.ts";

export interface PusherOptions {
  readonly db: Db;
  readonly wakeups: Wakeups;
  readonly tally: QueueTally;
  readonly egress: Egress;
  /** Told of how requests end. */
  readonly watch: EndpointWatch;
  /** Most quick requests of this node at a time; slow ones count apart, see InFlight. */
  readonly concurrency: number;
  /** Most bytes of messages under way at which endpoints get requests that are not known to be good. */
  readonly maxBytes?: number;
  /** Told of a push that failed for a reason of ours; its messages come back when their leases end. */
  readonly onFault: (fault: unknown) => void;
}

/** Most requests' worth of messages of one queue that one tick takes, so that one full queue does not take every place. */
const QUEUE_SHARE = 8;
/** Queues and subscriptions looked at in one tick, each. */
const LOOKED_AT = 100;
/** Messages of one queue that one tick gives over to its subscriptions. */
const FAN_OUT_STEP = 200;
/** Most queues of which it is remembered how they were last found. */
const MAX_MEMORIES = 1_000;
/** The default of maxBytes. */
const MAX_BYTES = 268_435_456;

/** Attempts that may be made. */
interface Started {
  /** One for each message. */
  readonly pushes: readonly Push[];
  /** Their end decides over the endpoint's breaker. */
  readonly probe: boolean;
  /** The endpoint has a limit or is in trouble, so that others may wait for the end. */
  readonly guarded: boolean;
}

/** What is under way to a subscription. */
interface Load {
  readonly projectId: string;
  readonly target: PushTarget;
  readonly requests: number;
}

/** Pushes the messages of subscribed queues: leases them as a consumer would, POSTs them, and settles them. */
export class Pusher {
  readonly #options: PusherOptions;
  readonly #settler: PushSettler;
  readonly #batches = new PushBatches((batch) => this.#start(batch));
  readonly #inHand = new Set<Promise<void>>();
  readonly #flying: InFlight;
  /** By subscription. */
  readonly #loads = new Map<string, Load>();
  /** Of messages under way. */
  #bytes = 0;
  readonly #givenUp = new AbortController();
  readonly #memories = new LruCache<HandOutMemory>(MAX_MEMORIES);

  constructor(options: PusherOptions) {
    this.#options = options;
    this.#settler = new PushSettler({ ...options, givenUp: this.#givenUp.signal });
    this.#flying = new InFlight(options.concurrency);
  }

  /** Takes what there is room for and starts pushing it. Returns how many messages it took. */
  async tick(signal: AbortSignal): Promise<number> {
    const { db } = this.#options;
    const { proven, slow } = this.#flying.room();
    if (proven === 0 && slow === 0) return 0;
    const busyOf = ({ queue }: { readonly queue: QueueRow }): number => this.#flying.busyOf(queue.project_id);
    let taken = 0;
    for (const pushable of leastBusyFirst(await pushableQueues(db, LOOKED_AT, this.#full()), busyOf)) {
      if (signal.aborted) return taken;
      taken += pushable.fansOut ? await this.#fanOut(pushable) : await this.#takeFromQueue(pushable);
    }
    for (const { queue, target } of leastBusyFirst(await dueSubscriptions(db, LOOKED_AT, this.#full()), busyOf)) {
      if (signal.aborted) return taken;
      taken += await this.#takeForSubscription(queue, target);
    }
    return taken;
  }

  /** In how many milliseconds requests that take long give their places to others; undefined where none is wanting. */
  msUntilRoom(): number | undefined {
    return this.#flying.room().new === 0 ? this.#flying.msUntilSlow() : undefined;
  }

  /** Resolves when no push is in hand. Batches that are not full wait for no more. */
  async settled(): Promise<void> {
    this.#batches.flush();
    while (this.#inHand.size > 0) await Promise.all(this.#inHand);
  }

  /** Pushes in hand. */
  get size(): number {
    return this.#inHand.size;
  }

  /**
   * Resolves when every push in hand is settled. Those that are not after `graceMs` are given up: their messages go back
   * without counting a failure.
   */
  async stop(graceMs: number): Promise<void> {
    this.#batches.flush();
    const timer = setTimeout(() => this.#givenUp.abort(), graceMs);
    await Promise.all(this.#inHand);
    clearTimeout(timer);
  }

  /** How many more messages may be taken for a subscription now. */
  #room(projectId: string, target: PushTarget): number {
    const { standing, inFlight, window } = this.#flying.loadOf({ projectId, ...endpointOf(target.url) });
    const isHeavy = this.#bytes >= (this.#options.maxBytes ?? MAX_BYTES) && standing !== "proven";
    const places = placesFor({
      free: isHeavy ? 0 : this.#flying.room()[standing],
      toEndpoint: inFlight,
      window,
      own: this.#loads.get(target.subscription_id)?.requests ?? 0,
      ownLimit: target.max_concurrency,
    });
    return places * target.batch_size - this.#batches.waiting(target.subscription_id);
  }

  /** Subscriptions that have as much under way as they may. */
  #full(): string[] {
    return [...this.#loads].flatMap(([id, { projectId, target }]) => (this.#room(projectId, target) <= 0 ? [id] : []));
  }

  /** Takes messages of a queue, each for one of its subscriptions that has room. */
  async #takeFromQueue({ queue, subscriptions }: PushableQueue): Promise<number> {
    const rooms = new Map(
      subscriptions.map((target) => [target, Math.min(this.#room(queue.project_id, target), shareOf(target))]),
    );
    const limit = [...rooms.values()].reduce((sum, room) => sum + Math.max(0, room), 0);
    if (limit === 0) return 0;
    const request = {
      limit,
      visibilitySeconds: Math.max(...subscriptions.map((target) => leaseSeconds(queue, target))),
    };
    const memory = this.#memories.getOrBuild(queue.queue_id, newHandOutMemory);
    const leased = (await handOut(this.#options.db, queue.project_id, queue.name, [request], memory))?.[0] ?? [];
    const given = Map.groupBy(leased, (message) => {
      const open = subscriptions.filter((target) => (rooms.get(target) ?? 0) > 0);
      const target = open[turnOf(message) % open.length] as PushTarget;
      rooms.set(target, (rooms.get(target) ?? 0) - 1);
      return target;
    });
    for (const [target, messages] of given) {
      await this.#handOn({ queue, target, ofSubscription: false }, messages, ({ expiry_count }) => expiry_count > 0);
    }
    this.#options.tally.add(queue.project_id, queue.name, "delivered", leased.length);
    return leased.length;
  }

  /** Gives messages of a queue over to its subscriptions; pushed they are from there. */
  #fanOut({ queue, subscriptions }: PushableQueue): Promise<number> {
    const competing = subscriptions.filter((target) => target.mode === "compete");
    const memory = this.#memories.getOrBuild(queue.queue_id, newHandOutMemory);
    return fanOut(this.#options.db, queue, competing, FAN_OUT_STEP, memory);
  }

  /** Takes messages that were given over to a subscription. */
  async #takeForSubscription(queue: QueueRow, target: PushTarget): Promise<number> {
    const limit = Math.min(this.#room(queue.project_id, target), shareOf(target));
    if (limit <= 0) return 0;
    const { subscription_id: id } = target;
    const messages = await leaseDeliveries(this.#options.db, queue, id, limit, leaseSeconds(queue, target));
    await this.#handOn({ queue, target, ofSubscription: true }, messages, ({ lapsed }) => lapsed);
    this.#options.tally.add(queue.project_id, queue.name, "delivered", messages.length);
    return messages.length;
  }

  /** Puts messages on their way, but for those that `isLost` says a lease of ran out, where that was once too often. */
  async #handOn<Message extends MessageRow>(
    way: PushWay,
    messages: readonly Message[],
    isLost: (message: Message) => boolean,
  ): Promise<void> {
    const lost = messages.filter(isLost);
    const left = new Set(lost.length === 0 ? lost : await this.#settler.giveUpLost(way, lost));
    this.#batches.add(
      way,
      messages.filter((message) => !isLost(message) || left.has(message)),
    );
  }

  #start(batch: PushBatch): void {
    const { queue, target, messages } = batch;
    const bytes = messages.reduce((sum, { payload }) => sum + payload.length, 0);
    const { endpointId, address } = endpointOf(target.url);
    const flight = this.#flying.start(queue.project_id, endpointId, address);
    this.#count(queue.project_id, target, 1);
    this.#bytes += bytes;
    const work = this.#push(batch, flight)
      .catch(this.#options.onFault)
      .finally(() => {
        flight.end("neither", 0);
        this.#count(queue.project_id, target, -1);
        this.#bytes -= bytes;
        this.#inHand.delete(work);
        this.#options.wakeups.wake("pushes");
      });
    this.#inHand.add(work);
  }

  #count(projectId: string, target: PushTarget, more: number): void {
    const { subscription_id: id } = target;
    const requests = (this.#loads.get(id)?.requests ?? 0) + more;
    if (requests === 0) this.#loads.delete(id);
    else this.#loads.set(id, { projectId, target, requests });
  }

  async #push(batch: PushBatch, flight: Flight): Promise<void> {
    const { queue, target, messages } = batch;
    const beganMs = performance.now();
    const started = await this.#record(batch);
    // Its messages wait until the endpoint takes requests again, and others may have them meanwhile.
    if (started === undefined) return this.#settler.release(batch);
    const { pushes, probe, guarded } = started;
    const heldUntilMs = beganMs + heldMs(messages, pushes);
    const isInTime = performance.now() + attemptSeconds(queue, target) * 1_000 <= heldUntilMs;
    const outcome = isInTime ? await this.#post(queue, target, messages, pushes) : TOO_LATE;
    const { project_id: projectId } = queue;
    const spentPercent = outcome.kind === "delivered" ? 0 : spentPercentOf(batch);
    this.#options.watch.note({ projectId, url: target.url, outcome, probe, spentPercent });
    await this.#settler.settle({ ...batch, pushes, outcome, heldUntilMs });
    flight.end(flightEnd(outcome), outcome.durationMs);
    if (guarded) await this.#makeRoom(projectId, target);
  }

  /** Tells runs that wait for the end of a request to an endpoint with a limit; pushes are told of every end. */
  async #makeRoom(projectId: string, { url }: PushTarget): Promise<void> {
    const { db, wakeups } = this.#options;
    if (await releaseRoom(db, projectId, [endpointOf(url).endpointId])) wakeups.wake("runs");
  }

  /**
   * Records the attempts of a batch before they are made, in one transaction with their admission; undefined when the
   * endpoint takes no request now.
   */
  #record({ queue, target, messages }: PushBatch): Promise<Started | undefined> {
    const { subscription_id: id, url } = target;
    const { endpointId } = endpointOf(url);
    return this.#options.db.transaction().execute(async (trx) => {
      const grant = (await admitRequests(trx, queue.project_id, new Map([[endpointId, 1]]))).get(endpointId);
      if (grant?.granted === 0) return undefined;
      const pushes: Push[] = [];
      for (const { message_id } of messages) {
        pushes.push(await startPush(trx, queue, id, message_id, url, leaseSeconds(queue, target)));
      }
      return { pushes, probe: grant?.probe ?? false, guarded: grant !== undefined };
    });
  }

  #post(
    queue: QueueRow,
    target: PushTarget,
    messages: readonly MessageRow[],
    pushes: readonly Push[],
  ): Promise<AttemptOutcome> {
    const pushed = messages.map((message, i) => ({
      ...message,
      run_id: pushes[i]?.run_id ?? "",
      attempt: pushes[i]?.attempt ?? 1,
    }));
    return this.#options.egress.post({
      ...pushRequest(target, pushed),
      url: target.url,
      signers: target.signers,
      owner: { projectId: queue.project_id, ownerId: target.subscription_id },
      ...(pushes[0] && { at: pushes[0].started_at }),
      timeoutMs: attemptSeconds(queue, target) * 1_000,
      signal: this.#givenUp.signal,
    });
  }
}

/** Of an attempt that might outlast its lease, so that the message could be sent by two at a time. It is not made. */
const TOO_LATE: AttemptOutcome = {
  kind: "failed",
  error: "cancelled",
  detail: "the lease of the message would have ended under it",
  durationMs: 0,
  timings: {},
  requestHeaders: {},
};

/** How much of its attempts the message that has had most of them will have had when this one fails, in percent. */
function spentPercentOf({ queue, target, messages }: PushBatch): number {
  const failures = Math.max(...messages.map((message) => message.failure_count)) + 1;
  return Math.min(100, Math.floor((100 * failures) / ((target.max_retries ?? queue.max_retries) + 1)));
}

function shareOf(target: PushTarget): number {
  return QUEUE_SHARE * target.batch_size;
}

/** Another for each message and for each of its hand-outs. */
function turnOf(message: MessageRow): number {
  return Number.parseInt(message.message_id.slice(-6), 16) + message.receive_count;
}
