import { afterAll, beforeAll } from "vitest";
import { describeFlows } from "./clients/flows.ts";
import { type PythonStubs, pythonStubs } from "./clients/python-client.ts";
import { startWorld, type TestWorld } from "./clients/world.ts";

let world: TestWorld;
let stubs: PythonStubs;
beforeAll(async () => {
  stubs = await pythonStubs();
  world = await startWorld();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  await stubs?.[Symbol.asyncDispose]();
});

describeFlows(
  "Python's grpcio, with stubs of protoc",
  (url, key) => stubs.open(url, key),
  () => world,
);
