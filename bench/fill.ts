import type { Contestant } from "./contestants/contestant.ts";
import type { BenchDatabase } from "./database.ts";
import { newOrder, newOrders } from "./order.ts";

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

/** Messages that one statement stores. */
const STATEMENT = 10_000;

/**
 * Puts so many messages into the line of a queue by SQL, all of them alike: the way of the nodes' own statement, without
 * the nodes.
 */
export async function fillLine(database: BenchDatabase, queue: string, messages: number): Promise<void> {
  const payload = JSON.stringify(newOrder());
  for (let left = messages; left > 0; left -= STATEMENT) {
    const stored = await database.query(
      `select carillon_line_publish(project_id, $1, convert_to(repeat($2, $3), 'UTF8'), array_fill(length($2), array[$3]),
                                    null, null, null, null)
       from projects`,
      [queue, payload, Math.min(STATEMENT, left)],
    );
    if (stored.length !== 1) throw new Error(`${queue} has no line`);
  }
}
