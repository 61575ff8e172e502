import { monitorEventLoopDelay } from "node:perf_hooks";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { startTestCarillon } from "../support/carillon.ts";
import { startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { sized } from "./scale.ts";

const BACKLOG = sized(10_000, 1_000);

test("after an outage what has piled up arrives, no second of it over twice the mean", async () => {
  await using carillon = await startTestCarillon();
  await using receiver = await startReceiver();
  await using operators = await startReceiver();
  const { db, advanceClock } = carillon.database;
  await must(carillon.url, "POST", "/webhook/create", { url: `${operators.url}/`, event_types: ["endpoint.*"] });
  await must(carillon.url, "POST", "/webhook/create", { url: `${receiver.url}/hook`, event_types: ["endpoint.*"] });
  const url = `${receiver.url}/hook`;
  const endpoint = async () => (await must(carillon.url, "GET", `/endpoint/list?url=${url}`)).items[0];

  receiver.respond({ status: 500 });
  for (let n = 0; n < 10; n++) await must(carillon.url, "POST", "/task/schedule", { url, run_at: 0, retries: 0 });
  await until("the breaker is open", 60_000, async () => ((await endpoint())?.state === "open" ? true : undefined));
  const opening = await operators.next(({ body }) => body.includes("endpoint.breaker_opened"), 60_000);
  expect(JSON.parse(opening.body.toString()).data).toMatchObject({ url, state: "open", error: "HTTP 500" });

  await sql`
    with due as (
      insert into tasks (project_id, name, url, content_type, headers, retries, timeout_seconds, run_at, state)
      select project_id, 'due', ${url}, 'application/json', '{}', 3, 30, carillon_now(), 'scheduled'
      from projects, generate_series(1, ${BACKLOG}) returning project_id, task_id)
    insert into runs (project_id, kind, task_id, endpoint_id, state, trigger, fire_at, run_at)
    select project_id, 'task', task_id, carillon_endpoint_id(${url}), 'pending', 'schedule', carillon_now(), carillon_now()
    from due`.execute(db);
  await until("all of it waits", 60_000, async () => ((await endpoint()).waiting === BACKLOG ? true : undefined));

  // Probes that fail over three and a half minutes, then three that succeed, and nothing else in between.
  let sent = 10;
  const probe = async (seconds: number, isCounted: (endpoint: { state: string; succeeded: number }) => boolean) => {
    await advanceClock(seconds);
    sent += 1;
    await until("the probe has come", 60_000, async () => (receiver.count >= sent ? true : undefined));
    await until("its end is counted", 60_000, async () => (isCounted(await endpoint()) ? true : undefined));
    return receiver.count;
  };
  for (const seconds of [30, 60, 120]) expect(await probe(seconds, ({ state }) => state === "open")).toBe(sent);
  receiver.respond({});
  expect(await probe(240, ({ succeeded }) => succeeded === 1)).toBe(sent);
  expect(await probe(30, ({ succeeded }) => succeeded === 2)).toBe(sent);
  await probe(30, ({ state }) => state === "closed");
  await operators.next(({ body }) => body.includes("endpoint.breaker_closed"), 60_000);

  // What arrives while this process, node and receiver in one, gets no processor seems to arrive when it gets one again.
  const stalls = monitorEventLoopDelay({ resolution: 10 });
  stalls.enable();
  const all = 10 + BACKLOG;
  const delivered = () => receiver.requests.filter(({ headers }) => headers["carillon-task-id"] !== undefined);
  const done = () => new Set(delivered().map(({ headers }) => headers["webhook-id"])).size >= all;
  await until("all has arrived", 200_000, async () => (done() ? true : undefined));
  const ramp = receiver.requests.slice(sent).map(({ receivedAt }) => receivedAt);
  const seconds = ((ramp.at(-1) ?? 0) - (ramp[0] ?? 0)) / 1_000;
  const perSecond = [...Map.groupBy(ramp, (at) => Math.floor((at - (ramp[0] ?? 0)) / 1_000)).values()];
  const busiest = Math.max(...perSecond.map(({ length }) => length));
  const mean = ramp.length / seconds;
  const longestStall = stalls.max / 1e9;
  console.log(JSON.stringify({ backlog: BACKLOG, seconds, mean, busiest, longestStall }));
  expect(seconds).toBeGreaterThan(40);
  expect(busiest).toBeLessThanOrEqual(2 * mean * (1 + longestStall));
  // Nobody was told of an endpoint at the endpoint itself.
  expect(receiver.requests.every(({ headers }) => headers["carillon-task-id"] !== undefined)).toBe(true);
}, 600_000);
