import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { SERVICES } from "../../src/rpc/routes.ts";
import { type BufProtocol, bufCurl, bufCurlClient } from "./clients/buf-curl-client.ts";
import { describeFlows } from "./clients/flows.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

let world: TestWorld;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

const PROTOCOLS: readonly BufProtocol[] = ["grpc", "grpcweb", "connect"];

for (const protocol of PROTOCOLS) {
  describeFlows(`buf curl, ${protocol}`, bufCurlClient(protocol), () => world);
}

describe("buf curl, by reflection and without a key", () => {
  test.each(PROTOCOLS)("lists the services over %s", async (protocol) => {
    const { stdout, stderr } = await bufCurl(["--protocol", protocol, "--list-services", world.url]);
    expect(stderr).toBe("");
    expect(stdout.trim().split("\n")).toEqual([
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
      "scheduling.v1.ClockService",
      "scheduling.v1.CronService",
      "scheduling.v1.DeliveryService",
      "scheduling.v1.EndpointService",
      "scheduling.v1.EventService",
      "scheduling.v1.JwksService",
      "scheduling.v1.PingService",
      "scheduling.v1.QueueService",
      "scheduling.v1.SigningService",
      "scheduling.v1.TaskService",
    ]);
  });

  test("lists every method of the contract", async () => {
    const { stdout } = await bufCurl(["--list-methods", world.url]);
    const methods = stdout.trim().split("\n");
    for (const { methods: ofService, typeName } of SERVICES) {
      for (const method of ofService) expect(methods).toContain(`${typeName}/${method.name}`);
    }
  });

  test("asks about health", async () => {
    const { stdout } = await bufCurl(["--data", "{}", `${world.url}/grpc.health.v1.Health/Check`]);
    expect(JSON.parse(stdout)).toEqual({ status: "SERVING" });
  });
});
