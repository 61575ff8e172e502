import { AttemptFailure } from "./failure.ts";

/**
 * When an attempt is given up: after its time limit, or when one of the signals aborts that it shares with others. It is an entry in
 * a set of each of these, and has a signal of its own only where something asks for one: for the thousands of attempts that there
 * may be in a second, AbortSignal.any costs more than the rest of their bookkeeping.
 */
export class Deadline implements Disposable {
  /** Who follow a signal. */
  static readonly #followers = new WeakMap<AbortSignal, Set<Deadline>>();

  readonly #followed: readonly AbortSignal[];
  readonly #timer: NodeJS.Timeout;
  #own: AbortController | undefined;
  #listener: ((reason: unknown) => void) | undefined;
  #over: { readonly reason: unknown } | undefined;

  /**
   * @param timeoutMs from now; 1 to 2^31 - 1. The reason is an AttemptFailure `timeout` then.
   * @param followed when one aborts, its reason is the reason.
   */
  constructor(timeoutMs: number, followed: readonly AbortSignal[]) {
    this.#followed = followed;
    // A timer of our own rather than AbortSignal.timeout, whose timer would stay behind for up to a quarter of an hour.
    this.#timer = setTimeout(() => this.#end(new AttemptFailure("timeout", "no answer in time")), timeoutMs);
    for (const signal of followed) {
      if (signal.aborted) this.#end(signal.reason);
      else Deadline.#followersOf(signal).add(this);
    }
  }

  /** Whether the attempt has been given up. */
  get isOver(): boolean {
    return this.#over !== undefined;
  }

  /** @throws the reason, once the attempt has been given up. */
  throwIfOver(): void {
    if (this.#over !== undefined) throw this.#over.reason;
  }

  /** The same as a signal. */
  get signal(): AbortSignal {
    this.#own ??= new AbortController();
    if (this.#over !== undefined) this.#own.abort(this.#over.reason);
    return this.#own.signal;
  }

  /** Has this listener told when the attempt is given up, and no other; undefined for none. */
  listen(listener: ((reason: unknown) => void) | undefined): void {
    this.#listener = listener;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    for (const signal of this.#followed) Deadline.#followers.get(signal)?.delete(this);
  }

  #end(reason: unknown): void {
    if (this.#over !== undefined) return;
    this.#over = { reason };
    this.#own?.abort(reason);
    this.#listener?.(reason);
  }

  static #followersOf(signal: AbortSignal): Set<Deadline> {
    const known = Deadline.#followers.get(signal);
    if (known !== undefined) return known;
    const followers = new Set<Deadline>();
    Deadline.#followers.set(signal, followers);
    signal.addEventListener("abort", () => {
      for (const deadline of followers) deadline.#end(signal.reason);
    });
    return followers;
  }
}
