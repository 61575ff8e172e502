import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { linesOf, runChild, startChild } from "./clients/child.ts";
import { curl } from "./clients/curl-transport.ts";
import { describeFlows, newQueueName } from "./clients/flows.ts";
import { restClient, type StreamKind } from "./clients/rest-client.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

let world: TestWorld;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

const WAYS: readonly (readonly ["--http1.1" | "--http2-prior-knowledge", StreamKind])[] = [
  ["--http1.1", "ndjson"],
  ["--http1.1", "sse"],
  ["--http2-prior-knowledge", "ndjson"],
  ["--http2-prior-knowledge", "sse"],
];

for (const [version, kind] of WAYS) {
  describeFlows(
    `curl ${version}, ${kind}`,
    (url, key) => restClient(curl(url, version), key, kind),
    () => world,
  );
}

describe("curl", () => {
  const auth = ["-H", `Authorization: Bearer ${TEST_KEY}`];

  test.each([
    ["application/x-ndjson", '{"messages":[]}'],
    ["text/event-stream", ": heartbeat"],
  ])("sees signs of life on a silent stream of %s", async (accept, sign) => {
    const queue = newQueueName();
    await world.carillon.rest("POST", "/queue/create", { queue });
    const url = `${world.url}/v1/scheduling/queue/consume_stream/${queue}?heartbeat_seconds=1`;
    await using child = startChild("/usr/bin/curl", ["-sS", "-N", "-H", `Accept: ${accept}`, ...auth, url]);
    const lines = linesOf(child);
    expect((await lines.next()).value).toBe(sign);
    child.process.kill("SIGINT");
  });

  test("that asks for an upgrade to HTTP/2 is answered over HTTP/1.1", async () => {
    const { stdout, code } = await runChild("/usr/bin/curl", [
      ...["-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", ...auth],
      `${world.url}/v1/scheduling/queue/list`,
    ]);
    expect([code, stdout]).toEqual([0, "1.1 200"]);
  });

  test.each([
    ["REST", "--http1.1", "/v1/scheduling/queue/publish"],
    ["REST", "--http2-prior-knowledge", "/v1/scheduling/queue/publish"],
    ["Connect", "--http1.1", "/scheduling.v1.QueueService/Publish"],
    ["Connect", "--http2-prior-knowledge", "/scheduling.v1.QueueService/Publish"],
  ])("gets the whole refusal of %s %s although nobody reads its large body", async (_, version, path) => {
    for (let i = 0; i < 15; i++) {
      const { stdout, stderr, code } = await runChild(
        "/usr/bin/curl",
        ["-sS", version, "-H", "Content-Type: application/json", "--data-binary", "@-", world.url + path],
        "x".repeat(3_000_000),
      );
      expect([code, stderr]).toEqual([0, ""]);
      expect(JSON.parse(stdout)).toBeDefined();
    }
  });
});
