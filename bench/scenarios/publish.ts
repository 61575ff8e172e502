import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { closedLoop } from "../measure.ts";
import { newOrder } from "../order.ts";
import type { Entry, Scenario } from "../scope.ts";
import { ratios, type Verdict } from "../verdict.ts";

/** How many publishes are in flight. */
const WIDTH = 64;
const FACES = ["gRPC", "Connect JSON", "Connect binary", "REST"] as const;

/** Durable unary publishes over the network, in each protocol. */
export const publish: Scenario = {
  name: "publish",
  about: "unary publish, 64 in flight, each answered when it is durable",
  async run(scope) {
    const span = { warmSeconds: 1, seconds: scope.settings.seconds };
    const contestants: Contestant[] = [];
    const { node } = await scope.startCarillon();
    for (const [index, face] of FACES.entries()) {
      contestants.push(scope.use(await Carillon.open(node, { face, queue: `publish-${index}` })));
    }
    if (scope.settings.peers) {
      const { node: behindAdapter } = await scope.startCarillon("connect-node");
      for (const [index, face] of FACES.entries()) {
        const name = viaAdapter(face);
        contestants.push(scope.use(await Carillon.open(behindAdapter, { name, face, queue: `publish-${index}` })));
      }
    }
    const peers = await scope.openPeers();
    contestants.push(...peers.map(({ contestant }) => contestant));

    const entries = contestants.map(
      (contestant): Entry => ({
        name: contestant.name,
        async measure() {
          const measures = await closedLoop(WIDTH, span, async () => {
            await contestant.publish(newOrder());
            return 1;
          });
          await contestant.empty();
          return measures;
        },
      }),
    );
    const rounds = await scope.alternate(entries);
    const verdicts = FACES.flatMap((face): Verdict[] => {
      const against = (peer: string, atLeast: number): Verdict => ({
        goal: 1,
        what: `publish over ${face} / ${peer === viaAdapter(face) ? "the same behind connect-node's adapter" : peer}`,
        unit: "×",
        bound: { atLeast },
        values: ratios(rounds, `Carillon ${face}`, peer),
      });
      return [
        against("graphile-worker", 10),
        against("pg-boss", 8),
        against("RabbitMQ quorum", 1),
        against(viaAdapter(face), 5),
      ];
    });
    return { rounds, verdicts };
  },
};

function viaAdapter(face: (typeof FACES)[number]): string {
  return `Carillon ${face}, adapter`;
}
