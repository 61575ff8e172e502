import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { createQueue, ok, publish, unique, warning } from "./calls.ts";
import { type Endpoints, openEndpoints } from "./endpoints.ts";
import { queueFaces } from "./queue-faces.ts";

let carillon: TestCarillon;
let endpoints: Endpoints;
beforeAll(async () => {
  carillon = await startTestCarillon();
  endpoints = await openEndpoints();
});
afterAll(async () => {
  await carillon[Symbol.asyncDispose]();
  await endpoints[Symbol.asyncDispose]();
});

const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER = "00-11111111111111111111111111111111-2222222222222222-00";

describe.each(queueFaces(() => carillon))("over $name", (face) => {
  describe("a trace context", () => {
    test("of the request is kept with each message and shown to the consumer", async () => {
      const queue = unique("q");
      const context = { traceparent: TRACEPARENT, tracestate: "vendor=1" };
      await face.call("publish", { queue, payload: 1 }, context);
      await face.call("publishBatch", { queue, messages: [{ payload: 2, headers: { "x-a": "b" } }] }, context);
      const { messages } = await face.call("consume", { queue, max_messages: 2 });
      expect(messages.map((message: { headers: object }) => message.headers)).toEqual([
        context,
        { "x-a": "b", ...context },
      ]);
    });

    test("among a message's own headers comes before the request's", async () => {
      const queue = unique("q");
      await face.call(
        "publish",
        { queue, payload: 1, headers: { TraceParent: OTHER } },
        { traceparent: TRACEPARENT, tracestate: "vendor=1" },
      );
      const { messages } = await face.call("consume", { queue });
      expect(messages[0].headers).toEqual({ traceparent: OTHER });
    });

    test("that is not valid is left out", async () => {
      const queue = unique("q");
      await face.call("publish", { queue, payload: 1 }, { traceparent: "00-1-2-3" });
      await face.call("publish", { queue, payload: 1, headers: { traceparent: "x", tracestate: "a=1" } });
      const { messages } = await face.call("consume", { queue, max_messages: 2 });
      expect(messages.map((message: { headers: object }) => message.headers)).toEqual([{}, {}]);
    });
  });
});

test("a trace context is sent with the push of a message", async () => {
  const hook = endpoints.open();
  const queue = await createQueue(carillon);
  ok(await carillon.rest("POST", `/queue/push_subscribe/${queue}`, { url: hook.url }));
  ok(await carillon.rest("POST", "/queue/publish", { queue, payload: 1 }, { traceparent: TRACEPARENT }));
  expect((await hook.next()).headers).toMatchObject({ traceparent: TRACEPARENT });
});

test("the sender of a trace context that is not valid is told", async () => {
  const queue = await createQueue(carillon);
  const headers = { traceparent: "x" };
  const answer = await carillon.rest("POST", "/queue/publish", { queue, payload: 1, headers });
  expect(warning(answer)).toBe("headers: traceparent is not valid and left out");
});

test("a message with as many headers as are allowed is taken without the request's trace context", async () => {
  const queue = await createQueue(carillon);
  const headers = Object.fromEntries(Array.from({ length: 32 }, (_, i) => [`x-${i}`, "1"]));
  const answer = await carillon.rest("POST", "/queue/publish", { queue, payload: 1, headers }, { traceparent: OTHER });
  expect(ok(answer).message_id).toMatch(/^msg_/);
  expect(await publish(carillon, queue)).toMatch(/^msg_/);
});
