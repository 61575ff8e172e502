import { cycleWithClaims } from "../claim-probe.ts";
import { Carillon } from "../contestants/carillon.ts";
import { fillLine } from "../fill.ts";
import type { Scenario } from "../scope.ts";
import { ratios } from "../verdict.ts";

const SHALLOW = "Carillon, none waiting";

/** The cycle in front of a deep queue. */
export const backlog: Scenario = {
  name: "backlog",
  about: "the cycle in a queue where millions wait already, against one where none does",
  async run(scope) {
    const { depth, seconds } = scope.settings;
    const deepName = `Carillon, ${depth.toLocaleString("en-US")} waiting`;
    const shallowNode = await scope.startCarillon();
    const shallow = scope.use(await Carillon.open(shallowNode.node));
    const deepNode = await scope.startCarillon();
    const deep = scope.use(await Carillon.open(deepNode.node));
    await fillLine(deepNode.database, deep.queue, depth);
    await deepNode.database.query("vacuum analyze");
    await deepNode.database.query("checkpoint");
    const rounds = await scope.alternate([
      { name: SHALLOW, measure: () => cycleWithClaims(shallow, seconds) },
      { name: deepName, measure: () => cycleWithClaims(deep, seconds) },
    ]);
    return {
      rounds,
      verdicts: [
        {
          goal: 6,
          what: `rate with ${depth.toLocaleString("en-US")} messages waiting / with none`,
          unit: "×",
          bound: { atLeast: 0.85 },
          values: ratios(rounds, deepName, SHALLOW),
        },
        {
          goal: 6,
          what: "claim p99, the same",
          unit: "×",
          bound: { atMost: 1.5 },
          values: ratios(rounds, deepName, SHALLOW, "claim_p99_ms"),
        },
      ],
    };
  },
};
