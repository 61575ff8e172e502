import type { JsonObject } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { createQueue, eventually, ok, unique } from "./calls.ts";
import { type QueueFace, queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
beforeAll(async () => {
  carillon = await startTestCarillon();
});
afterAll(() => carillon[Symbol.asyncDispose]());

/** Publishes a message, has a consumer reject it, and returns its id. */
async function kill(queue: string, message: object = {}, reason = ""): Promise<string> {
  const post = async (path: string, body: object) => ok(await carillon.rest("POST", `/queue/${path}`, body));
  const { message_id } = await post("publish", { queue, payload: {}, ...message });
  const { messages } = await post("consume", { queue, max_messages: 100 });
  expect(messages).toHaveLength(1);
  expect(await post("nack", { queue, message_id, requeue: false, reason })).toMatchObject({ nacked: true });
  return message_id;
}

const ids = (items: readonly { message_id: string }[]) => items.map(({ message_id }) => message_id);
const refusal = (reason: string, ...fields: string[]) =>
  expect.objectContaining({ reason, ...(fields.length > 0 && { fields: expect.arrayContaining(fields) }) });

describe.each(queueFaces(() => carillon))("over $name", (face: QueueFace) => {
  const list = async (queue: string, filter: JsonObject = {}) =>
    ids((await face.call("listDeadLetters", { queue, ...filter })).items);

  /** Asks until the answer is as wanted; consuming takes back leases that ran out, without a wait for the reaper. */
  const lapse = <T>(ask: () => Promise<T>, isWanted: (answer: T) => boolean, queue: string): Promise<T> =>
    eventually(async () => {
      expect((await face.call("consume", { queue })).messages).toEqual([]);
      return ask();
    }, isWanted);

  describe("dead letters", () => {
    test("are listed, counted, redriven and purged by reason, time, group, error and header", async () => {
      const queue = unique("q");
      await face.call("createQueue", { queue, max_retries: 0 });
      const plain = await kill(queue);
      await carillon.database.advanceClock(60);
      const grouped = await kill(queue, { group_id: "g", headers: { "x-tenant": "Acme" } }, "HTTP 500");
      await carillon.database.advanceClock(60);
      const { message_id: expired } = await face.call("publish", { queue, payload: {} });
      await face.call("consume", { queue, visibility_timeout: 1 });
      await carillon.database.advanceClock(2);
      await lapse(
        () => list(queue),
        (found) => found.length === 3,
        queue,
      );
      const { items } = await face.call("listDeadLetters", { queue });
      const since = items[1].dead_lettered_at;
      const cases: [JsonObject, string[]][] = [
        [{}, [expired, grouped, plain]],
        [{ message_ids: [plain, expired, "msg_0", "x"] }, [expired, plain]],
        [{ reason: "max_retries" }, [expired]],
        [{ since }, [expired, grouped]],
        [{ until: since }, [plain]],
        [{ since, until: items[0].dead_lettered_at }, [grouped]],
        [{ group_id: "g" }, [grouped]],
        [{ group_id: "" }, [expired, plain]],
        [{ error_contains: "500" }, [grouped]],
        [{ header_contains: "tenant" }, [grouped]],
        [{ header_contains: "acme" }, []],
        [{ header_contains: "Acme", group_id: "g", reason: "rejected" }, [grouped]],
      ];
      for (const [filter, wanted] of cases) {
        expect(await list(queue, filter), JSON.stringify(filter)).toEqual(wanted);
        const count = wanted.length;
        const redriven = await face.call("redriveDeadLetters", { queue, filter, dry_run: true });
        expect(redriven, JSON.stringify(filter)).toEqual({ queue, redriven: count, dry_run: true });
        const purged = await face.call("purgeDeadLetters", { queue, filter, dry_run: true });
        expect(purged, JSON.stringify(filter)).toEqual({ queue, purged: count, dry_run: true });
      }
      expect(await list(queue), "a dry run changes nothing").toHaveLength(3);
      expect(await face.call("redriveDeadLetters", { queue, filter: { group_id: "g" } })).toEqual({
        queue,
        redriven: 1,
      });
      expect(await face.call("purgeDeadLetters", { queue, filter: { reason: "rejected" } })).toEqual({
        queue,
        purged: 1,
      });
      expect(await list(queue)).toEqual([expired]);
    });

    test("are paged with a filter, whose cursor is good for that filter only", async () => {
      const queue = await createQueue(carillon);
      const wanted: string[] = [];
      for (let i = 0; i < 5; i++) {
        wanted.unshift(await kill(queue, { group_id: "g" }));
        await kill(queue, { group_id: "h" });
      }
      const first = await face.call("listDeadLetters", { queue, group_id: "g", limit: 3 });
      const cursor = first.next_cursor;
      const rest = await face.call("listDeadLetters", { queue, group_id: "g", limit: 3, cursor });
      expect([...ids(first.items), ...ids(rest.items)]).toEqual(wanted);
      expect(rest.next_cursor).toBeUndefined();
      const other = face.call("listDeadLetters", { queue, group_id: "h", cursor });
      await expect(other).rejects.toEqual(refusal("FIELD_INVALID"));
    });

    test("are put back by a dry run's count into the queue that the call names", async () => {
      const queue = await createQueue(carillon);
      const to_queue = await createQueue(carillon);
      const first = await kill(queue);
      await kill(queue);
      const call = { queue, to_queue, max_messages: 1 };
      const dry = await face.call("redriveDeadLetters", { ...call, dry_run: true });
      expect(dry).toEqual({ queue, redriven: 1, remaining: 1, dry_run: true });
      expect(await face.call("redriveDeadLetters", call)).toEqual({ queue, redriven: 1, remaining: 1 });
      expect((await face.call("consume", { queue: to_queue })).messages).toMatchObject([
        { message_id: first, failures: 0 },
      ]);
      expect((await face.call("consume", { queue })).messages).toEqual([]);
      await expect(face.call("redriveDeadLetters", { queue, to_queue: unique("none") })).rejects.toEqual(
        refusal("QUEUE_NOT_FOUND"),
      );
    });

    test("that a consumer of their queue holds are purged with the others, and its ack finds nothing", async () => {
      const dead_letter_queue = await createQueue(carillon);
      const queue = await createQueue(carillon, { dead_letter_queue });
      const message_id = await kill(queue);
      await face.call("consume", { queue: dead_letter_queue });
      expect(await face.call("redriveDeadLetters", { queue })).toEqual({ queue, redriven: 0 });
      expect(await face.call("purgeDeadLetters", { queue })).toEqual({ queue, purged: 1 });
      const ack = await face.call("ack", { queue: dead_letter_queue, message_id });
      expect(ack).toMatchObject({ acked: false, reason: "not_found" });
    });

    test("are purged once for an idempotency key", async () => {
      const queue = await createQueue(carillon);
      await kill(queue);
      const call = { queue, idempotency_key: unique("key") };
      expect(await face.call("purgeDeadLetters", call)).toEqual({ queue, purged: 1 });
      await kill(queue);
      expect(await face.call("purgeDeadLetters", call)).toEqual({ queue, purged: 1 });
      expect(await list(queue)).toHaveLength(1);
      const other = face.call("purgeDeadLetters", { ...call, filter: { reason: "rejected" } });
      await expect(other).rejects.toEqual(refusal("IDEMPOTENCY_KEY_REUSED"));
    });
  });

  describe("one dead letter", () => {
    test("is shown with its payload and every death, first and last queue, and counts", async () => {
      const second = await createQueue(carillon);
      const first = await createQueue(carillon, { dead_letter_queue: second, max_retries: 1 });
      const { message_id } = await face.call("publish", { queue: first, payload: { n: 1 } });
      const consume = (queue: string) => face.call("consume", { queue });
      await consume(first);
      await face.call("extendLease", { queue: first, message_id, visibility_timeout: 0 });
      await consume(first);
      await face.call("nack", { queue: first, message_id });
      await consume(first);
      await carillon.database.advanceClock(31);
      const get = (queue: string) => face.call("getDeadLetter", { queue, message_id });
      const one = await lapse(
        () => get(first).catch(() => undefined),
        (found) => found !== undefined,
        first,
      );
      const message = { message_id, payload: { n: 1 }, attempts: 3, reason: "max_retries", source_queue: first };
      const death = { queue: first, reason: "max_retries", attempts: 3, failures: 2, returns: 1, expiries: 1 };
      expect(one).toMatchObject({
        message,
        failures: 2,
        returns: 1,
        expiries: 1,
        first_source_queue: first,
        deaths: [death],
      });
      expect(one.message.receipt).toBeUndefined();

      await consume(second);
      await face.call("nack", { queue: second, message_id, requeue: false, reason: "no use" });
      expect(await get(second)).toMatchObject({
        message: { source_queue: second, error: "no use" },
        failures: 3,
        returns: 1,
        expiries: 1,
        first_source_queue: first,
        deaths: [death, { queue: second, reason: "rejected", error: "no use", attempts: 4, failures: 1 }],
      });
      await expect(get(first)).rejects.toEqual(refusal("DEAD_LETTER_NOT_FOUND"));
    });

    test("is shown by the queue that it died in and by the one that keeps it", async () => {
      const keeper = await createQueue(carillon);
      const queue = await createQueue(carillon, { dead_letter_queue: keeper });
      const message_id = await kill(queue);
      for (const name of [queue, keeper]) {
        const shown = await face.call("getDeadLetter", { queue: name, message_id });
        expect(shown).toMatchObject({ message: { message_id, source_queue: queue } });
      }
      await face.call("redriveDeadLetters", { queue, message_id });
      for (const id of [message_id, "msg_0", "..."]) {
        const call = face.call("getDeadLetter", { queue, message_id: id });
        await expect(call).rejects.toEqual(refusal("DEAD_LETTER_NOT_FOUND"));
      }
    });

    test("is mended and delivered so", async () => {
      const queue = await createQueue(carillon, { type: "fifo" });
      const message_id = await kill(queue, { payload: { broken: true }, headers: { a: "1", b: "2" }, priority: 2 });
      const change = { payload: { broken: false }, headers: { a: "3" }, group_id: "g" };
      const changed = await face.call("updateDeadLetter", { queue, message_id, ...change });
      expect(changed).toMatchObject({ message: { ...change, priority: 2 }, first_source_queue: queue });
      expect(changed.message.headers).toEqual({ a: "3" });
      await face.call("redriveDeadLetters", { queue, message_id });
      const [message] = (await face.call("consume", { queue })).messages;
      expect(message).toMatchObject({ message_id, ...change, priority: 2 });
    });

    test("is not changed while a consumer of its queue holds it, nor to what it could not have been", async () => {
      const keeper = await createQueue(carillon);
      const queue = await createQueue(carillon, { dead_letter_queue: keeper });
      const message_id = await kill(queue);
      const update = (change: JsonObject) => face.call("updateDeadLetter", { queue, message_id, ...change });
      await expect(update({ priority: 10 })).rejects.toEqual(refusal("FIELD_INVALID"));
      await expect(update({ headers: { host: "x" } })).rejects.toEqual(refusal("FIELD_INVALID"));
      await expect(update({ payload: "x".repeat(1_100_000) })).rejects.toEqual(refusal("PAYLOAD_TOO_LARGE"));
      await face.call("consume", { queue: keeper });
      await expect(update({ priority: 1 })).rejects.toEqual(refusal("DEAD_LETTER_LEASED"));
      await face.call("extendLease", { queue: keeper, message_id, visibility_timeout: 0 });
      expect(await update({ priority: 1 })).toMatchObject({ message: { priority: 1 } });
    });
  });

  describe("a redrive job", () => {
    const ended = (redrive_id: string) =>
      eventually(
        () => face.call("getRedrive", { redrive_id }),
        ({ state }) => state !== "running",
        20_000,
      );

    test("puts back what its filter finds, and tells how far it is", async () => {
      const queue = await createQueue(carillon);
      const to_queue = await createQueue(carillon);
      const wanted = await kill(queue, { headers: { "x-tenant": "acme" } });
      const other = await kill(queue);
      const filter = { header_contains: "acme", reason: "rejected" };
      const started = await face.call("startRedrive", { queue, to_queue, filter });
      expect(started).toMatchObject({
        queue,
        to_queue,
        filter,
        matched: 1,
        redrive_id: expect.stringMatching(/^rdr_/),
      });
      const done = await ended(started.redrive_id);
      expect(done).toMatchObject({ state: "succeeded", matched: 1, moved: 1, finished_at: expect.any(String) });
      expect(await list(queue)).toEqual([other]);
      expect((await face.call("consume", { queue: to_queue })).messages).toMatchObject([{ message_id: wanted }]);
    });

    test("with a speed is the only one of its queue, and can be canceled", async () => {
      const queue = await createQueue(carillon);
      for (let i = 0; i < 4; i++) await kill(queue);
      const call = { queue, messages_per_second: 1 };
      const { redrive_id } = await face.call("startRedrive", call);
      await expect(face.call("startRedrive", call)).rejects.toMatchObject({
        reason: "REDRIVE_RUNNING",
        message: expect.stringContaining(redrive_id),
      });
      const canceled = await face.call("cancelRedrive", { redrive_id });
      expect(canceled).toMatchObject({ redrive_id, messages_per_second: 1, matched: 4 });
      const left = (await list(queue)).length;
      expect(canceled.moved + left).toBe(4);
      expect(await face.call("cancelRedrive", { redrive_id })).toEqual(canceled);
      const next = await face.call("startRedrive", { queue, idempotency_key: redrive_id });
      expect(await face.call("startRedrive", { queue, idempotency_key: redrive_id })).toEqual(next);
      expect(await ended(next.redrive_id)).toMatchObject({ state: "succeeded", moved: left });
      const { items } = await face.call("listRedrives", { queue });
      expect(items.map((redrive: { redrive_id: string }) => redrive.redrive_id)).toEqual([next.redrive_id, redrive_id]);
    });

    test("lists in pages", async () => {
      const queue = await createQueue(carillon);
      const started: string[] = [];
      for (let i = 0; i < 3; i++) {
        const { redrive_id } = await face.call("startRedrive", { queue });
        started.unshift(redrive_id);
        await ended(redrive_id);
      }
      const first = await face.call("listRedrives", { queue, limit: 2 });
      const rest = await face.call("listRedrives", { queue, limit: 2, cursor: first.next_cursor });
      const pages = [...first.items, ...rest.items] as { redrive_id: string }[];
      expect(pages.map(({ redrive_id }) => redrive_id)).toEqual(started);
      expect(rest.next_cursor).toBeUndefined();
    });
  });

  describe("bad input", () => {
    const filter = (of: JsonObject) => [
      ["listDeadLetters", of],
      ["redriveDeadLetters", { filter: of }],
      ["purgeDeadLetters", { filter: of }],
      ["startRedrive", { filter: of }],
    ];
    const instant = "2026-01-01T00:00:00Z";
    const wrong = [
      ...filter({ since: instant, until: instant }),
      ...filter({ message_ids: Array.from({ length: 1_001 }, () => "x") }).slice(1),
      ...filter({ reason: "x".repeat(65) }),
      ...filter({ group_id: "x".repeat(129) }),
      ...filter({ header_contains: "x".repeat(1_025) }),
      ...filter({ error_contains: "x".repeat(1_025) }),
      ...filter({ header_contains: "a\0b" }),
      ["redriveDeadLetters", { message_id: "msg_0", filter: {} }],
      ["redriveDeadLetters", { since: instant, filter: { since: instant } }],
      ["redriveDeadLetters", { since: instant, filter: { until: instant } }],
      ["redriveDeadLetters", { to_queue: "a b" }],
      ["startRedrive", { to_queue: "a b" }],
      ["startRedrive", { messages_per_second: 0 }],
      ["startRedrive", { messages_per_second: 10_001 }],
      ["startRedrive", { messages_per_second: -1 }],
      ["listRedrives", { limit: 501 }],
      ["listRedrives", { cursor: "x" }],
      ["updateDeadLetter", { message_id: "msg_0", group_id: "a\nb" }],
      ["updateDeadLetter", { message_id: "msg_0", content_type: "nonsense" }],
    ] as [Parameters<QueueFace["call"]>[0], JsonObject][];
    test.each(wrong.map(([method, request]) => [method, JSON.stringify(request).slice(0, 60), request] as const))(
      "%s refuses %s",
      async (method, _name, request) => {
        const queue = await createQueue(carillon);
        await expect(face.call(method, { queue, ...request })).rejects.toEqual(refusal("FIELD_INVALID"));
      },
    );

    test("unknown queues and redrives are not found", async () => {
      const queue = unique("none");
      for (const [method, request] of [
        ["getDeadLetter", { message_id: "x" }],
        ["updateDeadLetter", { message_id: "x", priority: 1 }],
        ["purgeDeadLetters", {}],
        ["startRedrive", {}],
        ["listRedrives", {}],
      ] as const) {
        await expect(face.call(method, { queue, ...request })).rejects.toEqual(refusal("QUEUE_NOT_FOUND"));
      }
      for (const redrive_id of ["x", "rdr_00000000000000000000000000"]) {
        await expect(face.call("getRedrive", { redrive_id })).rejects.toEqual(refusal("REDRIVE_NOT_FOUND"));
        await expect(face.call("cancelRedrive", { redrive_id })).rejects.toEqual(refusal("REDRIVE_NOT_FOUND"));
      }
    });
  });
});

describe("an edit over REST", () => {
  const update = (queue: string, id: string, body: object) =>
    carillon.rest("PATCH", `/queue/dlq/update/${queue}/${id}`, body);

  test("clears by null what can be cleared, and keeps what is absent", async () => {
    const queue = await createQueue(carillon);
    const id = await kill(queue, { headers: { a: "1" }, priority: 5, group_id: "g" });
    expect(ok(await update(queue, id, { headers: null, priority: null })).message).toMatchObject({
      headers: {},
      priority: 0,
      group_id: "g",
      payload: {},
    });
    expect(ok(await update(queue, id, { group_id: null })).message.group_id).toBeUndefined();
    expect((await update(queue, id, { payload: null })).body.error).toMatchObject({ reason: "FIELD_INVALID" });
  });

  test("checks a payload against the content type that stays, and carries other types as base64", async () => {
    const queue = await createQueue(carillon);
    const id = await kill(queue, { payload: "aGVsbG8=", content_type: "text/plain" });
    expect((await update(queue, id, { content_type: "application/json" })).body.error).toMatchObject({
      reason: "FIELD_INVALID",
      details: [{ field: "payload" }],
    });
    const changed = ok(await update(queue, id, { content_type: "text/html", payload: "PGI+" })).message;
    expect(changed).toMatchObject({ content_type: "text/html", payload: "PGI+" });
    expect(ok(await update(queue, id, { content_type: null, payload: [1, 2] })).message.payload).toEqual([1, 2]);
  });
});
