import { setTimeout as delay } from "node:timers/promises";
import { newSecret } from "../../src/webhook/sign.ts";
import { barePosts } from "../clients/bare-posts.ts";
import type { BenchDatabase } from "../database.ts";
import { type Measures, percentiles } from "../measure.ts";
import type { Scenario } from "../scope.ts";
import { processorSeconds } from "../servers/processes.ts";
import { startFastReceiver } from "../servers/receiver.ts";
import { figures, ratios } from "../verdict.ts";

/** Tasks of a round at most: each is a row or two, and an attempt. */
const MAX_TASKS = 20_000;
/** Tasks a second for the latency. */
const STEADY_PER_S = 100;
/** A round that takes longer ends the benchmark, in seconds. */
const LONGEST_S = 60;

const CARILLON = "Carillon, every attempt recorded";
const BARE = "undici in a loop, nothing recorded";

/** Due tasks to a receiver that answers at once, each attempt recorded before and after, beside the bare requests. */
export const deliver: Scenario = {
  name: "deliver",
  about: "due tasks to a fast receiver, every attempt recorded, beside the same signed requests in a bare loop",
  async run(scope) {
    const { database } = await scope.startCarillon();
    const receiver = scope.use(await startFastReceiver());
    const tasks = Math.min(scope.settings.messages, MAX_TASKS);
    const secret = newSecret();
    const rounds = await scope.alternate([
      { name: CARILLON, measure: () => delivered(database, receiver.url, tasks) },
      { name: BARE, measure: () => bare(receiver.url, tasks, secret) },
    ]);
    const added = figures(rounds, CARILLON, "p50_ms").map((ms, i) => ms - (figures(rounds, BARE, "p50_ms")[i] ?? 0));
    return {
      rounds,
      verdicts: [
        {
          goal: 10,
          what: "deliveries / the same signed requests by undici in a loop",
          unit: "×",
          bound: { atLeast: 0.5 },
          values: ratios(rounds, CARILLON, BARE),
        },
        {
          goal: 10,
          what: `from due to recorded at ${STEADY_PER_S}/s beyond a bare request, median`,
          unit: "ms",
          bound: { atMost: 50 },
          values: added,
        },
      ],
    };
  },
};

async function delivered(database: BenchDatabase, url: string, count: number): Promise<Measures> {
  const usedBefore = await processorSeconds();
  const batch = await sendTasks(database, url, count);
  const { seconds } = await finished(database, batch, count);
  const used = (await processorSeconds()) - usedBefore;

  // At a steady rate nothing piles up: what is left is the way through the node.
  const steady: string[] = [];
  for (let second = 0; second < 3; second++) {
    for (let n = 0; n < STEADY_PER_S / 10; n++) {
      steady.push(await sendTasks(database, url, 10));
      await delay(1_000 / (STEADY_PER_S / 10));
    }
  }
  const times: number[] = [];
  for (const one of steady) times.push(...(await finished(database, one, 10)).waits);
  return { per_s: count / seconds, ...percentiles(times), cpu_us: (used * 1e6) / count };
}

/** Stores due tasks as a batch, and returns its name. */
async function sendTasks(database: BenchDatabase, url: string, count: number): Promise<string> {
  const name = `batch ${performance.now()}`;
  await database.query(
    `with due as (
       insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state)
       select project_id, $1, $2, 'application/json', '{}', 3, 30, carillon_now(), 'scheduled'
       from projects, generate_series(1, $3::int) returning project_id, task_id)
     insert into runs (project_id, kind, task_id, endpoint_id, state, trigger, fire_at, run_at)
     select project_id, 'task', task_id, carillon_endpoint_id($2), 'pending', 'schedule', carillon_now(), carillon_now()
     from due`,
    [name, url, count],
  );
  await database.query(`select pg_notify('carillon_wakeups', 'runs')`, []);
  return name;
}

/** Waits for the end of a batch: how long its deliveries took together, and each from due to recorded, in milliseconds. */
async function finished(database: BenchDatabase, name: string, count: number) {
  const startedAt = performance.now();
  // By indexes of what is open: to count what is done takes processor time from what is measured.
  const open = `select exists (select from runs where state in ('pending', 'retrying') and not waiting and not parked
                               and kind <> 'push')
    or exists (select from runs where parked and state in ('pending', 'retrying'))
    or exists (select from runs where state = 'running') as open`;
  for (;;) {
    const [row] = await database.query<{ open: boolean }>(open);
    if (!row?.open || performance.now() - startedAt > LONGEST_S * 1_000) break;
    await delay(200);
  }
  const [row] = await database.query<{ done: number; seconds: number; waits: number[] }>(
    `select count(*)::int as done, extract(epoch from max(r.finished_at) - min(r.started_at))::float8 as seconds,
       array_agg(extract(epoch from r.finished_at - r.run_at)::float8 * 1000) as waits
     from runs r join tasks t using (project_id, task_id) where t.name = $1 and r.state = 'succeeded'`,
    [name],
  );
  if (row?.done !== count) throw new Error(`${row?.done} of ${count} tasks were delivered`);
  return { seconds: row?.seconds ?? Number.NaN, waits: row?.waits ?? [] };
}

async function bare(url: string, count: number, secret: string): Promise<Measures> {
  const usedBefore = await processorSeconds();
  const { seconds } = await barePosts(url, count, secret);
  const used = (await processorSeconds()) - usedBefore;
  const one = await barePosts(url, 100, secret);
  return { per_s: count / seconds, ...percentiles(one.times), cpu_us: (used * 1e6) / count };
}
