import { setTimeout as delay } from "node:timers/promises";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { type Measures, openLoop, percentiles } from "../measure.ts";
import { newOrder } from "../order.ts";
import type { Scenario } from "../scope.ts";
import { figures, ratios, type Verdict } from "../verdict.ts";

/** Messages a second, and the bounds on Carillon's times, in milliseconds. */
const RATES = [
  { perSecond: 500, p50: 1.5, p99: 10 },
  { perSecond: 5_000, p50: 4, p99: 20 },
] as const;
const WARM_S = 2;
/** How long what was sent may take to arrive after the last was sent, in milliseconds. */
const LATE_MS = 10_000;

/** From the instant at which a publish is due to the message at a consumer. */
export const latency: Scenario = {
  name: "latency",
  about: "publish to delivery at a steady rate, sent whether or not earlier ones were answered",
  async run(scope) {
    const { node } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const peers = await scope.openPeers(["RabbitMQ quorum", "graphile-worker", "BullMQ, AOF always"]);
    const contestants: Contestant[] = [carillon, ...peers.map(({ contestant }) => contestant)];
    const rounds = await scope.alternate(
      RATES.flatMap(({ perSecond }) =>
        contestants.map((contestant) => ({
          name: at(contestant.name, perSecond),
          measure: () => delivered(contestant, perSecond, scope.settings.seconds),
        })),
      ),
    );
    const verdicts = RATES.flatMap(({ perSecond, p50, p99 }): Verdict[] => {
      const name = at(carillon.name, perSecond);
      const within = (figure: string, atMost: number): Verdict => ({
        goal: 7,
        what: `publish to delivery at ${perSecond}/s, ${figure.replace("_ms", "")}`,
        unit: "ms",
        bound: { atMost },
        values: figures(rounds, name, figure),
      });
      return [within("p50_ms", p50), within("p99_ms", p99)];
    });
    for (const figure of ["p50_ms", "p99_ms"]) {
      verdicts.push({
        goal: 7,
        what: `the same at 500/s, ${figure.replace("_ms", "")} / RabbitMQ quorum`,
        unit: "×",
        bound: { atMost: 1 },
        values: ratios(rounds, at(carillon.name, 500), at("RabbitMQ quorum", 500), figure),
      });
    }
    return { rounds, verdicts };
  },
};

function at(name: string, perSecond: number): string {
  return `${name}, ${perSecond}/s`;
}

async function delivered(contestant: Contestant, perSecond: number, seconds: number): Promise<Measures> {
  let times: number[] = [];
  // What the warm-up left behind does not count.
  let from = performance.now();
  let failure: unknown;
  const consumers = await contestant.consume({
    onMessage: ({ sent_at: sentAt = Number.NaN }) => {
      if (sentAt >= from) times.push(performance.now() - sentAt);
    },
    onDone: () => {},
  });
  const send = (sentAt: number): void => {
    contestant.publish(newOrder(sentAt)).catch((error: unknown) => {
      failure = error;
    });
  };
  const arrived = async (count: number): Promise<void> => {
    for (const until = performance.now() + LATE_MS; times.length < count && performance.now() < until; ) await delay(5);
  };
  await openLoop(perSecond, WARM_S, send);
  await arrived(perSecond * WARM_S);
  times = [];
  from = performance.now();
  await openLoop(perSecond, seconds, send);
  await arrived(perSecond * seconds);
  if (failure !== undefined) throw failure;
  const measures = { ...percentiles(times), delivered: times.length / (perSecond * seconds) };
  await consumers[Symbol.asyncDispose]();
  await contestant.empty();
  return measures;
}
