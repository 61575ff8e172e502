import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { call, startDev } from "../cli/harness.ts";
import { testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { TEST_SECRETS_KEY } from "../support/signing.ts";
import { eventually } from "./calls.ts";

const HOOK = pathToFileURL(join(import.meta.dirname, "../support/record-sockets.mjs")).href;

interface OpenedSocket {
  readonly kind: string;
  /** The project's files and the packages that opened it. */
  readonly through: readonly string[];
  readonly to: number | string;
}

test("every kind of delivery goes out by the guarded connector, and nothing else in a node opens a socket but pg", async () => {
  const directory = await mkdtemp(join(tmpdir(), "carillon-sockets-"));
  onTestFinished(() => rm(directory, { recursive: true }));
  const file = join(directory, "sockets");
  await using database = await testDatabase();
  await using receiver = await startReceiver();
  // Connections are counted, so none is used twice.
  receiver.respond(({ path }, index) => ({
    status: path.startsWith("/fails") || (path === "/retried" && index < 3) ? 503 : 200,
    headers: { connection: "close", "retry-after": "0" },
  }));
  await using server = await startDev({
    CARILLON_DATABASE_URL: database.url,
    CARILLON_SECRETS_KEY: TEST_SECRETS_KEY,
    CARILLON_TEST_SOCKETS: file,
    NODE_OPTIONS: `--import ${HOOK}`,
  });
  const url = (path: string) => receiver.url + path;
  const ask = async (path: string, body?: object) => {
    const answer = await call(server, server.key, path, body);
    expect(answer.status, `${path} ${JSON.stringify(answer.json)}`).toBe(200);
    return answer.json;
  };
  const now = new Date().toISOString();
  const arrived = (path: string, count = 1) =>
    eventually(
      async () => receiver.requests.filter((request) => request.path === path).length,
      (seen) => seen >= count,
      20_000,
    );

  await ask("/webhook/create", { url: url("/event"), event_types: ["task.failed"] });
  const { webhook_id } = await ask("/webhook/create", { url: url("/event-test"), event_types: ["cron.run.failed"] });
  await ask(`/webhook/test/${webhook_id}`, {});
  await arrived("/event-test");

  const cron = { cron_expr: "0 0 1 1 *", url: url("/cron") };
  const { cron_id } = await ask("/cron/create", cron);
  await ask(`/cron/trigger/${cron_id}`, {});
  await arrived("/cron");

  const retry_policy = { delays_seconds: [1] };
  await ask("/task/schedule", { url: url("/retried"), run_at: now, retries: 1, retry_policy });
  await ask("/task/schedule", { url: url("/fails"), on_failure_webhook: url("/told"), run_at: now, retries: 0 });
  await arrived("/told");
  await arrived("/event");
  await arrived("/retried", 2);

  const { subscription_id } = await ask("/queue/push_subscribe/pushed", { url: url("/push") });
  await ask("/queue/publish", { queue: "pushed", payload: 1 });
  await arrived("/push");
  await ask(`/queue/push_subscription/test/${subscription_id}`, {});
  await arrived("/push", 2);

  const { items } = await ask("/delivery/list");
  const [delivery] = (items as { delivery_id: string; url: string }[]).filter((item) => item.url.endsWith("/cron"));
  await ask(`/delivery/replay/${delivery?.delivery_id}`, {});
  await arrived("/cron", 2);

  const opened = (await readFile(file, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as OpenedSocket);
  const outbound = opened.filter(({ to }) => to === receiver.port);
  for (const { kind, through } of outbound) expect([kind, through[0]]).toEqual(["tcp", "src/webhook/connect.ts"]);
  // What the receiver saw and the hook did not would have gone out by some other way.
  expect(outbound).toHaveLength(receiver.connections);
  const requests = opened.filter(({ kind }) => kind === "undici:request:create");
  for (const { through } of requests) expect(through).toContain("src/webhook/exchange.ts");
  expect(requests).toHaveLength(receiver.count);
  const others = opened.filter((one) => !outbound.includes(one) && !requests.includes(one));
  expect(others.length).toBeGreaterThan(0);
  for (const { kind, through } of others) {
    expect(kind).toBe("tcp");
    expect(through[0], through.join()).toMatch(/^(pg|pg-pool|pg-protocol)$/);
  }
});
