import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { eventually, unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";
import { expectAbsent } from "./shape.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

interface Delivery {
  readonly message_id: string;
  readonly receipt: string;
}

const KINDS = ["standard", "fifo"] as const;
const cases = queueFaces(() => carillon).flatMap((face) => KINDS.map((kind) => ({ face, kind, name: face.name })));

describe.each(cases)("over $name, of a $kind queue", ({ face, kind }) => {
  const create = async (): Promise<string> => {
    const queue = unique("q");
    await face.call("createQueue", { queue, type: face.name === "REST" ? kind : `QUEUE_TYPE_${kind.toUpperCase()}` });
    return queue;
  };
  const publish = async (queue: string, group_id: string, message: object = {}): Promise<string> =>
    (await face.call("publish", { queue, payload: 1, group_id, ...message })).message_id;
  const take = async (queue: string, max_messages: number) =>
    (await face.call("consume", { queue, max_messages })).messages.map(({ message_id, receipt }: Delivery) => ({
      message_id,
      receipt,
    })) as Delivery[];
  const stats = (queue: string) => face.call("getQueueStats", { queue });

  test("the statistics follow each message, exactly", async () => {
    const queue = await create();
    const empty = await stats(queue);
    expect(empty).toMatchObject({ available: 0, delayed: 0, in_flight: 0, dlq: 0, paused: false });
    expectAbsent(empty, "oldest_age_seconds");
    for (const group of ["a", "b", "c", "d"]) await publish(queue, group);
    await publish(queue, "e", { delay_seconds: 100 });
    await carillon.database.advanceClock(50);
    await publish(queue, "f");
    const before = await stats(queue);
    expect(before).toMatchObject({ available: 5, delayed: 1, in_flight: 0, dlq: 0 });
    expect(before.oldest_age_seconds).toBeGreaterThanOrEqual(50);
    const [first, second, third, fourth] = await take(queue, 4);
    expect(await stats(queue)).toMatchObject({ available: 1, delayed: 1, in_flight: 4, dlq: 0 });
    await face.call("ack", { queue, ...first });
    await face.call("nack", { queue, ...second, requeue: false });
    await face.call("nack", { queue, ...third, delay_seconds: 600 });
    await face.call("extendLease", { queue, ...fourth, visibility_timeout: 10 });
    const after = await stats(queue);
    expect(after).toMatchObject({ available: 1, delayed: 2, in_flight: 1, dlq: 1 });
    expect(after.oldest_age_seconds).toBeLessThan(50);
    await carillon.database.advanceClock(11);
    expect(await stats(queue)).toMatchObject({ available: 2, delayed: 2, in_flight: 0, dlq: 1 });
    await carillon.database.advanceClock(40);
    expect(await stats(queue)).toMatchObject({ available: 3, delayed: 1, in_flight: 0, dlq: 1 });
    await face.call("purgeQueue", { queue });
    expect(await stats(queue)).toMatchObject({ available: 0, delayed: 0, in_flight: 0, dlq: 1 });
  });

  test("the rates are those of the last minute", async () => {
    const queue = await create();
    for (let n = 0; n < 12; n++) await publish(queue, `g${n}`);
    for (const message of await take(queue, 6)) await face.call("ack", { queue, ...message });
    const busy = await eventually(
      () => stats(queue),
      ({ rates }) => rates.published_per_second > 0 && rates.acked_per_second > 0,
    );
    expect(busy.rates).toEqual({ published_per_second: 12 / 60, acked_per_second: 6 / 60 });
    await carillon.database.advanceClock(61);
    expect((await stats(queue)).rates).toEqual({ published_per_second: 0, acked_per_second: 0 });
  });

  test("a purge takes what was there before, available, delayed and in flight, and nothing that comes after", async () => {
    const queue = await create();
    for (const group of ["a", "b"]) await publish(queue, group);
    await publish(queue, "c", { delay_seconds: 60 });
    const [held] = await take(queue, 1);
    expect(await face.call("purgeQueue", { queue })).toEqual({ queue, purged: 3 });
    expect(await face.call("ack", { queue, ...held })).toMatchObject({ acked: false, reason: "not_found" });
    const late = await publish(queue, "a");
    expect(await take(queue, 10)).toMatchObject([{ message_id: late }]);
  });
});
