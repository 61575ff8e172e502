import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { unique } from "./calls.ts";
import { queueFaces } from "./queue-faces.ts";
import { expectAbsent } from "./shape.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  const fifo = face.name === "REST" ? "fifo" : "QUEUE_TYPE_FIFO";
  const create = async (settings: object): Promise<string> => {
    const queue = unique("q");
    await face.call("createQueue", { queue, ...settings });
    return queue;
  };
  const publish = async (queue: string, ...groups: string[]): Promise<string[]> => {
    const messages = groups.map((group_id) => ({ payload: 1, group_id }));
    return (await face.call("publishBatch", { queue, messages })).message_ids;
  };
  const consume = async (queue: string, max_messages = 100) =>
    (await face.call("consume", { queue, max_messages })).messages;
  const groupsOf = (messages: { group_id?: string }[]) => messages.map((message) => message.group_id);
  const blocked = async (queue: string) => (await face.call("listBlockedGroups", { queue })).items;

  test("a queue is created, read and changed with its flow settings", async () => {
    const queue = unique("q");
    const flow = { max_in_flight: 5, rate_limit: 10, rate_period_seconds: 60 };
    const created = await face.call("createQueue", { queue, fair: true, flow, group_flow: { rate_limit: 2 } });
    const groupFlow = { max_in_flight: 0, rate_limit: 2, rate_period_seconds: 1 };
    expect(created).toMatchObject({ fair: true, flow, group_flow: groupFlow });
    expect(await face.call("createQueue", { queue, flow })).toMatchObject({ fair: true, flow });
    await expect(face.call("createQueue", { queue, flow: { ...flow, rate_limit: 9 } })).rejects.toMatchObject({
      reason: "QUEUE_EXISTS",
    });

    const changed = await face.call("updateQueue", { queue, flow: { max_in_flight: 7 } });
    expect(changed).toMatchObject({
      fair: true,
      flow: { max_in_flight: 7, rate_limit: 0, rate_period_seconds: 1 },
      group_flow: groupFlow,
    });
    expect(await face.call("updateQueue", { queue, max_retries: 1 })).toMatchObject({
      fair: true,
      group_flow: groupFlow,
    });
    const cleared = await face.call("updateQueue", { queue, fair: false, flow: {}, group_flow: {} });
    expect(cleared).toMatchObject({ fair: false });
    expectAbsent(cleared, "flow", "group_flow");
  });

  test("limits outside their ranges are refused", async () => {
    for (const [field, flow] of [
      ["max_in_flight", { max_in_flight: -1 }],
      ["max_in_flight", { max_in_flight: 100_001 }],
      ["rate_limit", { rate_limit: 1_000_001 }],
      ["rate_period_seconds", { rate_limit: 1, rate_period_seconds: 0 }],
      ["rate_period_seconds", { rate_limit: 1, rate_period_seconds: 604_801 }],
    ] as const) {
      const refused = face.call("createQueue", { queue: unique("q"), flow });
      await expect(refused, field).rejects.toMatchObject({ reason: "FIELD_INVALID" });
      await expect(refused, field).rejects.toThrow(field);
    }
    const many = { type: fifo, group_flow: { max_in_flight: 2 } };
    await expect(face.call("createQueue", { queue: unique("q"), ...many })).rejects.toThrow("FIFO");
    const queue = await create({ type: fifo });
    const update = face.call("updateQueue", { queue, group_flow: many.group_flow });
    await expect(update).rejects.toMatchObject({ reason: "FIELD_INVALID" });
  });

  test("max_in_flight bounds what is out, from the next hand-out on, also where messages waited before", async () => {
    const queue = await create({});
    await publish(queue, ...Array.from({ length: 6 }, () => ""));
    const [first] = await consume(queue, 1);
    await face.call("updateQueue", { queue, flow: { max_in_flight: 3 } });
    expect(await consume(queue)).toHaveLength(2);
    expect(await consume(queue)).toHaveLength(0);
    expect(await face.call("listBlockedGroups", { queue })).toMatchObject({ queue_reason: "concurrency_limited" });
    const { message_id, receipt } = first;
    expect(await face.call("ack", { queue, message_id, receipt })).toMatchObject({ acked: true });
    expect(await consume(queue)).toHaveLength(1);
    await face.call("updateQueue", { queue, flow: {} });
    expect(await consume(queue)).toHaveLength(2);
  });

  test("rate_limit bounds the hand-outs of a period, of the queue and of each group", async () => {
    const queue = await create({ flow: { rate_limit: 3, rate_period_seconds: 600 } });
    await publish(queue, "a", "a", "a", "a", "b");
    expect(await consume(queue)).toHaveLength(3);
    expect(await consume(queue)).toHaveLength(0);
    expect(await face.call("listBlockedGroups", { queue })).toMatchObject({
      items: [],
      queue_reason: "rate_limited",
      queue_until: expect.any(String),
    });
    await face.call("updateQueue", { queue, flow: {}, group_flow: { rate_limit: 1, rate_period_seconds: 600 } });
    expect(groupsOf(await consume(queue)).sort()).toEqual(["a", "b"]);
    expect(await consume(queue)).toHaveLength(0);
    await publish(queue, "c");
    expect(groupsOf(await consume(queue))).toEqual(["c"]);
    await carillon.database.advanceClock(611);
    // The leases have run out as well.
    expect(groupsOf(await consume(queue)).toSorted()).toEqual(["a", "b", "c"]);
  });

  test("a consumer that waits is served when a limit or a delay ends", async () => {
    const queue = await create({ type: fifo, flow: { rate_limit: 1 } });
    await publish(queue, "a", "b");
    await face.call("publish", { queue, payload: 1, group_id: "c", delay_seconds: 2 });
    for (const group of ["a", "b", "c"]) {
      const { messages } = await face.call("consume", { queue, max_messages: 10, wait_seconds: 15 });
      expect(groupsOf(messages)).toEqual([group]);
    }
  });

  test("a fair queue serves a group that comes late before one that has much in flight", async () => {
    const queue = await create({ fair: true });
    await publish(queue, ...Array.from({ length: 50 }, () => "noisy"));
    expect(await consume(queue, 5)).toHaveLength(5);
    await publish(queue, "quiet", "quiet");
    expect(groupsOf(await consume(queue, 3))).toEqual(["quiet", "quiet", "noisy"]);
  });

  test("a queue is made fair while messages wait in it, and none of them is lost", async () => {
    const queue = await create({});
    const ids = await publish(queue, "a", "a", "a", "b", "");
    await face.call("updateQueue", { queue, fair: true });
    const [late] = await publish(queue, "c");
    const got: string[] = [];
    for (let i = 0; i < 3; i++)
      got.push(...(await consume(queue, 2)).map((message: { message_id: string }) => message.message_id));
    expect(got.toSorted()).toEqual([...ids, late].toSorted());
  });

  test("a FIFO queue lists the groups that wait, and why", async () => {
    const queue = await create({ type: fifo });
    const [held] = await publish(queue, "held", "held", "failed", "done");
    await face.call("publish", { queue, payload: 1, group_id: "later", delay_seconds: 600 });
    const messages = await consume(queue);
    const of = (group: string) => messages.find((message: { group_id: string }) => message.group_id === group);
    const settle = (group: string) => ({ queue, message_id: of(group).message_id, receipt: of(group).receipt });
    await face.call("nack", { ...settle("failed"), delay_seconds: 60 });
    await face.call("ack", settle("done"));
    const until = expect.any(String);
    const answer = await face.call("listBlockedGroups", { queue });
    expect(answer.items).toMatchObject([
      { group_id: "failed", reason: "retrying", message_id: of("failed").message_id, failures: 1, until, depth: 1 },
      {
        group_id: "held",
        reason: "in_flight",
        message_id: held,
        until,
        depth: 2,
        in_flight: 1,
        oldest_age_seconds: expect.any(Number),
      },
      { group_id: "later", reason: "delayed", failures: 0, until, depth: 1, in_flight: 0 },
    ]);
    expectAbsent(answer, "next_cursor", "queue_reason");

    const page = await face.call("listBlockedGroups", { queue, limit: 2 });
    expect(page.items).toHaveLength(2);
    const rest = await face.call("listBlockedGroups", { queue, limit: 2, cursor: page.next_cursor });
    expect(rest.items).toMatchObject([{ group_id: "later" }]);
    await expect(face.call("listBlockedGroups", { queue: unique("none") })).rejects.toMatchObject({
      reason: "QUEUE_NOT_FOUND",
    });
  });

  test("group_flow bounds what is out of each group, and the list says so", async () => {
    const queue = await create({ group_flow: { max_in_flight: 1 } });
    await publish(queue, "a", "a", "b");
    const messages = await consume(queue);
    expect(groupsOf(messages).toSorted()).toEqual(["a", "b"]);
    const items = await blocked(queue);
    expect(items).toMatchObject([{ group_id: "a", reason: "concurrency_limited", depth: 2, in_flight: 1 }]);
    expectAbsent(items[0], "message_id", "until", "failures");
    for (const { message_id, receipt } of messages) await face.call("ack", { queue, message_id, receipt });
    expect(groupsOf(await consume(queue))).toEqual(["a"]);
  });

  test("a paused queue hands out nothing until it is resumed, and takes messages meanwhile", async () => {
    const queue = await create({});
    expect(await face.call("pauseQueue", { queue })).toMatchObject({ queue, paused: true });
    const paused = await face.call("pauseQueue", { queue });
    expect(paused.paused).toBe(true);
    await publish(queue, "");
    expect(await consume(queue)).toEqual([]);
    expect(await face.call("listBlockedGroups", { queue })).toMatchObject({ queue_reason: "paused" });
    const waiting = face.call("consume", { queue, wait_seconds: 10 });
    expect(await face.call("resumeQueue", { queue })).toMatchObject({ queue, paused: false });
    expect((await waiting).messages).toHaveLength(1);
    await expect(face.call("pauseQueue", { queue: unique("none") })).rejects.toMatchObject({
      reason: "QUEUE_NOT_FOUND",
    });
  });
});

test("rates hold for consumers of several nodes together, to the message", async () => {
  await using other = await startTestCarillon({ CARILLON_ROLE: "api" }, carillon.database);
  const faces = [...queueFaces(() => carillon), ...queueFaces(() => other)];
  const [face] = faces;
  for (const [flow, most] of [
    [{ flow: { rate_limit: 10, rate_period_seconds: 3_600 } }, 10],
    [{ group_flow: { rate_limit: 3, rate_period_seconds: 3_600 } }, 12],
  ] as const) {
    const queue = unique("q");
    await face?.call("createQueue", { queue, ...flow });
    const messages = Array.from({ length: 60 }, (_, i) => ({ payload: i, group_id: `g${i % 4}` }));
    await face?.call("publishBatch", { queue, messages });
    const consumer = async (mine: (typeof faces)[number]): Promise<number> => {
      let count = 0;
      for (;;) {
        const { messages } = await mine.call("consume", { queue, max_messages: 2 });
        if (messages.length === 0) return count;
        count += messages.length;
        for (const { message_id, receipt } of messages) await mine.call("ack", { queue, message_id, receipt });
      }
    };
    const counts = await Promise.all([...faces, ...faces].map(consumer));
    expect(counts.reduce((sum, count) => sum + count)).toBe(most);
  }
});

test("limits hold for consumers of several nodes together", async () => {
  await using other = await startTestCarillon({ CARILLON_ROLE: "api" }, carillon.database);
  const faces = [...queueFaces(() => carillon), ...queueFaces(() => other)];
  const [face] = faces;
  const queue = unique("q");
  await face?.call("createQueue", { queue, flow: { max_in_flight: 5 }, group_flow: { max_in_flight: 2 } });
  const messages = Array.from({ length: 60 }, (_, i) => ({ payload: i, group_id: `g${i % 4}` }));
  await face?.call("publishBatch", { queue, messages });
  const out = new Map<string, string>();
  let left = messages.length;
  const consumer = async (mine: (typeof faces)[number]) => {
    while (left > 0) {
      const answer = await mine.call("consume", { queue, max_messages: 2 });
      for (const { message_id, group_id } of answer.messages) out.set(message_id, group_id);
      expect(out.size).toBeLessThanOrEqual(5);
      for (const group of new Set(out.values())) {
        expect([...out.values()].filter((one) => one === group).length).toBeLessThanOrEqual(2);
      }
      for (const { message_id, receipt } of answer.messages) {
        // Before the call: its place is free when the database says so, which is before the answer.
        out.delete(message_id);
        left -= 1;
        expect(await mine.call("ack", { queue, message_id, receipt })).toMatchObject({ acked: true });
      }
    }
  };
  await Promise.all([...faces, ...faces].map(consumer));
  expect(left).toBe(0);
});
