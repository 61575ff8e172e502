/** Of what waits at least such a part begins in a turn, so that a thousand wait for tens of turns rather than for hundreds. */
const PART = 16;

/**
 * Lets many that want to begin at once begin a few at a time, in turns of the event loop. In between answers are read and
 * statements are sent, so that the database has work while requests are made.
 */
export class Pacer {
  readonly #perTurn: number;
  readonly #waiting: (() => void)[] = [];

  /** @param perTurn how many begin in a turn at least. */
  constructor(perTurn: number) {
    this.#perTurn = perTurn;
  }

  /** Resolves when it is the caller's turn; callers have it in their order. */
  turn(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    if (this.#waiting.push(resolve) === 1) setImmediate(() => this.#next());
    return promise;
  }

  #next(): void {
    const count = Math.max(this.#perTurn, Math.ceil(this.#waiting.length / PART));
    for (const begin of this.#waiting.splice(0, count)) begin();
    if (this.#waiting.length > 0) setImmediate(() => this.#next());
  }
}
