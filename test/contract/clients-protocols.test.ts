import { afterAll, beforeAll } from "vitest";
import { overHttp1, overHttp2 } from "./clients/connect-node-clients.ts";
import { describeFlows } from "./clients/flows.ts";
import { restClient } from "./clients/rest-client.ts";
import { http1, http2 } from "./clients/rest-transports.ts";
import type { OpenClient } from "./clients/scheduling-client.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

let world: TestWorld;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world?.[Symbol.asyncDispose]());

const CLIENTS: readonly (readonly [string, OpenClient])[] = [
  ["Connect, JSON over HTTP/1.1", overHttp1("connect", false)],
  ["Connect, binary over HTTP/1.1", overHttp1("connect", true)],
  ["Connect, JSON over HTTP/2", overHttp2("connect", false)],
  ["gRPC", overHttp2("grpc", true)],
  ["gRPC, JSON", overHttp2("grpc", false)],
  ["gRPC-Web over HTTP/1.1", overHttp1("grpc-web", true)],
  ["gRPC-Web over HTTP/2", overHttp2("grpc-web", true)],
  ["REST over HTTP/1.1", (url, key) => restClient(http1(url), key)],
  ["REST over HTTP/2, server-sent events", (url, key) => restClient(http2(url), key, "sse")],
];

for (const [name, open] of CLIENTS) describeFlows(name, open, () => world);
