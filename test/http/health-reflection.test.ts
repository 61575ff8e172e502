import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";
import { describe, expect, test } from "vitest";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/grpc/health/v1/health_pb.js";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { healthClient, startTestApp, type TestApp } from "./harness.ts";

const modules = fileURLToPath(new URL("../../node_modules/", import.meta.url));

async function bufCurl(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(`${modules}.bin/buf`, ["curl", ...args], { timeout: 20_000 });
  return stdout;
}

describe("grpc.health.v1", () => {
  test("Check and List say whether the process is ready", async () => {
    let ok = true;
    await using app = await startTestApp({ ready: async () => ({ ok, detail: null }) });
    const client = healthClient(app, "gRPC over HTTP/2");
    expect((await client.check({ service: Health.typeName })).status).toBe(Status.SERVING);
    ok = false;
    expect((await client.check({ service: Health.typeName })).status).toBe(Status.NOT_SERVING);
    const { statuses } = await client.list({});
    expect(Object.keys(statuses).sort()).toEqual(["", Health.typeName]);
    expect(statuses[""]?.status).toBe(Status.NOT_SERVING);
  });

  test("an unknown service: Check says not found, Watch says SERVICE_UNKNOWN and goes on", async () => {
    await using app = await startTestApp();
    const client = healthClient(app, "gRPC over HTTP/2");
    await expect(client.check({ service: "nobody" })).rejects.toMatchObject({ code: Code.NotFound });
    const hangUp = new AbortController();
    const stream = client.watch({ service: "nobody" }, { signal: hangUp.signal })[Symbol.asyncIterator]();
    expect((await stream.next()).value?.status).toBe(Status.SERVICE_UNKNOWN);
    const next = stream.next().then(
      () => "more",
      () => "aborted",
    );
    hangUp.abort();
    expect(await next).toBe("aborted");
  });

  test("Watch tells every change and nothing else", async () => {
    const script = [true, true, false, false, true];
    await using app = await startTestApp({ ready: async () => ({ ok: script.shift() ?? true, detail: null }) });
    const stream = healthClient(app, "gRPC over HTTP/2").watch({})[Symbol.asyncIterator]();
    const seen = [await stream.next(), await stream.next(), await stream.next()];
    expect(seen.map(({ value }) => value?.status)).toEqual([Status.SERVING, Status.NOT_SERVING, Status.SERVING]);
  });

  test("a draining process is NOT_SERVING", async () => {
    await using app = await startTestApp();
    const client = healthClient(app, "gRPC over HTTP/2");
    app.shutdown.abort();
    expect((await client.check({})).status).toBe(Status.NOT_SERVING);
  });

  test("it is open to callers without a key, the other services are not", async () => {
    const refuse = () => {
      throw new Error("no key");
    };
    await using app = await startTestApp({ connect: { requestGate: refuse } });
    expect((await healthClient(app, "Connect over HTTP/1.1").check({})).status).toBe(Status.SERVING);
    await expect(ask(app, { case: "listServices", value: "" })).rejects.toMatchObject({ code: Code.Internal });
  });
});

type Question = {
  case: "fileByFilename" | "fileContainingSymbol" | "allExtensionNumbersOfType" | "listServices";
  value: string;
};

async function ask(app: TestApp, ...questions: Question[]) {
  const client = createClient(ServerReflection, createGrpcTransport({ baseUrl: app.url }));
  async function* requests() {
    for (const messageRequest of questions) yield { messageRequest };
  }
  const answers = [];
  for await (const { messageResponse } of client.serverReflectionInfo(requests())) answers.push(messageResponse);
  return answers;
}

describe("grpc.reflection", () => {
  test("buf curl lists the services and calls one without having its files", async () => {
    await using app = await startTestApp();
    expect((await bufCurl("--http2-prior-knowledge", "--list-services", app.url)).split("\n").filter(Boolean)).toEqual([
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
    ]);
    const answer = await bufCurl(
      "--http2-prior-knowledge",
      "--protocol",
      "grpc",
      "-d",
      "{}",
      `${app.url}/grpc.health.v1.Health/Check`,
    );
    expect(JSON.parse(answer)).toEqual({ status: "SERVING" });
  });

  test("a grpc-js client of v1alpha gets the same answers", async () => {
    await using app = await startTestApp();
    const definition = await protoLoader.load("reflection.proto", {
      includeDirs: [`${modules}@grpc/reflection/build/proto/grpc/reflection/v1alpha`],
      keepCase: true,
    });
    const service = definition["grpc.reflection.v1alpha.ServerReflection"] as grpc.ServiceDefinition;
    const Client = grpc.makeGenericClientConstructor(service, "ServerReflection");
    const client = new Client(`127.0.0.1:${app.port}`, grpc.credentials.createInsecure());
    const call = (
      client as unknown as { ServerReflectionInfo(): grpc.ClientDuplexStream<unknown, unknown> }
    ).ServerReflectionInfo();
    const answers = call.toArray();
    call.write({ list_services: "" });
    call.end();
    const [first] = (await answers) as { list_services_response: { service: { name: string }[] } }[];
    client.close();
    expect(first?.list_services_response.service.map(({ name }) => name)).toContain("grpc.health.v1.Health");
  });

  test.each([
    ["fileByFilename", "grpc/health/v1/health.proto"],
    ["fileContainingSymbol", "grpc.health.v1.Health"],
    ["fileContainingSymbol", "grpc.health.v1.Health.Check"],
    ["fileContainingSymbol", "grpc.health.v1.HealthCheckRequest.service"],
    ["fileContainingSymbol", "grpc.health.v1.HealthCheckResponse.ServingStatus"],
    ["fileContainingSymbol", "grpc.health.v1.HealthCheckResponse.SERVING"],
  ] as const)("%s %s finds the file", async (kind, value) => {
    await using app = await startTestApp();
    const [answer] = await ask(app, { case: kind, value });
    const files = answer?.case === "fileDescriptorResponse" ? answer.value.fileDescriptorProto : [];
    expect(files.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes).name)).toEqual([
      "grpc/health/v1/health.proto",
    ]);
  });

  test.each([
    ["fileByFilename", "grpc/health/v2/health.proto"],
    ["fileContainingSymbol", "grpc.health.v1.Health.Nope"],
    ["fileContainingSymbol", ""],
    ["allExtensionNumbersOfType", "nobody.Knows"],
  ] as const)("%s %j is not found, and the stream goes on", async (kind, value) => {
    await using app = await startTestApp();
    const [first, second] = await ask(app, { case: kind, value }, { case: "listServices", value: "" });
    expect(first).toMatchObject({ case: "errorResponse", value: { errorCode: Code.NotFound } });
    expect(second?.case).toBe("listServicesResponse");
  });

  test("an idle stream ends when the process drains", async () => {
    await using app = await startTestApp();
    const client = createClient(ServerReflection, createGrpcTransport({ baseUrl: app.url }));
    const idle = Promise.withResolvers<void>();
    async function* requests() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      await idle.promise;
    }
    const stream = client.serverReflectionInfo(requests())[Symbol.asyncIterator]();
    await stream.next();
    const startedAt = performance.now();
    const stopped = app.stop(20_000);
    await expect(stream.next()).rejects.toMatchObject({ code: Code.Unavailable });
    idle.resolve();
    await stopped;
    expect(performance.now() - startedAt).toBeLessThan(4_000);
  });
});
