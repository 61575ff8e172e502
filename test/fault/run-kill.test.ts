import { sql } from "kysely";
import { expect, test } from "vitest";
import { LEASE_MARGIN_SECONDS } from "../../src/store/runs-leasing.ts";
import { testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { must, until } from "./calls.ts";
import { startNode } from "./node.ts";

const TIMEOUT_SECONDS = 60;

test("an attempt whose node was killed is counted, and another node makes the next one with the same webhook-id", async () => {
  await using database = await testDatabase();
  await using receiver = await startReceiver();
  receiver.respond((_request, index) => (index === 0 ? { hang: "before_headers" } : { status: 200 }));
  const env = { CARILLON_DATABASE_URL: database.url };
  const doomed = await startNode(env);
  const task = await must(doomed.url, "POST", "/task/schedule", {
    url: `${receiver.url}/hook`,
    run_at: new Date().toISOString(),
    retries: 3,
    timeout_seconds: TIMEOUT_SECONDS,
    payload: { n: 1 },
  });
  const first = await receiver.next();

  // A node that is there as well does not touch a run under a live lease.
  const other = await startNode(env);
  await doomed.kill();
  expect(doomed.child.signalCode).toBe("SIGKILL");
  await receiver.drained();
  expect(receiver.count).toBe(1);
  expect(await must(other.url, "GET", `/task/get/${task.task_id}`)).toMatchObject({ state: "running" });

  await database.advanceClock(TIMEOUT_SECONDS + LEASE_MARGIN_SECONDS + 1);
  const second = await receiver.next((request) => request !== first, 30_000);
  expect(second.headers["webhook-id"]).toBe(first.headers["webhook-id"]);
  expect(second.body).toEqual(first.body);
  expect([first, second].map((request) => request.headers["carillon-attempt"])).toEqual(["1", "2"]);

  const done = await until("the task succeeds", 10_000, async () => {
    const now = await must(other.url, "GET", `/task/get/${task.task_id}`);
    return now.state === "succeeded" ? now : undefined;
  });
  expect(done.last_run).toMatchObject({ state: "succeeded", attempt: 2, response_status: 200 });
  const { rows } = await sql`
    select attempt, error, response_status from run_attempts order by attempt`.execute(database.db);
  expect(rows).toEqual([
    { attempt: 1, error: "lease_expired", response_status: null },
    { attempt: 2, error: null, response_status: 200 },
  ]);
  expect(receiver.count).toBe(2);
});

test("a node that slept through its lease cannot settle the run that another node has made again", async () => {
  await using database = await testDatabase();
  await using receiver = await startReceiver();
  const awake = Promise.withResolvers<void>();
  receiver.respond(async (_request, index) => {
    if (index > 0) return { status: 200 };
    await awake.promise;
    return { status: 500, body: "late" };
  });
  const env = { CARILLON_DATABASE_URL: database.url };
  const sleeper = await startNode(env);
  const task = await must(sleeper.url, "POST", "/task/schedule", {
    url: `${receiver.url}/hook`,
    run_at: new Date().toISOString(),
    retries: 3,
    timeout_seconds: TIMEOUT_SECONDS,
  });
  const first = await receiver.next();
  sleeper.child.kill("SIGSTOP");
  const other = await startNode(env);
  await database.advanceClock(TIMEOUT_SECONDS + LEASE_MARGIN_SECONDS + 1);
  const second = await receiver.next((request) => request !== first, 30_000);
  expect(second.headers["webhook-id"]).toBe(first.headers["webhook-id"]);
  const succeeded = () =>
    must(other.url, "GET", `/task/get/${task.task_id}`).then((now) => (now.state === "succeeded" ? now : undefined));
  await until("the task succeeds", 10_000, succeeded);

  sleeper.child.kill("SIGCONT");
  awake.resolve();
  // The sleeper has read its answer, a failure, by the time that it answers a call which came after it.
  await must(sleeper.url, "GET", `/task/get/${task.task_id}`);
  expect((await sleeper.terminate()).code).toBe(0);
  expect((await succeeded())?.last_run).toMatchObject({ state: "succeeded", attempt: 2, response_status: 200 });
  expect(receiver.count).toBe(2);
});
