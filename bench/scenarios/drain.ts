import { setTimeout as delay } from "node:timers/promises";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { fill } from "../fill.ts";
import type { Measures } from "../measure.ts";
import type { Scenario, Scope } from "../scope.ts";
import { processorSeconds } from "../servers/processes.ts";
import { ratios } from "../verdict.ts";

/** A contestant that is slower than all have its turn ended, in seconds. */
const LONGEST_S = 30;

/** Messages that are there already, through one stream, each acknowledged. */
export const drain: Scenario = {
  name: "drain",
  about: "stored messages through one consumer, each acknowledged",
  async run(scope) {
    const { node } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const peers = await scope.openPeers();
    const contestants: Contestant[] = [carillon, ...peers.map(({ contestant }) => contestant)];
    const rounds = await scope.alternate(
      contestants.map((contestant) => ({ name: contestant.name, measure: () => drained(scope, contestant) })),
    );
    return {
      rounds,
      verdicts: [
        {
          goal: 3,
          what: "stored messages through one stream with acks / graphile-worker, batched",
          unit: "×",
          bound: { atLeast: 1.5 },
          values: ratios(rounds, carillon.name, "graphile-worker"),
        },
        {
          goal: 3,
          what: "stored messages through one stream with acks / RabbitMQ quorum, prefetch 1000",
          unit: "×",
          bound: { atLeast: 1.2 },
          values: ratios(rounds, carillon.name, "RabbitMQ quorum"),
        },
      ],
    };
  },
};

async function drained({ settings }: Scope, contestant: Contestant): Promise<Measures> {
  await fill(contestant, settings.messages);
  let done = 0;
  let doneAt = 0;
  const usedBefore = await processorSeconds();
  const startedAt = performance.now();
  const consumers = await contestant.consume({
    onDone: (count) => {
      done += count;
      doneAt = performance.now();
    },
  });
  while (done < settings.messages && performance.now() - startedAt < LONGEST_S * 1_000) await delay(1);
  const used = (await processorSeconds()) - usedBefore;
  const measures = { per_s: (done * 1_000) / (doneAt - startedAt), cpu_us: (used * 1e6) / done };
  await consumers[Symbol.asyncDispose]();
  await contestant.empty();
  return measures;
}
