import { startTestCarillon, type TestCarillon } from "../../support/carillon.ts";
import { type Receiver, startReceiver } from "../../support/receiver.ts";
import type { World } from "./flows.ts";

/** A Carillon, and a receiver that it may POST to. */
export interface TestWorld extends World, AsyncDisposable {
  readonly carillon: TestCarillon;
  readonly receiver: Receiver;
}

/** Starts both. `env` are settings of Carillon; with a certificate among them the URL is https. */
export async function startWorld(env: Readonly<Record<string, string>> = {}): Promise<TestWorld> {
  await using started = new AsyncDisposableStack();
  const receiver = started.use(await startReceiver());
  const carillon = started.use(await startTestCarillon(env));
  const owned = started.move();
  return {
    carillon,
    receiver,
    database: carillon.database,
    url: env["CARILLON_TLS_CERT_FILE"] === undefined ? carillon.url : carillon.url.replace("http:", "https:"),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
