import { setTimeout as delay } from "node:timers/promises";
import { openCarillonCron } from "../contestants/cron-carillon.ts";
import type { CronContestant } from "../contestants/cron-contestant.ts";
import { openCroner } from "../contestants/cron-croner.ts";
import { openGraphileCron } from "../contestants/cron-graphile-worker.ts";
import { openPgBossCron } from "../contestants/cron-pg-boss.ts";
import { type Measures, percentiles } from "../measure.ts";
import type { Scenario, Scope } from "../scope.ts";
import { type Arrival, type FastReceiver, startFastReceiver } from "../servers/receiver.ts";
import { figures, ratios, type Verdict } from "../verdict.ts";

/** Jobs that are due at one minute: as many as a healthy service sees together. */
const JOBS = 100;
/** Of Carillon only: in this time graphile-worker recorded none of so many, and pg-boss sent an eighth. */
const HERD = 10_000;
/** Jobs of every second. */
const STEADY_JOBS = 50;
/** Until jobs are scheduled, what earlier minutes left is gone and nothing more happens, in milliseconds. */
const LEAD_MS = 15_000;
/** What has not arrived so long after its time has its turn ended, in milliseconds. */
const LONGEST_MS = 50_000;
const POLL_MS = 50;
const MINUTE_MS = 60_000;

/** From a fire time to the first byte at the receiver, beside what people would use instead. */
export const lateness: Scenario = {
  name: "lateness",
  about: "from fire time to first byte at the receiver, and how long a herd takes to be recorded: a minute a turn",
  async run(scope) {
    const receiver = scope.use(await startFastReceiver());
    const contestants = await openContestants(scope);
    const rounds = await scope.alternate([
      ...contestants.flatMap((contestant) =>
        contestant.scheduleEverySecond === undefined
          ? []
          : {
              name: everySecond(contestant.name),
              measure: () => measureSeconds(contestant, scope.settings.seconds, receiver),
            },
      ),
      ...contestants.map((contestant) => ({
        name: atMinute(contestant.name, JOBS),
        measure: () => measureMinute(contestant, JOBS, receiver),
      })),
      ...contestants.slice(0, 1).map((contestant) => ({
        name: atMinute(contestant.name, HERD),
        measure: () => measureMinute(contestant, HERD, receiver),
      })),
    ]);
    const within = (name: string, figure: string, atMost: number, unit: string): Verdict => ({
      goal: 12,
      what: `${name}: ${figure.replace(/_m?s$/, "").replace("_", " ")}`,
      unit,
      bound: { atMost },
      values: figures(rounds, name, figure),
    });
    const healthy = [atMinute("Carillon", JOBS), everySecond("Carillon")];
    return {
      rounds,
      verdicts: [
        ...healthy.flatMap((name) => [within(name, "p50_ms", 50, "ms"), within(name, "p99_ms", 250, "ms")]),
        within(atMinute("Carillon", HERD), "recorded_s", 5, "s"),
        ...["graphile-worker", "pg-boss"].map((peer) => ({
          goal: 12,
          what: `${atMinute("Carillon", JOBS)}: p99 / ${peer}'s`,
          unit: "×",
          bound: { atMost: 1 },
          values: ratios(rounds, atMinute("Carillon", JOBS), atMinute(peer, JOBS), "p99_ms"),
        })),
      ],
    };
  },
};

async function openContestants(scope: Scope): Promise<CronContestant[]> {
  const contestants = [openCarillonCron(await scope.startCarillon())];
  if (scope.settings.peers) {
    contestants.push(
      await openGraphileCron(await scope.createDatabase("graphile-worker")),
      await openPgBossCron(await scope.createDatabase("pg-boss")),
      await openCroner(),
    );
  }
  for (const contestant of contestants) scope.use(contestant);
  return contestants;
}

function atMinute(contestant: string, jobs: number): string {
  return `${contestant}, ${jobs.toLocaleString("en-US")} at a minute`;
}

function everySecond(contestant: string): string {
  return `${contestant}, ${STEADY_JOBS} every second`;
}

async function measureMinute(contestant: CronContestant, jobs: number, receiver: FastReceiver): Promise<Measures> {
  const at = new Date(Math.ceil((Date.now() + LEAD_MS) / MINUTE_MS) * MINUTE_MS);
  await using scheduled = await contestant.schedule(jobs, at, receiver.url);
  await delay(at.getTime() - Date.now() - 1_000);
  // What was due before, some send late.
  await receiver.takeArrivals();
  await delay(at.getTime() - Date.now());
  const { recorded } = scheduled;
  let recordedMs: number | undefined;
  const arrivals: Arrival[] = [];
  while (arrivals.length < jobs || (recorded !== undefined && recordedMs === undefined)) {
    const passedMs = Date.now() - at.getTime();
    if (passedMs > LONGEST_MS) break;
    if (recordedMs === undefined && recorded !== undefined && (await recorded()) >= jobs)
      recordedMs = Date.now() - at.getTime();
    arrivals.push(...(await receiver.takeArrivals()));
    await delay(POLL_MS);
  }
  const late = arrivals.slice(0, jobs).map((arrival) => arrival.at - at.getTime());
  return {
    ...percentiles(late),
    max_ms: Math.max(...late),
    arrived: late.length / jobs,
    ...(recordedMs !== undefined && { recorded_s: recordedMs / 1_000 }),
  };
}

async function measureSeconds(contestant: CronContestant, seconds: number, receiver: FastReceiver): Promise<Measures> {
  const from = new Date(Math.ceil((Date.now() + LEAD_MS) / 1_000) * 1_000);
  const to = new Date(from.getTime() + seconds * 1_000);
  await using _ = await contestant.scheduleEverySecond?.(STEADY_JOBS, from, to, receiver.url);
  await receiver.takeArrivals();
  const arrivals: Arrival[] = [];
  const fires = STEADY_JOBS * seconds;
  while (arrivals.length < fires && Date.now() < to.getTime() + LONGEST_MS) {
    await delay(1_000);
    arrivals.push(...(await receiver.takeArrivals()));
  }
  const late = arrivals.map(({ at, scheduledAt = Number.NaN }) => at - scheduledAt);
  return { ...percentiles(late), max_ms: Math.max(...late), arrived: late.length / fires };
}
