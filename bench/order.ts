/** The payload of every message: about 200 bytes of JSON, a new object each time as an application would make it. */
export interface Order {
  readonly order_id: string;
  readonly customer: string;
  readonly amount: number;
  readonly currency: string;
  readonly note: string;
  readonly items: readonly number[];
  /** When it was sent, in milliseconds of this process's clock, where latency is measured. */
  readonly sent_at?: number;
}

let count = 0;

/** `noteBytes` makes it larger or smaller. */
export function newOrder(sentAt?: number, noteBytes = 96): Order {
  return {
    order_id: `o_${count++}`,
    customer: "c_1234567",
    amount: 1999,
    currency: "USD",
    note: "x".repeat(noteBytes),
    items: [1, 2, 3],
    ...(sentAt !== undefined && { sent_at: sentAt }),
  };
}

export function newOrders(size: number, noteBytes?: number): Order[] {
  return Array.from({ length: size }, () => newOrder(undefined, noteBytes));
}
