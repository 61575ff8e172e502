import { type Config, loadConfig } from "../../src/config.ts";
import { createLogger } from "../../src/log.ts";
import { type Carillon, startCarillon } from "../../src/main.ts";
import { type TestDatabase, testDatabase } from "./database.ts";
import { TEST_SECRETS_KEY } from "./signing.ts";

/** The development key of every Carillon that a test starts. */
export const TEST_KEY = "test-key";

/** A REST answer. */
export interface RestAnswer {
  readonly status: number;
  readonly headers: Headers;
  /** The body as text. */
  readonly text: string;
  /** The body as JSON; undefined when it is empty or something else. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  readonly body: any;
}

export interface TestCarillon extends AsyncDisposable {
  /** `http://127.0.0.1:<port>` */
  readonly url: string;
  readonly carillon: Carillon;
  readonly database: TestDatabase;
  /** One REST call below /v1/scheduling, with the key. A body that is not text is sent as JSON. */
  rest(method: string, path: string, body?: unknown, headers?: Readonly<Record<string, string>>): Promise<RestAnswer>;
}

/**
 * A real Carillon in this process, in development mode, on a free port and a database of its own, or on `database`,
 * which then stays. `env` are settings as the environment would have them.
 */
export async function startTestCarillon(
  env: Readonly<Record<string, string>> = {},
  database?: TestDatabase,
): Promise<TestCarillon> {
  const own = database ?? (await testDatabase());
  const config: Config = loadConfig(
    {
      CARILLON_PORT: "0",
      CARILLON_DATABASE_URL: own.url,
      CARILLON_API_KEY: TEST_KEY,
      CARILLON_SECRETS_KEY: TEST_SECRETS_KEY,
      CARILLON_SHUTDOWN_GRACE_SECONDS: "5",
      CARILLON_LOG_LEVEL: "error",
      ...env,
    },
    { mode: "development" },
  );
  const carillon = await startCarillon(config, createLogger({ level: config.logLevel, pretty: false }));
  const url = `http://127.0.0.1:${carillon.address.port}`;
  return {
    url,
    carillon,
    database: own,
    rest: (method, path, body, headers) => rest(url, method, path, body, headers),
    async [Symbol.asyncDispose]() {
      await carillon[Symbol.asyncDispose]();
      if (database === undefined) await own[Symbol.asyncDispose]();
    },
  };
}

async function rest(
  url: string,
  method: string,
  path: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): Promise<RestAnswer> {
  const response = await fetch(`${url}/v1/scheduling${path}`, {
    method,
    headers: {
      authorization: `Bearer ${TEST_KEY}`,
      ...(body !== undefined && { "content-type": "application/json" }),
      ...headers,
    },
    ...(body !== undefined && { body: typeof body === "string" ? body : JSON.stringify(body) }),
    signal: AbortSignal.timeout(25_000),
  });
  const text = await response.text();
  const isJson = response.headers.get("content-type")?.startsWith("application/json") ?? false;
  return { status: response.status, headers: response.headers, text, body: isJson ? JSON.parse(text) : undefined };
}
