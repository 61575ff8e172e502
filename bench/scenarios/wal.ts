import { setTimeout as delay } from "node:timers/promises";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { startCycle } from "../cycle.ts";
import type { BenchDatabase } from "../database.ts";
import type { Measures } from "../measure.ts";
import { newOrder } from "../order.ts";
import type { Entry, Scenario } from "../scope.ts";
import { figures } from "../verdict.ts";

/** Publishers of single messages at once. */
const WIDTH = 64;
/** What is tidied up a moment after the last ack counts too. */
const TIDY_MS = 2_000;

/** Bytes of PostgreSQL's write-ahead log for a message, from its publishing to its ack. */
export const wal: Scenario = {
  name: "wal",
  about: "write-ahead log for a message, through its whole life",
  async run(scope) {
    const { seconds } = scope.settings;
    const { node, database } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const singly = async (): Promise<number> => {
      await carillon.publish(newOrder());
      return 1;
    };
    const inBatches = `${carillon.name}, batches of 100`;
    const entries: Entry[] = [
      { name: inBatches, measure: () => walPerMessage(carillon, database, seconds) },
      {
        name: `${carillon.name}, singly`,
        measure: () =>
          walPerMessage(carillon, database, seconds, () => startCycle(carillon, { produce: singly, producers: WIDTH })),
      },
    ];
    for (const { contestant, database: theirs } of await scope.openPeers(["graphile-worker", "pg-boss"])) {
      if (theirs === undefined) continue;
      entries.push({ name: contestant.name, measure: () => walPerMessage(contestant, theirs, seconds) });
    }
    const rounds = await scope.alternate(entries);
    return {
      rounds,
      verdicts: [
        {
          goal: 8,
          what: "write-ahead log for a message, through its whole life",
          unit: "bytes",
          bound: { atMost: 500 },
          values: figures(rounds, inBatches, "wal_bytes"),
        },
      ],
    };
  },
};

async function walPerMessage(
  contestant: Contestant,
  database: BenchDatabase,
  seconds: number,
  start = () => startCycle(contestant),
): Promise<Measures> {
  const from = await database.walPosition();
  const running = await start();
  await delay(seconds * 1_000);
  await running.drain();
  await delay(TIDY_MS);
  const written = (await database.walPosition()) - from;
  const measures = { wal_bytes: written / running.consumed(), messages: running.consumed() };
  await running[Symbol.asyncDispose]();
  await contestant.empty();
  return measures;
}
