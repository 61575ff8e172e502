import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { closedLoop } from "../measure.ts";
import { newOrders } from "../order.ts";
import { pgbenchRows } from "../pgbench.ts";
import type { Entry, Scenario } from "../scope.ts";
import { ratios } from "../verdict.ts";

const BATCH = 1_000;
/** How many batches are in flight. */
const WIDTH = 4;

/** Batches of 1000 over the network. */
export const publishBatch: Scenario = {
  name: "publish-batch",
  about: "batches of 1000, 4 in flight",
  async run(scope) {
    const span = { warmSeconds: 1, seconds: scope.settings.seconds };
    const { node } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const peers = await scope.openPeers(["graphile-worker", "pg-boss", "RabbitMQ quorum", "BullMQ, AOF always"]);
    const contestants: Contestant[] = [carillon, ...peers.map(({ contestant }) => contestant)];
    const entries = contestants.map(
      (contestant): Entry => ({
        name: contestant.name,
        async measure() {
          const measures = await closedLoop(WIDTH, span, async () => {
            await contestant.publishBatch(newOrders(BATCH));
            return BATCH;
          });
          await contestant.empty();
          return measures;
        },
      }),
    );
    const pgbench = await pgbenchRows(scope, { batch: BATCH, width: WIDTH, seconds: scope.settings.seconds });
    if (pgbench !== undefined) entries.push(pgbench);
    const rounds = await scope.alternate(entries);
    return {
      rounds,
      verdicts: [
        {
          goal: 2,
          what: "batches of 1000 over gRPC / graphile-worker addJobs",
          unit: "×",
          bound: { atLeast: 1.5 },
          values: ratios(rounds, carillon.name, "graphile-worker"),
        },
        {
          goal: 2,
          what: "batches of 1000 over gRPC / pg-boss insert",
          unit: "×",
          bound: { atLeast: 2 },
          values: ratios(rounds, carillon.name, "pg-boss"),
        },
      ],
    };
  },
};
