import { setTimeout as delay } from "node:timers/promises";
import { openSession } from "./connect-face.ts";
import {
  type Delivery,
  type Draft,
  type Face,
  isBreak,
  type Settle,
  type StreamOptions,
  type Verdict,
} from "./faces.ts";
import type { HandOut, Recorder, Settlement, Stream } from "./history.ts";

/** How long a caller waits before it tries again what it got no answer to, in milliseconds. */
const RETRY_MS = 50;
/** Most calls for one publish. An outage of a minute is shorter than these take. */
const MAX_TRIES = 1_000;

/** The clients of one queue, who write down what they do and see. */
export interface Workload {
  readonly queue: string;
  readonly history: Recorder;
  /** Numbers from 0 up to 1. */
  readonly random: () => number;
  /** The nodes' addresses now. */
  readonly urls: () => readonly string[];
  /** Aborted when there is nothing left to do. */
  readonly signal: AbortSignal;
}

/** Any of the items. */
export function pick<T>(random: () => number, items: readonly T[]): T {
  const item = items[Math.floor(random() * items.length)];
  if (item === undefined) throw new Error("there is nothing to pick");
  return item;
}

/**
 * Publishes the drafts in one call, on any node. With a key the call is repeated until it is acknowledged; without one
 * there is one call, whose outcome may stay unknown.
 */
export async function publish(work: Workload, face: Face, drafts: readonly Draft[], key: string): Promise<void> {
  const records = drafts.map((draft) => work.history.publishing(draft));
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    const answer = await face.publish(pick(work.random, work.urls()), work.queue, drafts, key);
    if (answer.kind === "refused") throw new Error(`publish over ${face.name}: ${answer.why}`);
    if (answer.kind === "ok") {
      for (const [i, record] of records.entries()) {
        const messageId = answer.value[i];
        if (messageId === undefined) throw new Error(`publish over ${face.name}: an id is missing`);
        work.history.published(record, messageId);
      }
      return;
    }
    work.history.unknown("publish", answer.why);
    await delay(RETRY_MS);
    if (key === "") return;
  }
  throw new Error(`${drafts[0]?.n} was not acknowledged in ${MAX_TRIES} calls`);
}

/** How a pulling consumer asks. */
export interface PullHabits {
  readonly maxMessages: number;
  readonly leaseSeconds: number;
}

/**
 * One pull from any node. Every other one has a request id, and where it gets no answer it asks another node again, by
 * the same id.
 */
async function pull(work: Workload, face: Face, habits: PullHabits): Promise<HandOut[]> {
  const { history, random } = work;
  const requestId = random() < 0.5 ? `r${Math.floor(random() * 2 ** 48)}` : "";
  const maxMessages = 1 + Math.floor(random() * habits.maxMessages);
  const request = { maxMessages, waitSeconds: 1, leaseSeconds: habits.leaseSeconds, requestId };
  const askedAt = performance.now();
  for (let tries = 0; tries < 4; tries++) {
    const answer = await face.pull(pick(random, work.urls()), work.queue, request);
    if (answer.kind === "refused") throw new Error(`pull over ${face.name}: ${answer.why}`);
    if (answer.kind === "ok") return answer.value.map((delivery) => received(work, delivery, request, askedAt));
    history.unknown("pull", answer.why);
    await delay(RETRY_MS);
    if (requestId === "") break;
  }
  return [];
}

function received(
  { history }: Workload,
  delivery: Delivery,
  { leaseSeconds, requestId }: { readonly leaseSeconds: number; readonly requestId: string },
  askedAt: number,
  stream?: Stream,
): HandOut {
  return history.received({
    ...delivery,
    leaseMs: leaseSeconds * 1_000,
    requestId,
    askedAt,
    ...(stream !== undefined && { stream }),
  });
}

/** What a consumer does with a message. */
export type Handling = (work: Workload, face: Face, handOut: HandOut) => Promise<void>;

/** Pulls, and handles what comes, until there is nothing left to do. */
export async function pulling(work: Workload, face: Face, habits: PullHabits, handle: Handling): Promise<void> {
  while (!work.signal.aborted) {
    const handOuts = await pull(work, face, habits);
    await Promise.all(handOuts.map((handOut) => handle(work, face, handOut)));
  }
}

/** Pulls, and acks what comes in one call, until there is nothing left to do. */
export async function pullingAndAckingAll(work: Workload, face: Face, habits: PullHabits): Promise<void> {
  const { history, random, urls, queue } = work;
  while (!work.signal.aborted) {
    const handOuts = await pull(work, face, habits);
    if (handOuts.length === 0) continue;
    const settlements = handOuts.map((handOut) => history.settling("ack", handOut));
    const answer = await face.ackAll(pick(random, urls()), queue, handOuts);
    if (answer.kind === "refused") throw new Error(`ack in a batch over ${face.name}: ${answer.why}`);
    if (answer.kind === "unknown") {
      history.unknown("ack in a batch", answer.why);
      for (const settlement of settlements) history.abandoned(settlement);
    } else for (const [i, settlement] of settlements.entries()) note(work, settlement, answer.value[i]);
  }
}

/** Opens a stream, and says how what it hands out is settled. */
type Opening = (
  url: string,
  queue: string,
  options: StreamOptions,
  signal: AbortSignal,
) => { readonly deliveries: AsyncGenerator<readonly Delivery[]>; readonly face: Face };

/** Reads streams, one after the other, each from any node, and handles what comes, until there is nothing left to do. */
export function streaming(work: Workload, face: Face, options: StreamOptions, handle: Handling): Promise<void> {
  return reading(work, (...request) => ({ deliveries: face.stream(...request), face }), options, handle);
}

/** As `streaming`, by sessions, which settle what they hand out. What is in hand when one ends goes by `face`. */
export function sessions(work: Workload, face: Face, options: StreamOptions, handle: Handling): Promise<void> {
  const open: Opening = (...request) => {
    const session = openSession(...request);
    const settling: Settle = (...settlement) => session.settle(...settlement) ?? face.settle(...settlement);
    return { deliveries: session.deliveries, face: { ...face, name: "session", settle: settling } };
  };
  return reading(work, open, options, handle);
}

async function reading(work: Workload, open: Opening, options: StreamOptions, handle: Handling): Promise<void> {
  const { history, random, signal } = work;
  const inHand = new Set<Promise<void>>();
  while (!signal.aborted) {
    const stream = history.opening();
    try {
      const { deliveries, face } = open(pick(random, work.urls()), work.queue, options, signal);
      for await (const some of deliveries) {
        for (const delivery of some) {
          const request = { ...options, requestId: "" };
          const handling = handle(work, face, received(work, delivery, request, stream.openedAt, stream));
          inHand.add(handling);
          // A failure is reported where all of them are awaited.
          handling.then(
            () => inHand.delete(handling),
            () => {},
          );
        }
      }
    } catch (error) {
      if (!signal.aborted && !isBreak(error)) throw error;
      history.unknown("stream", String(error));
    }
    stream.endedAt = performance.now();
    if (!signal.aborted) await delay(RETRY_MS);
  }
  await Promise.all(inHand);
}

/** One ack, nack or extend on any node. Resolves with what is known of it. */
async function settle(
  work: Workload,
  face: Face,
  verb: Settlement["verb"],
  handOut: HandOut,
  seconds = 0,
): Promise<Settlement> {
  const settlement = work.history.settling(verb, handOut, seconds * 1_000);
  const answer = await face.settle(pick(work.random, work.urls()), work.queue, verb, handOut, seconds);
  if (answer.kind === "refused") throw new Error(`${verb} over ${face.name}: ${answer.why}`);
  if (answer.kind === "unknown") {
    work.history.unknown(verb, answer.why);
    return settlement;
  }
  note(work, settlement, answer.value);
  return settlement;
}

function note({ history }: Workload, settlement: Settlement, verdict: Verdict | undefined): void {
  if (verdict === undefined) throw new Error("an answer is missing");
  const { done, already, reason } = verdict;
  history.settled(settlement, already ? "already" : done ? "done" : "refused", reason);
}

/** Acks. Where there is no answer it asks again, mostly. */
const acking: Handling = async (work, face, handOut) => {
  for (let tries = 0; ; tries++) {
    const settlement = await settle(work, face, "ack", handOut);
    if (settlement.outcome !== "unknown") return;
    if (tries === 4 || work.random() < 0.2) return work.history.abandoned(settlement);
    await delay(RETRY_MS);
  }
};

/** Acks after a moment, but for some messages that it first gives back or asks more time for. */
export const working: Handling = async (work, face, handOut) => {
  const { random } = work;
  const chance = random();
  if (chance < 0.04) return void (await settle(work, face, "nack", handOut, chance < 0.02 ? 1 : 0));
  if (chance < 0.06) await settle(work, face, "extend", handOut, 5);
  if (chance < 0.2) await delay(random() * 20);
  await acking(work, face, handOut);
};

/**
 * Consumers that fall asleep with messages in hand, under the shortest lease, until somebody else has been given them,
 * and then settle them all the same. Returns how many of the messages had another holder by then, once there are `enough`.
 */
export async function sleeping(work: Workload, face: Face, enough: number, sleepers: number): Promise<number> {
  const { history, random, signal } = work;
  let stale = 0;
  const sleeper = async (): Promise<void> => {
    while (stale < enough && !signal.aborted) {
      const handOuts = await pull(work, face, { maxMessages: 4, leaseSeconds: 1 });
      await Promise.all(
        handOuts.map(async (handOut) => {
          const isStale = (): boolean => (history.newest.get(handOut.messageId) ?? 0) > handOut.attempts;
          const wakesAt = performance.now() + 15_000;
          while (!isStale() && performance.now() < wakesAt && !signal.aborted) await delay(5);
          if (isStale()) stale++;
          await settle(work, face, pick(random, ["ack", "ack", "nack", "extend"] as const), handOut, 0);
        }),
      );
    }
  };
  await Promise.all(Array.from({ length: sleepers }, sleeper));
  return stale;
}
