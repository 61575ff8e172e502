import type { QueueRow } from "../db/schema.ts";
import type { MessageRow } from "../store/messages.ts";
import type { PushTarget } from "../store/pushable.ts";

/** Where messages of a batch come from and go to. */
export interface PushWay {
  readonly queue: QueueRow;
  readonly target: PushTarget;
  /** Whether the messages were given over to the subscription, rather than leased from the queue. */
  readonly ofSubscription: boolean;
}

/** Messages that go out in one POST. */
export interface PushBatch extends PushWay {
  readonly messages: readonly MessageRow[];
}

/** Most bytes of payloads in one batch. A message that is larger goes alone. */
const MAX_BATCH_BYTES = 4_194_304;

interface Filling {
  readonly way: PushWay;
  readonly messages: MessageRow[];
  bytes: number;
  timer: NodeJS.Timeout | undefined;
}

/** Gathers leased messages until there are enough for a POST, or have waited long enough. */
export class PushBatches {
  readonly #send: (batch: PushBatch) => void;
  readonly #filling = new Map<string, Filling>();

  /** `send` is called once for each batch, with one message or more. */
  constructor(send: (batch: PushBatch) => void) {
    this.#send = send;
  }

  /** Messages that wait for others to go to a subscription with. */
  waiting(subscriptionId: string): number {
    const waiting = [true, false].map((of) => this.#filling.get(keyOf(subscriptionId, of))?.messages.length ?? 0);
    return waiting.reduce((sum, count) => sum + count, 0);
  }

  /** Sends the batches that are full by these messages, and the last one when its window is over. */
  add(way: PushWay, messages: readonly MessageRow[]): void {
    const { batch_size: size, batch_window_ms: windowMs, subscription_id: id } = way.target;
    const key = keyOf(id, way.ofSubscription);
    for (const message of messages) {
      let filling = this.#filling.get(key);
      if (filling !== undefined && filling.bytes + message.payload.length > MAX_BATCH_BYTES) {
        this.#close(key, filling);
        filling = undefined;
      }
      filling ??= { way, messages: [], bytes: 0, timer: undefined };
      this.#filling.set(key, filling);
      filling.messages.push(message);
      filling.bytes += message.payload.length;
      if (filling.messages.length >= size) this.#close(key, filling);
    }
    const last = this.#filling.get(key);
    if (last === undefined) return;
    if (windowMs === 0) this.#close(key, last);
    else last.timer ??= setTimeout(() => this.#close(key, last), windowMs);
  }

  /** Sends everything that waits. */
  flush(): void {
    for (const [key, filling] of this.#filling) this.#close(key, filling);
  }

  #close(key: string, filling: Filling): void {
    clearTimeout(filling.timer);
    if (this.#filling.get(key) === filling) this.#filling.delete(key);
    this.#send({ ...filling.way, messages: filling.messages });
  }
}

function keyOf(subscriptionId: string, ofSubscription: boolean): string {
  return `${subscriptionId}/${ofSubscription}`;
}
