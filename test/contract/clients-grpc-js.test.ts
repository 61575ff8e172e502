import { type Client, connectivityState, credentials, type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { describeFlows, newQueueName } from "./clients/flows.ts";
import { callUnary, grpcJs, loadContract, metadataFor, openConsumeStream } from "./clients/grpc-js-client.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

const contract = loadContract();
const metadata = metadataFor(TEST_KEY);
let world: TestWorld;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

describeFlows("grpc-js, with proto-loader", grpcJs(contract), () => world);

function openQueues(options: object = {}): Client & Disposable {
  const client = new contract.services.QueueService(new URL(world.url).host, credentials.createInsecure(), options);
  return Object.assign(client, { [Symbol.dispose]: () => client.close() });
}

describe("grpc-js", () => {
  test("a stream outlives many keepalive pings, on one connection", async () => {
    using queues = openQueues({
      "grpc.keepalive_time_ms": 100,
      "grpc.keepalive_timeout_ms": 2_000,
      "grpc.keepalive_permit_without_calls": 1,
    });
    const queue = newQueueName();
    await callUnary(queues, "Publish", { queue, payload: Buffer.from("1") }, metadata);
    const stream = openConsumeStream(queues, { queue, heartbeat_seconds: 1 }, metadata);
    const answers = stream[Symbol.asyncIterator]();
    const next = async (): Promise<unknown[]> => (await answers.next()).value.messages ?? [];
    while ((await next()).length === 0);
    const connection = stream.getPeer();
    // Ten pings come before each of them.
    for (let heartbeat = 0; heartbeat < 3; heartbeat++) {
      expect(await next()).toEqual([]);
    }
    expect(queues.getChannel().getConnectivityState(false)).toBe(connectivityState.READY);
    expect(stream.getPeer()).toBe(connection);
    stream.on("error", () => {});
    stream.cancel();
  });

  test("a deadline ends a call that waits, and no message is handed to it afterwards", async () => {
    using queues = openQueues();
    const queue = newQueueName();
    await callUnary(queues, "CreateQueue", { queue }, metadata);
    const call = callUnary(queues, "Consume", { queue, wait_seconds: 20 }, metadata, 300);
    const error: ServiceError = await call.catch((thrown) => thrown);
    expect(error.code).toBe(status.DEADLINE_EXCEEDED);
    await callUnary(queues, "Publish", { queue, payload: Buffer.from("1") }, metadata);
    const { messages } = await callUnary(queues, "Consume", { queue }, metadata);
    expect(messages).toMatchObject([{ attempts: 1 }]);
  });

  test("the fields that broke rules come as google.rpc.BadRequest", async () => {
    using queues = openQueues();
    const call = callUnary(queues, "Publish", { queue: "no such name", priority: 12 }, metadata);
    const error: ServiceError = await call.catch((thrown) => thrown);
    expect(error.code).toBe(status.INVALID_ARGUMENT);
    const [bytes] = error.metadata.get("grpc-status-details-bin");
    const { details } = contract.deserialize("google.rpc.Status", bytes as Buffer);
    const badRequest = details.find((detail: { type_url: string }) => detail.type_url.endsWith(".BadRequest"));
    const { field_violations: violations } = contract.deserialize("google.rpc.BadRequest", badRequest.value);
    expect(violations.map(({ field }: { field: string }) => field).toSorted()).toEqual([
      "payload",
      "priority",
      "queue",
    ]);
  });
});
