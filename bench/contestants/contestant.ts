import type { Order } from "../order.ts";

/** A queue under test, with the settings that its makers recommend for speed. Disposing it stops and removes it. */
export interface Contestant extends AsyncDisposable {
  readonly name: string;
  /** Stores one message; resolves when the system has confirmed it. */
  publish(order: Order): Promise<void>;
  /** As `publish`, for many at once. */
  publishBatch(orders: readonly Order[]): Promise<void>;
  /** Starts consumers, which take all there is. Disposing the result stops them. */
  consume(events: ConsumerEvents): Promise<AsyncDisposable>;
  /** Removes every message. */
  empty(): Promise<void>;
}

/** What consumers tell of. */
export interface ConsumerEvents {
  /** A message has arrived at the handler. */
  readonly onMessage?: (order: Order) => void;
  /** So many messages were handled and are acknowledged, as far as the system tells its user. */
  readonly onDone: (count: number) => void;
}
