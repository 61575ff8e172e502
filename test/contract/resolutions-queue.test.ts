import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { consume, createQueue, ok, publish, refused, refusedField, unique, warning } from "./calls.ts";
import { expectAbsent, expectShape } from "./shape.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon({ CARILLON_ROLE: "api" });
});
afterAll(() => carillon[Symbol.asyncDispose]());

const post = (path: string, body: object = {}) => carillon.rest("POST", path, body);
const get = async (path: string) => ok(await carillon.rest("GET", path));

describe("S22: priority", () => {
  test("S22: 0 to 9 is taken; without enable_priority it is stored, warned of, and changes no order", async () => {
    const queue = await createQueue(carillon);
    const first = await publish(carillon, queue);
    const answer = await post("/queue/publish", { queue, payload: {}, priority: 9 });
    expect(warning(answer)).toContain("enable_priority");
    const messages = await consume(carillon, queue);
    expect(messages).toMatchObject([
      { message_id: first, priority: 0 },
      { message_id: ok(answer).message_id, priority: 9 },
    ]);
    for (const priority of [-1, 10, 1.5]) {
      refusedField(await post("/queue/publish", { queue, payload: {}, priority }), "priority");
    }
  });

  test("S22: with enable_priority higher comes first, and a long wait outweighs it", async () => {
    const queue = await createQueue(carillon, { enable_priority: true });
    const low = await publish(carillon, queue, { priority: 0 });
    const high = await publish(carillon, queue, { priority: 9 });
    const middle = await publish(carillon, queue, { priority: 5 });
    const ids = (await consume(carillon, queue)).map(({ message_id }) => message_id);
    expect(ids).toEqual([high, middle, low]);

    const waiting = await createQueue(carillon, { enable_priority: true });
    const old = await publish(carillon, waiting, { priority: 0 });
    await carillon.database.advanceClock(10 * 60);
    await publish(carillon, waiting, { priority: 9 });
    expect((await consume(carillon, waiting))[0]?.message_id).toBe(old);
  });
});

describe("S23: queues that do not exist", () => {
  test("S23: publish, publish_batch and push_subscribe create a standard one, and say so", async () => {
    for (const call of [
      (queue: string) => post("/queue/publish", { queue, payload: {} }),
      (queue: string) => post("/queue/publish_batch", { queue, messages: [{ payload: {} }] }),
      (queue: string) => post(`/queue/push_subscribe/${queue}`, { url: "https://api.acme.com/order-handler" }),
    ]) {
      const queue = unique("auto");
      const answer = await call(queue);
      ok(answer);
      expect(warning(answer)).toContain(`queue ${queue} did not exist and was created`);
      expect(await get(`/queue/get/${queue}`)).toMatchObject({ type: "standard", max_retries: 5 });
      expect(warning(await call(queue))).not.toContain("created");
    }
  });

  test("S23: consume, ack, nack, get, stats, purge and the calls on dead letters answer 404", async () => {
    const queue = unique("none");
    for (const answer of [
      await post("/queue/consume", { queue }),
      await post("/queue/ack", { queue, message_id: "..." }),
      await post("/queue/nack", { queue, message_id: "..." }),
      await carillon.rest("GET", `/queue/get/${queue}`),
      await carillon.rest("GET", `/queue/stats/${queue}`),
      await post(`/queue/purge/${queue}`),
      await carillon.rest("GET", `/queue/dlq/list/${queue}`),
      await post(`/queue/dlq/redrive/${queue}`),
    ]) {
      refused(answer, 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
    }
  });

  test("S23: with CARILLON_AUTO_CREATE_QUEUES off they answer 404 too", async () => {
    await using closed = await startTestCarillon(
      { CARILLON_ROLE: "api", CARILLON_AUTO_CREATE_QUEUES: "off" },
      carillon.database,
    );
    const queue = unique("none");
    refused(await closed.rest("POST", "/queue/publish", { queue, payload: {} }), 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
  });
});

test("S24: queue.create takes name or queue, and answers contain both", async () => {
  for (const field of ["name", "queue"]) {
    const queue = unique("q");
    expect(ok(await post("/queue/create", { [field]: queue }))).toMatchObject({ queue, name: queue });
    expect(await get(`/queue/get/${queue}`)).toMatchObject({ queue, name: queue });
  }
});

test("S25: create, get, update and list answer the full record", async () => {
  const queue = unique("q");
  const created = ok(await post("/queue/create", { queue }));
  const listed = (await get("/queue/list?limit=500")).items.find((item: { queue: string }) => item.queue === queue);
  const updated = ok(await carillon.rest("PATCH", `/queue/update/${queue}`, {}));
  for (const record of [created, await get(`/queue/get/${queue}`), updated, listed]) {
    expect(record).toEqual(created);
    expectShape(record, {
      queue: "string",
      type: "string",
      max_retries: "number",
      message_retention_days: "number",
      retention_days: "number",
      visibility_timeout_default: "number",
      visibility_timeout: "number",
      enable_priority: "boolean",
      paused: "boolean",
      created_at: "time",
      updated_at: "time",
    });
  }
});

describe("S26: dead letter queues", () => {
  test("S26: without a named one each queue keeps its dead letters itself", async () => {
    const queue = await createQueue(carillon);
    const message_id = await publish(carillon, queue);
    await consume(carillon, queue);
    expect(ok(await post("/queue/nack", { queue, message_id, requeue: false }))).toMatchObject({ requeued: false });
    expect((await get(`/queue/dlq/list/${queue}`)).items).toMatchObject([{ message_id }]);
    expect(await get(`/queue/stats/${queue}`)).toMatchObject({ dlq: 1 });
  });

  test("S26: a named one must exist, and must not lead back", async () => {
    const queue = await createQueue(carillon);
    const missing = { dead_letter_queue: unique("none") };
    refused(
      await post("/queue/create", { queue: unique("q"), ...missing }),
      400,
      "FAILED_PRECONDITION",
      "DEAD_LETTER_QUEUE_MISSING",
    );
    const update = (body: object, name = queue) => carillon.rest("PATCH", `/queue/update/${name}`, body);
    refused(await update(missing), 400, "FAILED_PRECONDITION", "DEAD_LETTER_QUEUE_MISSING");
    refused(await update({ dead_letter_queue: queue }), 400, "INVALID_ARGUMENT", "DEAD_LETTER_QUEUE_CYCLE");
    const second = await createQueue(carillon, { dead_letter_queue: queue });
    refused(await update({ dead_letter_queue: second }), 400, "INVALID_ARGUMENT", "DEAD_LETTER_QUEUE_CYCLE");
    const third = await createQueue(carillon, { dead_letter_queue: second });
    refused(await update({ dead_letter_queue: third }), 400, "INVALID_ARGUMENT", "DEAD_LETTER_QUEUE_CYCLE");
  });

  test("S26: an empty text or null unsets it", async () => {
    const dead_letter_queue = await createQueue(carillon);
    for (const unset of ["", null]) {
      const queue = await createQueue(carillon, { dead_letter_queue });
      const kept = ok(await carillon.rest("PATCH", `/queue/update/${queue}`, { max_retries: 1 }));
      expect(kept).toMatchObject({ dead_letter_queue });
      expectAbsent(
        ok(await carillon.rest("PATCH", `/queue/update/${queue}`, { dead_letter_queue: unset })),
        "dead_letter_queue",
      );
    }
  });
});

test("S27: nacks and lease expiries are failures; more of them than max_retries make a dead letter", async () => {
  expect(await get(`/queue/get/${await createQueue(carillon)}`)).toMatchObject({ max_retries: 5 });
  const queue = await createQueue(carillon, { max_retries: 2, visibility_timeout_default: 10 });
  const message_id = await publish(carillon, queue);
  expect(await consume(carillon, queue)).toMatchObject([{ attempts: 1 }]);
  expect(ok(await post("/queue/nack", { queue, message_id }))).toMatchObject({ nacked: true, requeued: true });
  expect(await consume(carillon, queue)).toMatchObject([{ attempts: 2 }]);
  await carillon.database.advanceClock(11);
  expect(await consume(carillon, queue)).toMatchObject([{ attempts: 3 }]);
  const last = ok(await post("/queue/nack", { queue, message_id, reason: "still broken" }));
  expect(last).toMatchObject({ nacked: true, requeued: false, reason: "max_retries" });
  const dead = (await get(`/queue/dlq/list/${queue}`)).items;
  expect(dead).toMatchObject([{ message_id, attempts: 3, reason: "max_retries", error: "still broken" }]);
});

test("S28: visibility and retention have both spellings and their ranges", async () => {
  for (const [visibility, retention] of [
    ["visibility_timeout_default", "message_retention_days"],
    ["visibility_timeout", "retention_days"],
  ] as const) {
    const queue = await createQueue(carillon, { [visibility]: 43_200, [retention]: 365 });
    const shown = { visibility_timeout_default: 43_200, visibility_timeout: 43_200, message_retention_days: 365 };
    expect(await get(`/queue/get/${queue}`)).toMatchObject({ ...shown, retention_days: 365 });
    ok(await carillon.rest("PATCH", `/queue/update/${queue}`, { [visibility]: 1, [retention]: 1 }));
    ok(await post("/queue/consume", { queue, [visibility]: 1 }));
    for (const value of [0, -1, 43_201]) {
      const error = await post("/queue/create", { queue: unique("q"), [visibility]: value });
      refusedField(error, "visibility_timeout_default");
      refusedField(await post("/queue/consume", { queue, [visibility]: value }), "visibility_timeout");
    }
    for (const value of [0, 366]) {
      refusedField(await post("/queue/create", { queue: unique("q"), [retention]: value }), "message_retention_days");
    }
  }
  const defaults = await get(`/queue/get/${await createQueue(carillon)}`);
  expect(defaults).toMatchObject({ visibility_timeout_default: 30, message_retention_days: 14 });
});

test("S29: the type is standard by default and cannot change", async () => {
  expect(await get(`/queue/get/${await createQueue(carillon)}`)).toMatchObject({ type: "standard" });
  const queue = await createQueue(carillon, { type: "fifo" });
  const answer = await carillon.rest("PATCH", `/queue/update/${queue}`, { type: "standard" });
  expect(ok(answer)).toMatchObject({ type: "fifo" });
  expect(warning(answer)).toContain("type");
});

describe("S30: fifo", () => {
  test("S30: order is kept within each group, under any name of the group", async () => {
    const queue = await createQueue(carillon, { type: "fifo" });
    const a1 = await publish(carillon, queue, { group_id: "a" });
    const a2 = await publish(carillon, queue, { message_group_id: "a" });
    const b1 = await publish(carillon, queue, { ordering_key: "b" });
    const first = await consume(carillon, queue);
    expect(first.map(({ message_id, group_id }) => [message_id, group_id])).toEqual([
      [a1, "a"],
      [b1, "b"],
    ]);
    expect(await consume(carillon, queue)).toEqual([]);
    ok(await post("/queue/ack", { queue, message_id: a1 }));
    expect(await consume(carillon, queue)).toMatchObject([{ message_id: a2 }]);
  });

  test("S30: without groups the whole queue is in order", async () => {
    const queue = await createQueue(carillon, { type: "fifo" });
    const ids = [await publish(carillon, queue), await publish(carillon, queue), await publish(carillon, queue)];
    for (const message_id of ids) {
      const messages = await consume(carillon, queue);
      expect(messages).toMatchObject([{ message_id }]);
      expectAbsent(messages[0], "group_id");
      ok(await post("/queue/ack", { queue, message_id }));
    }
  });
});

test("S47: creating again with the same settings answers the queue, with others 409", async () => {
  const queue = unique("q");
  const first = ok(await post("/queue/create", { queue, max_retries: 3 }));
  expect(ok(await post("/queue/create", { queue, max_retries: 3 }))).toEqual(first);
  refused(await post("/queue/create", { queue, max_retries: 4 }), 409, "ALREADY_EXISTS", "QUEUE_EXISTS");
  refused(await post("/queue/create", { queue, type: "fifo" }), 409, "ALREADY_EXISTS", "QUEUE_EXISTS");
});

test("S47: delete drops the messages, and the name can be used again at once", async () => {
  const queue = await createQueue(carillon);
  await publish(carillon, queue);
  expect(ok(await carillon.rest("DELETE", `/queue/delete/${queue}`))).toEqual({ queue, deleted: true });
  refused(await carillon.rest("DELETE", `/queue/delete/${queue}`), 404, "NOT_FOUND", "QUEUE_NOT_FOUND");
  ok(await post("/queue/create", { queue, type: "fifo" }));
  expect(await consume(carillon, queue)).toEqual([]);
});

test("S47: a queue that another names as its dead letter queue is deleted with force only", async () => {
  const dead_letter_queue = await createQueue(carillon);
  const queue = await createQueue(carillon, { dead_letter_queue });
  const path = `/queue/delete/${dead_letter_queue}`;
  refused(await carillon.rest("DELETE", path), 409, "FAILED_PRECONDITION", "QUEUE_IN_USE");
  expect(ok(await carillon.rest("DELETE", `${path}?force=true`))).toMatchObject({ deleted: true });
  expectAbsent(await get(`/queue/get/${queue}`), "dead_letter_queue");
});
