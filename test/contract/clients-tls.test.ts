import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TEST_KEY } from "../support/carillon.ts";
import { selfSigned } from "../support/certificate.ts";
import { overHttp1, overHttp2 } from "./clients/connect-node-clients.ts";
import { describeFlows } from "./clients/flows.ts";
import { grpcJs, loadContract } from "./clients/grpc-js-client.ts";
import { restClient } from "./clients/rest-client.ts";
import { http2 } from "./clients/rest-transports.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

const certificate = selfSigned(["127.0.0.1", "localhost"]);
const ca = certificate.cert;
let folder: string;
let world: TestWorld;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "carillon-tls-"));
  const [certFile, keyFile] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  await Promise.all([writeFile(certFile, certificate.cert), writeFile(keyFile, certificate.key, { mode: 0o600 })]);
  world = await startWorld({ CARILLON_TLS_CERT_FILE: certFile, CARILLON_TLS_KEY_FILE: keyFile });
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

describeFlows("Connect over HTTP/1.1 and TLS", overHttp1("connect", false, ca), () => world);
describeFlows("gRPC over TLS", overHttp2("grpc", true, ca), () => world);
describeFlows(
  "grpc-js over TLS",
  // Otherwise it sends the address as the name of the server, which TLS does not know.
  grpcJs(loadContract(), { "grpc.ssl_target_name_override": "localhost" }, ca),
  () => world,
);
describeFlows(
  "REST over HTTP/2 and TLS",
  (url, key) => restClient(http2(url, ca), key),
  () => world,
);

describe("TLS", () => {
  test.each([
    [["h2", "http/1.1"], "h2"],
    [["http/1.1"], "http/1.1"],
    [[], false],
  ])("of the protocols %j the port picks %s", async (ALPNProtocols, picked) => {
    const { promise, resolve, reject } = Promise.withResolvers<string | false | null>();
    const socket = connect({ host: "127.0.0.1", port: Number(new URL(world.url).port), ca, ALPNProtocols }, () =>
      resolve(socket.alpnProtocol),
    ).on("error", reject);
    try {
      expect(await promise).toBe(picked);
    } finally {
      socket.destroy();
    }
  });

  test("a client that does not know the certificate makes no call", async () => {
    await using client = await overHttp1("connect", false, selfSigned(["127.0.0.1"]).cert)(world.url, TEST_KEY);
    await expect(client.stats("q")).rejects.toThrow(/certificate/);
  });
});
