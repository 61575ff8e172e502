import { setTimeout as delay } from "node:timers/promises";
import { type ClaimProbe, startClaimProbe } from "../claim-probe.ts";
import { Carillon } from "../contestants/carillon.ts";
import type { Contestant } from "../contestants/contestant.ts";
import { type Cycle, rateOver, startCycle } from "../cycle.ts";
import type { BenchDatabase } from "../database.ts";
import type { Measures } from "../measure.ts";
import type { Entry, Scenario } from "../scope.ts";
import { figures } from "../verdict.ts";

const WARM_MS = 3_000;
const BEFORE_S = 8;
/** The end of the hold, where the rate is taken again. */
const END_S = 10;

/** A snapshot that a transaction elsewhere holds open keeps PostgreSQL from removing any dead row. */
export const oldSnapshot: Scenario = {
  name: "old-snapshot",
  about: "the same with a snapshot held open: what of the rate is left at its end",
  async run(scope) {
    const { hold } = scope.settings;
    const { node, database } = await scope.startCarillon();
    const carillon = scope.use(await Carillon.open(node));
    const entries: Entry[] = [
      {
        name: carillon.name,
        measure: () => held(carillon, database, hold, (running) => startClaimProbe(carillon, running)),
      },
    ];
    for (const { contestant, database: theirs } of await scope.openPeers(["graphile-worker", "pg-boss"])) {
      if (theirs === undefined) continue;
      entries.push({ name: contestant.name, measure: () => held(contestant, theirs, hold) });
    }
    const rounds = await scope.alternate(entries);
    return {
      rounds,
      verdicts: [
        {
          goal: 5,
          what: `rate kept at the end of ${hold} s with an old snapshot`,
          unit: "",
          bound: { atLeast: 0.9 },
          values: figures(rounds, carillon.name, "kept"),
        },
        {
          goal: 5,
          what: "claim p50 at the end / before",
          unit: "×",
          bound: { atMost: 1.5 },
          values: figures(rounds, carillon.name, "claim_p50_times"),
        },
      ],
    };
  },
};

async function held(
  contestant: Contestant,
  database: BenchDatabase,
  hold: number,
  startProbe?: (running: Cycle) => ClaimProbe,
): Promise<Measures> {
  const running = await startCycle(contestant);
  const probe = startProbe?.(running);
  await delay(WARM_MS);
  probe?.look();
  const before = await rateOver(running, BEFORE_S);
  const claimsBefore = probe?.look();

  const holder = await database.connect();
  await holder.query("begin isolation level repeatable read");
  await holder.query("select count(*) from pg_class");
  const end = Math.min(END_S, hold / 2);
  await delay((hold - end) * 1_000);
  probe?.look();
  const after = await rateOver(running, end);
  const claimsAfter = probe?.look();
  await holder.query("commit");
  await holder.end();

  await probe?.[Symbol.asyncDispose]();
  await running[Symbol.asyncDispose]();
  await contestant.empty();
  return {
    before_per_s: before.per_s,
    end_per_s: after.per_s,
    kept: after.per_s / before.per_s,
    before_cpu_us: before.cpu_us,
    end_cpu_us: after.cpu_us,
    ...(claimsBefore !== undefined &&
      claimsAfter !== undefined && {
        claim_p50_before_ms: claimsBefore["p50_ms"] ?? Number.NaN,
        claim_p50_end_ms: claimsAfter["p50_ms"] ?? Number.NaN,
        claim_p50_times: (claimsAfter["p50_ms"] ?? Number.NaN) / (claimsBefore["p50_ms"] ?? Number.NaN),
      }),
  };
}
