import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TEST_KEY } from "../../support/carillon.ts";
import type { TestDatabase } from "../../support/database.ts";
import type { Receiver } from "../../support/receiver.ts";
import { CallRefused, type OpenClient, type SchedulingClient } from "./scheduling-client.ts";

/** JSON that does not survive being parsed and written again: an integer over 2^53, `1.50`, spaces, an escape. */
const JSON_PAYLOAD = Buffer.from('{"big":9007199254740993, "z":1.50,"e":"\\u00e9é","n":[ ]}');
/** Every byte there is. */
const BINARY_PAYLOAD = Buffer.from(Array.from({ length: 256 }, (_, i) => i));

/** What the flows run against. */
export interface World {
  readonly url: string;
  readonly database: TestDatabase;
  readonly receiver: Receiver;
}

/** A queue name that no other test has. */
export function newQueueName(): string {
  return `q-${randomUUID()}`;
}

/** Registers the flows that every client has to be able to do, under the name of the client. */
export function describeFlows(name: string, open: OpenClient, world: () => World): void {
  describe(name, () => {
    test("publishes, consumes and acks; the payload survives byte for byte", async () => {
      await using client = await open(world().url, TEST_KEY);
      const queue = newQueueName();
      for (const [payload, contentType] of [
        [JSON_PAYLOAD, ""],
        [BINARY_PAYLOAD, "application/octet-stream"],
      ] as const) {
        const messageId = await client.publish(queue, payload, contentType);
        const messages = await client.consume(queue);
        expect(messages).toEqual([{ messageId, payload, receipt: expect.stringMatching(/.+/) }]);
        expect(await client.stats(queue)).toEqual({ available: 0, inFlight: 1 });
        expect(await acked(client, queue, messages)).toBe(true);
        expect(await client.stats(queue)).toEqual({ available: 0, inFlight: 0 });
      }
    });

    test("streams messages, acks them by unary calls and ends the stream by cancelling, which releases the leases", async () => {
      await using client = await open(world().url, TEST_KEY);
      const queue = newQueueName();
      const stop = new AbortController();
      const ids = [await client.publish(queue, JSON_PAYLOAD, "")];
      const stream = client.consumeStream(queue, stop.signal)[Symbol.asyncIterator]();
      const first = await stream.next();
      expect(first.value).toMatchObject({ messageId: ids[0], payload: JSON_PAYLOAD });
      // Published while the stream waits.
      ids.push(await client.publish(queue, BINARY_PAYLOAD, "application/octet-stream"));
      const second = await stream.next();
      expect(second.value).toMatchObject({ messageId: ids[1], payload: BINARY_PAYLOAD });
      expect(await acked(client, queue, [first.value])).toBe(true);
      expect(await client.stats(queue)).toEqual({ available: 0, inFlight: 1 });
      stop.abort();
      expect((await stream.next()).done).toBe(true);
      await expect.poll(() => client.stats(queue)).toEqual({ available: 1, inFlight: 0 });
    });

    test("a cron job POSTs when its time comes", async () => {
      const { url, database, receiver } = world();
      await using client = await open(url, TEST_KEY);
      const path = `/cron-${randomUUID()}`;
      const post = { url: receiver.url + path, payload: JSON_PAYLOAD, contentType: "" };
      expect(await client.createCronJob("* * * * *", post)).toMatch(/^cron_/);
      await database.advanceClock(61);
      const request = await receiver.next((candidate) => candidate.path === path, 10_000);
      expect(request).toMatchObject({ method: "POST", headers: { "content-type": "application/json" } });
      expect(request.body).toEqual(JSON_PAYLOAD);
    });

    test("a task POSTs when its time comes, and not before", async () => {
      const { url, database, receiver } = world();
      await using client = await open(url, TEST_KEY);
      const path = `/task-${randomUUID()}`;
      const post = { url: receiver.url + path, payload: BINARY_PAYLOAD, contentType: "application/octet-stream" };
      const runAt = new Date((await database.now()).getTime() + 60_000);
      expect(await client.scheduleTask(runAt, post)).toMatch(/^task_/);
      expect(receiver.requests.some((request) => request.path === path)).toBe(false);
      await database.advanceClock(61);
      const request = await receiver.next((candidate) => candidate.path === path, 10_000);
      expect(request).toMatchObject({ method: "POST", headers: { "content-type": "application/octet-stream" } });
      expect(request.body).toEqual(BINARY_PAYLOAD);
    });

    test("a refusal has its code and its reason", async () => {
      await using client = await open(world().url, TEST_KEY);
      const queue = newQueueName();
      const message = { messageId: "msg_00000000000000000000000000", receipt: "" };
      expect(await refusalOf(client.ack(queue, message))).toEqual(["NOT_FOUND", "QUEUE_NOT_FOUND"]);
      expect(await refusalOf(client.publish("no such name", JSON_PAYLOAD, ""))).toEqual([
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
      ]);
      const stream = client.consumeStream(queue, new AbortController().signal)[Symbol.asyncIterator]();
      expect(await refusalOf(stream.next())).toEqual(["NOT_FOUND", "QUEUE_NOT_FOUND"]);
    });

    test("a call without a key, or with a wrong one, is refused", async () => {
      await using keyless = await open(world().url, undefined);
      expect(await refusalOf(keyless.stats("q"))).toEqual(["UNAUTHENTICATED", "API_KEY_MISSING"]);
      await using stranger = await open(world().url, "wrong-key");
      expect(await refusalOf(stranger.stats("q"))).toEqual(["UNAUTHENTICATED", "API_KEY_INVALID"]);
    });
  });
}

async function acked(
  client: SchedulingClient,
  queue: string,
  messages: Parameters<SchedulingClient["ack"]>[1][],
): Promise<boolean> {
  const [message] = messages;
  if (message === undefined) throw new Error("there is no message to ack");
  return client.ack(queue, message);
}

async function refusalOf(call: Promise<unknown>): Promise<[string, string | undefined]> {
  const error = await call.then(
    () => new Error("the call was not refused"),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof CallRefused)) throw error;
  return [error.code, error.reason];
}
