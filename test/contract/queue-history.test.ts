import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { createQueue, eventually, ok, refused, refusedField, unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon();
});
afterAll(() => carillon[Symbol.asyncDispose]());

const history = (queue: string, query = "") => carillon.rest("GET", `/queue/history/${queue}${query}`);

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  test("a queue with which nothing was done has done nothing in the last hour", async () => {
    const queue = unique("q");
    await face.call("createQueue", { queue });
    expect((await face.call("getQueueStats", { queue })).last_hour).toEqual({
      published: 0,
      delivered: 0,
      acked: 0,
      nacked: 0,
      expired: 0,
      dead: 0,
    });
  });

  test("the history and the statistics tell what was done with a queue", { timeout: 60_000 }, async () => {
    const queue = unique("q");
    await face.call("createQueue", { queue });
    for (const deduplication_key of ["a", "a", "b"])
      await face.call("publish", { queue, payload: 1, deduplication_key });
    const again = { queue, payload: 1, idempotency_key: unique("key") };
    await face.call("publish", again);
    await face.call("publish", again);
    await face.call("publishBatch", { queue, messages: [{ payload: 1 }, { payload: 2, deduplication_key: "a" }] });
    const consume = () => face.call("consume", { queue, max_messages: 10, request_id: "once" });
    const { messages } = await consume();
    await consume();
    const [acked, nacked, rejected, lapsed] = messages.map((message: { message_id: string }) => message.message_id);
    await face.call("ack", { queue, message_id: acked });
    await face.call("ack", { queue, message_id: acked });
    await face.call("nack", { queue, message_id: nacked, delay_seconds: 600 });
    await face.call("nack", { queue, message_id: rejected, requeue: false });
    await face.call("extendLease", { queue, message_id: lapsed, visibility_timeout: 1 });
    await carillon.database.advanceClock(2);
    const expected = { published: 4, delivered: 5, acked: 1, nacked: 2, expired: 1, dead: 1 };
    expect((await face.call("consume", { queue, max_messages: 10 })).messages).toHaveLength(1);
    const stats = await eventually(
      () => face.call("getQueueStats", { queue }),
      ({ last_hour }) => last_hour.published === 4 && last_hour.acked === 1 && last_hour.delivered === 5,
      30_000,
    );
    expect(stats.last_hour).toEqual(expected);
    const { buckets, bucket_seconds } = await face.call("getQueueHistory", { queue, bucket_seconds: 3_600 });
    expect(bucket_seconds).toBe(3_600);
    const total = buckets.reduce(
      (sum: number, { activity }: { activity: typeof expected }) => sum + activity.published + activity.dead,
      0,
    );
    expect(total).toBe(5);
    await carillon.database.advanceClock(60);
    const sampled = await eventually(
      () => face.call("getQueueHistory", { queue }),
      (answer) => answer.buckets.some(({ depth }: { depth?: number }) => depth !== undefined),
      30_000,
    );
    expect(sampled.buckets[0].starts_at).toMatch(/:00(\.000)?Z$/);
  });

  test("the history of an unknown queue, or over no time, is refused", async () => {
    await expect(face.call("getQueueHistory", { queue: unique("q") })).rejects.toMatchObject({
      reason: "QUEUE_NOT_FOUND",
    });
    const queue = unique("q");
    await face.call("createQueue", { queue });
    expect(await face.call("getQueueHistory", { queue })).toEqual({ buckets: [], bucket_seconds: 60 });
    const at = "2030-01-01T00:00:00Z";
    const none = face.call("getQueueHistory", { queue, since: at, until: at });
    await expect(none).rejects.toMatchObject({ reason: "FIELD_INVALID" });
  });
});

test("a bucket that is not made of whole minutes is refused", async () => {
  const queue = await createQueue(carillon);
  refusedField(await history(queue, "?bucket_seconds=90"), "bucket_seconds");
  refusedField(await history(queue, "?bucket_seconds=30"), "bucket_seconds");
  refusedField(await history(queue, "?bucket_seconds=86460"), "bucket_seconds");
  refusedField(await history(queue, "?since=2030-01-02T00:00:00Z&until=2030-01-01T00:00:00Z"), "since");
  ok(await history(queue, "?since=2030-01-01T00:00:00Z&bucket_seconds=86400"));
  refused(await history(unique("q")), 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
});
