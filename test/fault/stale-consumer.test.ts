import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { expect, test } from "vitest";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { startTestCarillon, TEST_KEY } from "../support/carillon.ts";
import { testDatabase } from "../support/database.ts";
import { must } from "./calls.ts";

test("a consumer that slept past its lease cannot touch the message of the next holder, on another node", async () => {
  await using database = await testDatabase();
  await using one = await startTestCarillon({}, database);
  await using two = await startTestCarillon({}, database);
  const sleeper = createClient(
    QueueService,
    createGrpcTransport({
      baseUrl: one.url,
      interceptors: [
        (next) => (request) => {
          request.header.set("authorization", `Bearer ${TEST_KEY}`);
          return next(request);
        },
      ],
    }),
  );
  await must(two.url, "POST", "/queue/publish", { queue: "orders", payload: { n: 1 } });

  const slept = (await sleeper.consume({ queue: "orders", visibilityTimeout: 30 })).messages[0];
  expect(slept?.attempts).toBe(1);
  await database.advanceClock(31);
  const held = (await must(two.url, "POST", "/queue/consume", { queue: "orders", visibility_timeout: 30 })).messages[0];
  expect(held).toMatchObject({ message_id: slept?.messageId, attempts: 2 });
  expect(held.receipt).not.toBe(slept?.receipt);

  const stale = { queue: "orders", messageId: slept?.messageId ?? "", receipt: slept?.receipt ?? "" };
  expect(await sleeper.ack(stale)).toMatchObject({ acked: false, reason: "lease_lost" });
  expect(await sleeper.nack(stale)).toMatchObject({ nacked: false, reason: "lease_lost" });
  expect(await sleeper.extendLease({ ...stale, visibilityTimeout: 0 })).toMatchObject({
    extended: false,
    reason: "lease_lost",
  });

  // Undisturbed: nobody else is given it, the lease ends when it was to end, and the holder's ack counts.
  expect((await must(one.url, "POST", "/queue/consume", { queue: "orders" })).messages).toEqual([]);
  const holder = { queue: "orders", message_id: held.message_id, receipt: held.receipt };
  expect(await must(two.url, "POST", "/queue/extend", { ...holder, visibility_timeout: 60 })).toMatchObject({
    extended: true,
  });
  expect(await must(two.url, "POST", "/queue/ack", holder)).toMatchObject({ acked: true, late: false });
  expect(await sleeper.ack(stale)).toMatchObject({ acked: true, already: true });
  const stats = await must(one.url, "GET", "/queue/stats/orders");
  expect(stats).toMatchObject({ available: 0, in_flight: 0, delayed: 0 });
});

test("a late ack counts while nobody else has been given the message", async () => {
  await using carillon = await startTestCarillon();
  await must(carillon.url, "POST", "/queue/publish", { queue: "orders", payload: { n: 1 } });
  const { messages } = await must(carillon.url, "POST", "/queue/consume", { queue: "orders", visibility_timeout: 30 });
  await carillon.database.advanceClock(31);

  const { message_id, receipt } = messages[0];
  expect(await must(carillon.url, "POST", "/queue/ack", { queue: "orders", message_id, receipt })).toMatchObject({
    acked: true,
    late: true,
  });
  expect((await must(carillon.url, "POST", "/queue/consume", { queue: "orders" })).messages).toEqual([]);
});
