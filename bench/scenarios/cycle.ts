import { setTimeout as delay } from "node:timers/promises";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { rateOver, startCycle } from "../cycle.ts";
import type { Scenario } from "../scope.ts";
import { ratios } from "../verdict.ts";

const WARM_MS = 2_000;

/** Publishing, handing out and acknowledging at once. */
export const cycle: Scenario = {
  name: "cycle",
  about: "publish in batches of 100, consume and acknowledge at the same time",
  async run(scope) {
    const { node } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const peers = await scope.openPeers();
    const contestants: Contestant[] = [carillon, ...peers.map(({ contestant }) => contestant)];
    const rounds = await scope.alternate(
      contestants.map((contestant) => ({
        name: contestant.name,
        async measure() {
          const running = await startCycle(contestant);
          await delay(WARM_MS);
          const measures = await rateOver(running, scope.settings.seconds);
          await running[Symbol.asyncDispose]();
          await contestant.empty();
          return measures;
        },
      })),
    );
    return {
      rounds,
      verdicts: [
        {
          goal: 4,
          what: "publish, stream and ack together / graphile-worker, batched",
          unit: "×",
          bound: { atLeast: 3 },
          values: ratios(rounds, carillon.name, "graphile-worker"),
        },
        {
          goal: 4,
          what: "publish, stream and ack together / pg-boss",
          unit: "×",
          bound: { atLeast: 4.5 },
          values: ratios(rounds, carillon.name, "pg-boss"),
        },
      ],
    };
  },
};
