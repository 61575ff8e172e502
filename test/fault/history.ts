/**
 * What clients know of a run. Every time is in milliseconds on the one monotonic clock that all clients share, except
 * where a field says otherwise. A record is made when a call is made; a call that is never answered stays unknown.
 */
export interface History {
  readonly publications: readonly Publication[];
  readonly handOuts: readonly HandOut[];
  readonly settlements: readonly Settlement[];
  readonly streams: readonly Stream[];
  /** Whether the queue was found empty when everything had stopped. Without that nothing can be said of losses. */
  readonly drained: boolean;
}

/** One message, over all the calls that tried to publish it. */
export interface Publication {
  /** What its payload says. Counts up within a group, in the order of publishing. */
  readonly n: number;
  /** Empty: the queue keeps no order. */
  readonly group: string;
  readonly delayMs: number;
  /** When the first of the calls was made. */
  readonly invokedAt: number;
  /** What the call that was acknowledged said. Undefined: unknown whether it is stored. */
  messageId?: string;
}

/** One message in the hands of a client. */
export interface HandOut {
  readonly messageId: string;
  /** What its payload says. Undefined: nobody published that payload. */
  readonly n: number | undefined;
  readonly receipt: string;
  readonly attempts: number;
  /** The client's own name for the call, by which it may be answered again. Empty: it may not. */
  readonly requestId: string;
  /** The earliest instant at which the lease can have begun: when the call was made, or the stream opened. */
  readonly askedAt: number;
  readonly receivedAt: number;
  /** The length of lease that the client asked for. */
  readonly leaseMs: number;
  /** What the server said, on the server's clock. */
  readonly leaseExpiresAt: number;
  /** The stream that it came by. Undefined: a pull. */
  readonly stream?: Stream;
}

/** One call that ends or moves a lease. */
export interface Settlement {
  readonly verb: "ack" | "nack" | "extend";
  readonly messageId: string;
  readonly receipt: string;
  /** A nack's delay, or what is left of the lease after an extend. 0 for an ack. */
  readonly ms: number;
  readonly invokedAt: number;
  answeredAt?: number;
  /** `already`: acked, by an earlier call. `refused`: the answer said no, and why. */
  outcome: "unknown" | "done" | "already" | "refused";
  reason?: string;
}

/** A stream that hands out messages. Its end gives back what it handed out. */
export interface Stream {
  readonly openedAt: number;
  /** When the client knew of the end, or made it. */
  endedAt?: number;
}

/** The history that the clients of a test write together. */
export class Recorder implements History {
  readonly publications: Publication[] = [];
  readonly handOuts: HandOut[] = [];
  readonly settlements: Settlement[] = [];
  readonly streams: Stream[] = [];
  drained = false;
  /** Attempts of the newest hand-out of each message that a client has received. */
  readonly newest = new Map<string, number>();
  /** The messages that some call has removed for good. */
  readonly acked = new Set<string>();
  /** The messages that some call has removed, or may have. */
  readonly #gone = new Set<string>();
  #stored = 0;
  /** How often which call got no answer, by what became of it instead. */
  readonly unknowns = new Map<string, number>();

  publishing(publication: Omit<Publication, "invokedAt" | "messageId">): Publication {
    const record: Publication = { ...publication, invokedAt: performance.now() };
    this.publications.push(record);
    return record;
  }

  published(publication: Publication, messageId: string): void {
    publication.messageId = messageId;
    this.#stored++;
  }

  received(handOut: Omit<HandOut, "receivedAt">): HandOut {
    const record: HandOut = { ...handOut, receivedAt: performance.now() };
    this.handOuts.push(record);
    const { messageId, attempts } = record;
    this.newest.set(messageId, Math.max(attempts, this.newest.get(messageId) ?? 0));
    return record;
  }

  settling(verb: Settlement["verb"], handOut: HandOut, ms = 0): Settlement {
    const { messageId, receipt } = handOut;
    const record: Settlement = { verb, messageId, receipt, ms, invokedAt: performance.now(), outcome: "unknown" };
    this.settlements.push(record);
    return record;
  }

  settled(settlement: Settlement, outcome: "done" | "already" | "refused", reason?: string): void {
    settlement.answeredAt = performance.now();
    settlement.outcome = outcome;
    if (reason !== undefined) settlement.reason = reason;
    if (settlement.verb === "ack" && outcome !== "refused") {
      this.acked.add(settlement.messageId);
      this.#gone.add(settlement.messageId);
    }
  }

  /** Leaves an ack without an answer. */
  abandoned({ messageId }: Settlement): void {
    this.#gone.add(messageId);
  }

  /** How many messages wait in the queue or are in flight, about. */
  get backlog(): number {
    return this.#stored - this.#gone.size;
  }

  opening(): Stream {
    const record: Stream = { openedAt: performance.now() };
    this.streams.push(record);
    return record;
  }

  /** Counts a call that got no answer, or a stream that broke. */
  unknown(what: string, why: string): void {
    const name = `${what}: ${why.replace(/127.0.0.1:\d+/, "a node")}`;
    this.unknowns.set(name, (this.unknowns.get(name) ?? 0) + 1);
  }

  /** How many calls got no answer and how many streams broke. */
  get unanswered(): number {
    return [...this.unknowns.values()].reduce((sum, count) => sum + count, 0);
  }

  /** Each further hand-out of a message that was handed out before, by the newest that a client knew of. */
  get redeliveries(): number {
    return new Set(this.handOuts.map(({ receipt }) => receipt)).size - this.newest.size;
  }
}
