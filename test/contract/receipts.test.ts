import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

const KINDS = ["standard", "fifo"] as const;
const cases = queueFaces(() => carillon).flatMap((face) => KINDS.map((kind) => ({ face, kind, name: face.name })));

describe.each(cases)("over $name, in a $kind queue", ({ face, kind }) => {
  const create = async (settings: object = {}): Promise<string> => {
    const queue = unique("q");
    const type = face.name === "REST" ? kind : `QUEUE_TYPE_${kind.toUpperCase()}`;
    await face.call("createQueue", { queue, type, visibility_timeout_default: 10, ...settings });
    return queue;
  };
  const publish = async (queue: string, message: object = {}): Promise<string> =>
    (await face.call("publish", { queue, payload: 1, ...message })).message_id;
  const take = async (queue: string) => (await face.call("consume", { queue, max_messages: 10 })).messages;
  const takeOne = async (queue: string) => {
    const messages = await take(queue);
    expect(messages).toHaveLength(1);
    return messages[0];
  };

  test("a receipt is good for its own hand-out only", async () => {
    const queue = await create();
    const message_id = await publish(queue);
    const { receipt: old } = await takeOne(queue);
    await carillon.database.advanceClock(11);
    const { receipt } = await takeOne(queue);
    expect(receipt).not.toBe(old);
    const stale = { queue, message_id, receipt: old };
    const reason = "lease_lost";
    expect(await face.call("ack", stale)).toMatchObject({ acked: false, reason });
    expect(await face.call("nack", stale)).toMatchObject({ nacked: false, requeued: false, reason });
    expect(await face.call("nack", { ...stale, requeue: false })).toMatchObject({ nacked: false, reason });
    expect(await face.call("extendLease", { ...stale, visibility_timeout: 60 })).toMatchObject({
      extended: false,
      reason,
    });
    expect(await face.call("extendLease", { ...stale, visibility_timeout: 0 })).toMatchObject({
      extended: false,
      reason,
    });
    expect(await take(queue)).toEqual([]);
    expect(await face.call("ack", { ...stale, receipt })).toMatchObject({ acked: true, late: false, already: false });
  });

  test("a late ack counts while nobody else has the message, a late nack does nothing", async () => {
    const queue = await create();
    for (const isBare of [false, true]) {
      const message_id = await publish(queue);
      const { receipt } = await takeOne(queue);
      const delivery = { queue, message_id, ...(isBare ? {} : { receipt }) };
      await carillon.database.advanceClock(11);
      const expired = { nacked: false, requeued: false, reason: "lease_expired" };
      expect(await face.call("nack", delivery)).toMatchObject(expired);
      expect(await face.call("ack", delivery)).toMatchObject({ acked: true, late: true, already: false });
      expect(await take(queue)).toEqual([]);
    }
  });

  test("a bare id settles the live lease", async () => {
    const queue = await create();
    const message_id = await publish(queue);
    await takeOne(queue);
    const bare = { queue, message_id };
    expect(await face.call("extendLease", { ...bare, visibility_timeout: 600 })).toMatchObject({ extended: true });
    await carillon.database.advanceClock(300);
    expect(await take(queue)).toEqual([]);
    expect(await face.call("nack", { ...bare, delay_seconds: 20 })).toMatchObject({ nacked: true, requeued: true });
    expect(await take(queue)).toEqual([]);
    await carillon.database.advanceClock(21);
    await takeOne(queue);
    expect(await face.call("ack", bare)).toMatchObject({ acked: true, late: false, already: false });
  });

  test("what was acked is known, and neither acked nor given back again", async () => {
    const queue = await create();
    const message_id = await publish(queue);
    const { receipt } = await takeOne(queue);
    await face.call("ack", { queue, message_id, receipt });
    await carillon.database.advanceClock(23 * 3_600);
    for (const delivery of [
      { queue, message_id },
      { queue, message_id, receipt },
    ]) {
      expect(await face.call("ack", delivery)).toMatchObject({ acked: true, already: true });
      expect(await face.call("nack", delivery)).toMatchObject({ nacked: false, reason: "already_acked" });
    }
  });

  test("what nobody holds is not settled, and the answer says how it stands", async () => {
    const queue = await create();
    const dead = await publish(queue, { group_id: "dead" });
    await takeOne(queue);
    await face.call("nack", { queue, message_id: dead, requeue: false });
    const available = await publish(queue, { group_id: "available" });
    const delayed = await publish(queue, { group_id: "delayed", delay_seconds: 60 });
    const unknown = "msg_01HX0000000000000000000000";
    for (const [message_id, reason] of [
      [available, "not_leased"],
      [delayed, "not_leased"],
      [dead, "dead_lettered"],
      [unknown, "not_found"],
      ["nonsense", "not_found"],
    ] as const) {
      expect(await face.call("ack", { queue, message_id })).toMatchObject({ message_id, acked: false, reason });
      expect(await face.call("nack", { queue, message_id })).toMatchObject({ message_id, nacked: false, reason });
      const extend = await face.call("extendLease", { queue, message_id, visibility_timeout: 60 });
      expect(extend).toMatchObject({ message_id, extended: false, reason });
    }
    for (const method of ["ack", "nack"] as const) {
      const call = face.call(method, { queue: unique("none"), message_id: available });
      await expect(call).rejects.toMatchObject({ reason: "QUEUE_NOT_FOUND" });
    }
  });

  test("a bare ack after an earlier lease ran out is taken, and what it may leave open stays so", async () => {
    const queue = await create();
    const first = await publish(queue);
    await takeOne(queue);
    await carillon.database.advanceClock(11);
    await takeOne(queue);
    const second = await publish(queue);
    expect(await face.call("ack", { queue, message_id: first })).toMatchObject({ acked: true });
    // Who acked cannot be told. In a FIFO queue the other may still be at work, so its group stays closed.
    if (kind === "fifo") {
      expect(await take(queue)).toEqual([]);
      await carillon.database.advanceClock(11);
    }
    expect(await takeOne(queue)).toMatchObject({ message_id: second });
  });

  test("the reason of a nack is kept as the error, and a redrive makes its receipt worthless", async () => {
    const queue = await create();
    const message_id = await publish(queue);
    const { receipt } = await takeOne(queue);
    await face.call("nack", { queue, message_id, receipt, requeue: false, reason: "HTTP 503" });
    const { items } = await face.call("listDeadLetters", { queue });
    expect(items).toMatchObject([{ message_id, reason: "rejected", error: "HTTP 503" }]);
    await face.call("redriveDeadLetters", { queue });
    expect(await face.call("ack", { queue, message_id, receipt })).toMatchObject({ acked: false });
    expect(await takeOne(queue)).toMatchObject({ message_id });
  });
});
