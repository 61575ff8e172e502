import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { FOREIGN_HOST, startWebClient, type WebClient } from "./clients/browser.ts";
import { describeFlows, newQueueName } from "./clients/flows.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

const PROTOCOLS = ["connect", "grpc-web"] as const;

let web: WebClient;
let world: TestWorld;
beforeAll(async () => {
  web = await startWebClient();
  // Development mode allows loopback pages; the foreign one is allowed by name.
  world = await startWorld({ CARILLON_CORS_ORIGINS: `http://${FOREIGN_HOST}:${web.port}` });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await web?.[Symbol.asyncDispose]();
});

for (const protocol of PROTOCOLS) {
  describeFlows(
    `Connect-Web in Chromium, ${protocol}`,
    (url, key) => web.open("127.0.0.1", protocol, url, key),
    () => world,
  );
}

describe.each(PROTOCOLS)("a page of another site, over %s", (protocol) => {
  test("calls when its origin is configured", async () => {
    await using client = await web.open(FOREIGN_HOST, protocol, world.url, TEST_KEY);
    expect(await client.publish(newQueueName(), Buffer.from("1"), "")).toMatch(/^msg_/);
  });

  test("reaches nothing when another origin is configured", async () => {
    await using other = await startWorld({ CARILLON_CORS_ORIGINS: "https://console.example.com" });
    const queue = newQueueName();
    await other.carillon.rest("POST", "/queue/create", { queue });
    await using client = await web.open(FOREIGN_HOST, protocol, other.url, TEST_KEY);
    await expect(client.publish(queue, Buffer.from("1"), "")).rejects.toThrow(/Failed to fetch/);
    const { body } = await other.carillon.rest("GET", `/queue/stats/${queue}`);
    expect(body).toMatchObject({ available: 0 });
  });
});
