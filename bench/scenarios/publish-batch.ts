import { connect } from "../../src/db/connect.ts";
import { publishInLine } from "../../src/store/line.ts";
import { toBytes } from "../clients/carillon-faces.ts";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { closedLoop, type Span } from "../measure.ts";
import { newOrders } from "../order.ts";
import { pgbenchRows } from "../pgbench.ts";
import type { Entry, Scenario, Scope } from "../scope.ts";
import { ratios } from "../verdict.ts";

const BATCH = 1_000;
/** How many batches are in flight. */
const WIDTH = 4;
const IN_PROCESS = "Carillon in process";

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
    entries.push(await inProcess(scope, span));
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
        {
          goal: 2,
          what: "batches of 1000 in process / rows of pgbench",
          unit: "×",
          bound: { atLeast: 0.55 },
          values: ratios(rounds, IN_PROCESS, "pgbench"),
        },
      ],
    };
  },
};

/** The same by the function that stores them, without a network or a server in between. */
async function inProcess(scope: Scope, span: Span): Promise<Entry> {
  const { node, database } = await scope.startCarillon();
  const carillon = scope.use(await Carillon.open(node));
  const [project] = await database.query<{ project_id: string }>("select project_id from projects");
  const projectId = project?.project_id ?? "";
  const db = connect({ url: database.url });
  scope.use({ [Symbol.asyncDispose]: () => db.destroy() });
  return {
    name: IN_PROCESS,
    async measure() {
      const measures = await closedLoop(WIDTH, span, async () => {
        const messages = newOrders(BATCH).map((order) => ({ ...PLAIN, payload: toBytes(order) }));
        const stored = await publishInLine(db, projectId, carillon.queue, messages);
        if (stored?.ids.length !== BATCH) throw new Error("the line did not take the messages");
        return BATCH;
      });
      await carillon.empty();
      return measures;
    },
  };
}

const PLAIN = { contentType: "application/json", headers: {}, groupId: "", priority: 0, delaySeconds: 0 };
