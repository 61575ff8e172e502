import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { startReceiver } from "../support/receiver.ts";
import { call, run, startServe } from "./harness.ts";

const FIRST = Buffer.alloc(32, "first").toString("base64");
const SECOND = Buffer.alloc(32, "second").toString("base64");
/** What no row, line or answer may show. */
const CANARIES = [
  "canary-secret-of-the-subscription",
  "canary-secret-of-the-task",
  "canary-token-in-a-header",
] as const;

let database: TestDatabase;
let env: Record<string, string>;
beforeAll(async () => {
  database = await testDatabase();
  env = { CARILLON_DATABASE_URL: database.url, CARILLON_SECRETS_KEY: FIRST };
});
afterAll(() => database[Symbol.asyncDispose]());

/** All that the database stores, as one text. */
async function wholeDatabase(): Promise<string> {
  const { rows: tables } = await sql<{ name: string }>`
    select table_name as name from information_schema.tables where table_schema = 'public'`.execute(database.db);
  const texts: string[] = [];
  for (const { name } of tables) {
    const { rows } = await sql<{ row: string }>`select t::text as row from ${sql.table(name)} t`.execute(database.db);
    // A bytea prints as hexadecimal digits.
    texts.push(
      ...rows.map(({ row }) => row.replace(/\\x([0-9a-f]+)/g, (_, hex) => Buffer.from(hex, "hex").toString())),
    );
  }
  return texts.join("\n");
}

test("serve does not start without a key, and says how to make one", async () => {
  const { code, stdout, stderr } = await run(["serve"], { CARILLON_DATABASE_URL: database.url });
  expect([code, stdout]).toEqual([1, ""]);
  expect(stderr).toMatch(/CARILLON_SECRETS_KEY is not set: .*openssl rand -base64 32/);
});

// Seven processes start, one after the other.
describe("the secrets of a running server", { timeout: 120_000 }, () => {
  test("are nowhere in the database, the log or an answer; a change of the key loses none of them", async () => {
    await using receiver = await startReceiver();
    const hook = new URL(receiver.url);
    const serving = { ...env, CARILLON_ALLOW_TARGETS: `127.0.0.1:${hook.port}`, CARILLON_LOG_LEVEL: "trace" };
    const { stdout } = await run(["keys", "create", "--project", "p", "--json"], env);
    const { key } = JSON.parse(stdout);
    const seen: string[] = [];
    const schedule = { url: receiver.url, headers: { "x-api-key": CANARIES[2] }, secret: CANARIES[1], payload: {} };
    {
      await using server = await startServe(serving);
      const ask = async (path: string, body?: object) => {
        const answer = await call(server, key, path, body);
        expect(answer.status, path).toBe(200);
        seen.push(JSON.stringify(answer.json));
        return answer.json;
      };
      await ask("/task/schedule", { ...schedule, run_at: new Date().toISOString(), idempotency_key: "once" });
      await receiver.next(({ headers }) => headers["x-api-key"] === CANARIES[2]);
      await ask("/task/schedule", { ...schedule, run_at: "2035-01-01T00:00:00Z" });
      const subscription = await ask("/queue/push_subscribe/q", { url: receiver.url, secret: CANARIES[0] });
      const path = `/queue/push_subscription/rotate_secret/${subscription["subscription_id"]}`;
      const rotated = await ask(path, { idempotency_key: "rotate" });
      seen.pop();
      expect(rotated["secret"]).toMatch(/^whsec_/);
      expect(await ask(path, { idempotency_key: "rotate" })).toEqual(rotated);
      seen.pop();
      const stored = await wholeDatabase();
      for (const canary of [...CANARIES, rotated["secret"] as string]) {
        expect(stored).not.toContain(canary);
        expect(server.output()).not.toContain(canary);
        expect(seen.join()).not.toContain(canary);
      }
    }

    const without = await run(["serve"], { ...serving, CARILLON_SECRETS_KEY: SECOND });
    expect(without.code).toBe(1);
    expect(without.stderr).toMatch(/^carillon: secrets in the database are sealed by the key [0-9a-f]{8}, which .*\n$/);
    const doctor = await run(["doctor"], { ...env, CARILLON_SECRETS_KEY: SECOND, CARILLON_PORT: "0" });
    expect(doctor.stdout).toMatch(/^fail {2}secrets {5}signing keys are sealed by [0-9a-f]{8}/m);

    const directory = await mkdtemp(join(tmpdir(), "carillon-keys-"));
    const file = join(directory, "keys");
    await writeFile(file, `${SECOND}\n${FIRST}\n`);
    const fromFile = { CARILLON_DATABASE_URL: database.url, CARILLON_SECRETS_KEY_FILE: file };
    const reencrypted = await run(["secrets", "reencrypt"], fromFile);
    await rm(directory, { recursive: true });
    expect(reencrypted.stderr).toBe("");
    expect(reencrypted.stdout).toMatch(/^[1-9]\d* secrets are sealed by the first key now/);

    await using server = await startServe({ ...serving, CARILLON_SECRETS_KEY: SECOND });
    const { json } = await call(server, key, "/task/list");
    const waiting = (json["items"] as { task_id: string; state: string }[]).find(({ state }) => state === "scheduled");
    expect((await call(server, key, `/task/run_now/${waiting?.task_id}`, {})).status).toBe(200);
    expect((await receiver.next(({ headers }) => headers["x-api-key"] !== undefined)).headers["x-api-key"]).toBe(
      CANARIES[2],
    );
  });
});
