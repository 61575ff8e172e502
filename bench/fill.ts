import type { Contestant } from "./contestants/contestant.ts";
import { newOrders } from "./order.ts";

const BATCH = 1_000;
/** How many batches are in flight. */
const WIDTH = 4;

/** Publishes so many messages, in batches. */
export async function fill(contestant: Contestant, messages: number): Promise<void> {
  let left = messages;
  const loop = async (): Promise<void> => {
    while (left > 0) {
      const size = Math.min(BATCH, left);
      left -= size;
      await contestant.publishBatch(newOrders(size));
    }
  };
  await Promise.all(Array.from({ length: WIDTH }, loop));
}
