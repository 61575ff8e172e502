import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { createQueue, ok, refused, unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  const consumeOne = async (queue: string, fields: object = {}) =>
    (await face.call("consume", { queue, ...fields })).messages[0];

  describe("a queue with require_receipt", () => {
    test("refuses to settle a delivery that is named by its message only", async () => {
      const queue = unique("q");
      expect(await face.call("createQueue", { queue, require_receipt: true })).toMatchObject({ require_receipt: true });
      const { message_id } = await face.call("publish", { queue, payload: 1 });
      const { receipt } = await consumeOne(queue);
      const reason = "receipt_required";
      expect(await face.call("ack", { queue, message_id })).toMatchObject({ acked: false, reason });
      expect(await face.call("nack", { queue, message_id })).toMatchObject({ nacked: false, requeued: false, reason });
      expect(await face.call("extendLease", { queue, message_id, visibility_timeout: 0 })).toMatchObject({
        extended: false,
        reason,
      });
      expect(await face.call("ack", { queue, message_id, receipt })).toMatchObject({ acked: true });
    });

    test("can be made of one without, and the other way round", async () => {
      const queue = unique("q");
      expect(await face.call("createQueue", { queue })).toMatchObject({ require_receipt: false });
      const { message_id } = await face.call("publish", { queue, payload: 1 });
      await consumeOne(queue);
      expect(await face.call("updateQueue", { queue, require_receipt: true })).toMatchObject({ require_receipt: true });
      expect(await face.call("ack", { queue, message_id })).toMatchObject({ acked: false, reason: "receipt_required" });
      await face.call("updateQueue", { queue, require_receipt: false });
      expect(await face.call("ack", { queue, message_id })).toMatchObject({ acked: true });
    });
  });

  describe("the counts of a message", () => {
    test("tell failures, returns and expiries apart", async () => {
      const queue = unique("q");
      const { message_id } = await face.call("publish", { queue, payload: 1 });
      expect(await consumeOne(queue)).toMatchObject({ attempts: 1, failures: 0, returns: 0, expiries: 0 });
      await face.call("nack", { queue, message_id });
      expect(await consumeOne(queue)).toMatchObject({ attempts: 2, failures: 1, returns: 0, expiries: 0 });
      await face.call("extendLease", { queue, message_id, visibility_timeout: 0 });
      expect(await consumeOne(queue)).toMatchObject({ attempts: 3, failures: 1, returns: 1, expiries: 0 });
      await face.call("nack", { queue, message_id, penalty: false });
      expect(await consumeOne(queue, { visibility_timeout: 1 })).toMatchObject({
        attempts: 4,
        failures: 1,
        returns: 2,
      });
      await carillon.database.advanceClock(2);
      expect(await consumeOne(queue)).toMatchObject({ attempts: 5, failures: 2, returns: 2, expiries: 1 });
    });

    test("let only failures kill it", async () => {
      const queue = unique("q");
      await face.call("createQueue", { queue, max_retries: 0 });
      const { message_id } = await face.call("publish", { queue, payload: 1 });
      for (let n = 0; n < 3; n++) {
        await consumeOne(queue);
        const nack = await face.call("nack", { queue, message_id, penalty: false });
        expect(nack).toMatchObject({ nacked: true, requeued: true });
      }
      expect(await consumeOne(queue)).toMatchObject({ failures: 0, returns: 3 });
      expect(await face.call("nack", { queue, message_id })).toMatchObject({ requeued: false, reason: "max_retries" });
    });

    test("start anew with its death", async () => {
      const queue = unique("q");
      const { message_id } = await face.call("publish", { queue, payload: 1 });
      await consumeOne(queue);
      await face.call("nack", { queue, message_id });
      await consumeOne(queue);
      const nack = await face.call("nack", { queue, message_id, requeue: false, penalty: false });
      expect(nack).toMatchObject({ nacked: true, requeued: false, reason: "rejected" });
      const { items } = await face.call("listDeadLetters", { queue });
      expect(items).toMatchObject([{ attempts: 2, failures: 0, returns: 0, expiries: 0 }]);
    });
  });
});

test("creating a queue again with another require_receipt is refused", async () => {
  const queue = await createQueue(carillon);
  const again = await carillon.rest("POST", "/queue/create", { queue, require_receipt: true });
  refused(again, 409, "ALREADY_EXISTS", "QUEUE_EXISTS");
  ok(await carillon.rest("POST", "/queue/create", { queue, require_receipt: false }));
});
