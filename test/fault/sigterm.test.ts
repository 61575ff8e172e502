import { Code, ConnectError } from "@connectrpc/connect";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { call, must, until } from "./calls.ts";
import { startNode } from "./node.ts";
import { type Protocol, queueClient } from "./streams.ts";

const GRACE_SECONDS = 15;
const PROTOCOLS: readonly Protocol[] = ["grpc", "grpc-web", "connect"];

test("SIGTERM ends streams, long polls and deliveries cleanly within the grace, and nothing is lost", async () => {
  await using database = await testDatabase();
  await using receiver = await startReceiver();
  const finish = Promise.withResolvers<void>();
  receiver.respond(async () => {
    await finish.promise;
    return { status: 200 };
  });
  const node = await startNode({
    CARILLON_DATABASE_URL: database.url,
    CARILLON_SHUTDOWN_GRACE_SECONDS: `${GRACE_SECONDS}`,
  });
  const queues = [...PROTOCOLS, "rest"];
  for (const queue of [...queues, "empty"]) await must(node.url, "POST", "/queue/create", { queue });
  for (const queue of queues) await must(node.url, "POST", "/queue/publish", { queue, payload: { queue } });

  // Each stream holds a message that it does not settle.
  const received: string[] = [];
  const streams = PROTOCOLS.map(async (protocol) => {
    try {
      for await (const { messages } of queueClient(node.url, protocol).consumeStream({ queue: protocol })) {
        for (const _ of messages) received.push(protocol);
      }
      return "ended";
    } catch (error) {
      return Code[ConnectError.from(error).code];
    }
  });
  const rest = (async () => {
    const response = await fetch(`${node.url}/v1/scheduling/queue/consume_stream/rest`, {
      headers: { authorization: `Bearer ${TEST_KEY}`, accept: "text/event-stream" },
      signal: AbortSignal.timeout(60_000),
    });
    let text = "";
    for await (const chunk of response.body ?? []) {
      text += Buffer.from(chunk).toString();
      if (text.includes("message_id") && !received.includes("rest")) received.push("rest");
    }
    return text;
  })();
  await until("every stream has its message", 10_000, () => (received.length === 4 ? true : undefined));
  const polling = call(node.url, "POST", "/queue/consume", { queue: "empty", wait_seconds: 20 }, { timeoutMs: 40_000 });
  const task = await must(node.url, "POST", "/task/schedule", { url: receiver.url, run_at: new Date().toISOString() });
  await receiver.next();

  const ending = node.terminate();
  await until("the port takes no more calls", 5_000, async () => {
    const outcome = await call(node.url, "GET", "/queue/stats/empty", undefined, { timeoutMs: 1_000 });
    return outcome.kind === "unknown" ? true : undefined;
  });
  finish.resolve();
  const end = await ending;
  expect(end, node.lines.join("\n")).toMatchObject({ code: 0, signal: null });
  expect(end.ms).toBeLessThan(GRACE_SECONDS * 1_000);

  expect(await Promise.all(streams)).toEqual(["Unavailable", "Unavailable", "Unavailable"]);
  expect(await rest).toContain("UNAVAILABLE");
  // A poll that is ended early has found nothing, like one that has waited to its end.
  expect(await polling).toMatchObject({ kind: "ok", body: { messages: [] } });

  const { rows } = await sql`
    select (select count(*)::int from messages where lease_expires_at is null and visible_at <= carillon_now()) as available,
      (select count(*)::int from messages) as messages, (select state from tasks) as task`.execute(database.db);
  expect(rows).toEqual([{ available: 4, messages: 4, task: "succeeded" }]);
  expect(receiver.count).toBe(1);

  const next = await startNode({ CARILLON_DATABASE_URL: database.url });
  expect((await must(next.url, "GET", `/task/get/${task.task_id}`)).last_run).toMatchObject({ attempt: 1 });
  for (const queue of queues) {
    const { messages } = await must(next.url, "POST", "/queue/consume", { queue });
    expect(messages).toMatchObject([{ payload: { queue }, attempts: 2 }]);
  }
});
