import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { promisify } from "node:util";
import { sql } from "kysely";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Wakeups } from "../../src/db/wakeups.ts";
import { parseId } from "../../src/domain/ids.ts";
import { leaseMessages } from "../../src/store/leases.ts";
import { ensureProject } from "../../src/store/projects.ts";
import { setPublishLimits } from "../../src/store/publish-limits.ts";
import { createQueue, findQueue, QUEUE_DEFAULTS } from "../../src/store/queues.ts";
import { checkHeaders } from "../../src/webhook/headers.ts";
import { type TestDatabase, testDatabase } from "../support/database.ts";
import { makeQueue } from "../support/queues.ts";
import { signsWith } from "../support/signing.ts";

const PSQL = "/usr/bin/psql";

let t: TestDatabase;
/** Programs of others, which know nothing of Carillon but its functions. */
let app: pg.Client;
let other: pg.Client;
let project: string;

async function client(): Promise<pg.Client> {
  const connected = new pg.Client({ connectionString: t.url });
  await connected.connect();
  return connected;
}

beforeAll(async () => {
  t = await testDatabase();
  app = await client();
  other = await client();
});
afterAll(async () => {
  await app.end();
  await other.end();
  await t[Symbol.asyncDispose]();
});
beforeEach(async () => {
  project = `p-${randomUUID()}`;
  await ensureProject(t.db, project, signsWith());
});

const publish = async (on: pg.Client, queue: string, payload: object): Promise<string> => {
  const { rows } = await on.query("select carillon_publish($1, $2, $3::jsonb) as id", [project, queue, payload]);
  return rows[0].id;
};

/** What consumers of the queue are given: message ids and payloads. */
async function consume(name = "orders", limit = 10) {
  const queue = await findQueue(t.db, (await ensureProject(t.db, project, signsWith())).project_id, name);
  if (queue === undefined) return [];
  return t.db
    .transaction()
    .execute((trx) => leaseMessages(trx, queue, { limit, visibilitySeconds: 30, requestId: "" }));
}

const payloads = async (name?: string) => (await consume(name)).map((row) => row.payload.toString());

/** What refuses the statement. */
async function refusal(text: string, values: unknown[]): Promise<pg.DatabaseError> {
  const error: unknown = await app.query(text, values).then(
    () => undefined,
    (thrown) => thrown,
  );
  if (!(error instanceof pg.DatabaseError)) throw new Error(`not refused: ${error}`);
  return error;
}

describe("a message that is published by SQL", () => {
  test("is handed out after the commit, and its id is the one that was returned", async () => {
    await app.query("begin");
    const id = await publish(app, "orders", { order: 1 });
    await app.query("commit");
    expect(await consume()).toMatchObject([{ message_id: parseId("msg", id), content_type: "application/json" }]);
  });

  test("does not exist before the commit, and never after a rollback", async () => {
    await makeQueue(t.db, project);
    await app.query("begin");
    await publish(app, "orders", { order: 1 });
    expect(await consume()).toEqual([]);
    await app.query("rollback");
    expect(await consume()).toEqual([]);
  });

  test("is published once by a serializable transaction that is tried again", async () => {
    const table = `accounts_${randomBytes(4).toString("hex")}`;
    await app.query(`create table ${table} (n int); insert into ${table} values (1)`);
    const spend = async (on: pg.Client) => {
      await on.query(`select sum(n) from ${table}`);
      await on.query(`insert into ${table} values (2)`);
      await publish(on, "spent", { by: on === app ? "app" : "other" });
    };
    await makeQueue(t.db, project, { name: "spent" });
    for (const on of [app, other]) await on.query("begin isolation level serializable");
    await spend(app);
    await spend(other);
    await app.query("commit");
    await expect(other.query("commit")).rejects.toMatchObject({ code: "40001" });
    await other.query("begin isolation level serializable");
    await spend(other);
    await other.query("commit");
    expect((await payloads("spent")).toSorted()).toEqual(['{"by": "app"}', '{"by": "other"}']);
  });

  test("does not wait for another program's open transaction", async () => {
    await makeQueue(t.db, project);
    await app.query("begin");
    await publish(app, "orders", { from: "app" });
    await publish(other, "orders", { from: "other" });
    expect(await payloads()).toEqual(['{"from": "other"}']);
    await app.query("commit");
    expect(await payloads()).toEqual(['{"from": "app"}']);
  });

  test("comes in a FIFO queue after what was committed before it", async () => {
    await makeQueue(t.db, project, { type: "fifo" });
    await app.query("begin");
    await publish(app, "orders", { n: 1 });
    const second = publish(other, "orders", { n: 2 });
    await publish(app, "orders", { n: 3 });
    await app.query("commit");
    await second;
    const { rows } = await sql<{ payload: Buffer }>`
      select b.payload from messages m join message_bodies b using (project_id, queue_id, message_id)
      join projects p using (project_id) where p.name = ${project} order by m.seq`.execute(t.db);
    expect(rows.map((row) => row.payload.toString())).toEqual(['{"n": 1}', '{"n": 3}', '{"n": 2}']);
  });

  test("keeps text and bytes as they are", async () => {
    await app.query("select carillon_publish($1, 'orders', $2::text)", [project, '{"b":1,  "a":1.0}']);
    await app.query("select carillon_publish($1, 'orders', $2::bytea, content_type => 'image/png')", [
      project,
      Buffer.from([0, 255, 1]),
    ]);
    await app.query(`select carillon_publish('${project}', 'orders', '"literal"')`);
    const rows = await consume();
    expect(rows.map((row) => row.payload.toString("latin1"))).toEqual(['{"b":1,  "a":1.0}', "\0ÿ\u0001", '"literal"']);
    expect(rows.map((row) => row.content_type)).toEqual(["application/json", "image/png", "application/json"]);
  });

  test("has the options that it was given", async () => {
    await makeQueue(t.db, project, { enable_priority: true });
    await app.query(
      `select carillon_publish(project => $1, queue => 'orders', payload => '1'::jsonb, group_id => 'g', priority => 9,
                               delay_seconds => 60, ttl_seconds => 30, headers => '{"X-A": " b "}')`,
      [project],
    );
    expect(await consume()).toEqual([]);
    await t.advanceClock(61);
    expect(await consume()).toMatchObject([{ group_id: "g", priority: 9, headers: { "x-a": "b" } }]);
    await app.query("select carillon_publish($1, 'orders', '2'::jsonb, ttl_seconds => 30)", [project]);
    await t.advanceClock(31);
    expect(await consume()).toEqual([]);
  });

  test("with the key of an earlier one is not published again, in whatever transaction", async () => {
    await makeQueue(t.db, project);
    const once = "select carillon_publish($1, 'orders', $2::jsonb, deduplication_key => 'order-1') as id";
    await app.query("begin");
    const { rows: first } = await app.query(once, [project, 1]);
    const second = other.query(once, [project, 2]);
    await app.query("commit");
    expect((await second).rows).toEqual(first);
    expect(await payloads()).toEqual(["1"]);
  });

  test("with a key of a transaction that is rolled back takes its place", async () => {
    await makeQueue(t.db, project);
    const once = "select carillon_publish($1, 'orders', $2::jsonb, deduplication_key => 'order-1') as id";
    await app.query("begin");
    await app.query(once, [project, 1]);
    const second = other.query(once, [project, 2]);
    await app.query("rollback");
    await second;
    expect(await payloads()).toEqual(["2"]);
  });
});

describe("a batch", () => {
  test("is published with the options of each message, in its order", async () => {
    await makeQueue(t.db, project, { type: "fifo" });
    const { rows } = await app.query("select carillon_publish_batch($1, 'orders', $2) as ids", [
      project,
      JSON.stringify([
        { payload: { a: 1 }, group_id: "a", headers: { "x-a": "b" }, priority: 2 },
        { payload: "AP8=", content_type: "application/octet-stream", group_id: "b" },
        { payload: null, group_id: "c", delay_seconds: null },
      ]),
    ]);
    const got = await consume();
    expect(got.map((row) => row.message_id)).toEqual(rows[0].ids.map((id: string) => parseId("msg", id)));
    expect(got.map((row) => row.payload.toString("latin1"))).toEqual(['{"a": 1}', "\0ÿ", "null"]);
    expect(got[0]).toMatchObject({ headers: { "x-a": "b" }, priority: 2 });
  });

  test("of a thousand is taken, one of none stores nothing", async () => {
    const many = (count: number) => JSON.stringify(Array.from({ length: count }, (_, n) => ({ payload: n })));
    const batch = (messages: string) =>
      app.query("select carillon_publish_batch($1, 'orders', $2) ids", [project, messages]);
    expect((await batch(many(0))).rows).toEqual([{ ids: [] }]);
    expect((await batch(many(1_000))).rows[0].ids).toHaveLength(1_000);
    expect(await consume("orders", 2_000)).toHaveLength(1_000);
  });

  test.each([
    ["messages", { payload: 1 }],
    ["messages", Array.from({ length: 1_001 }, () => ({ payload: 1 }))],
    ["messages[1]", [{ payload: 1 }, 2]],
    ["messages[1].colour", [{ payload: 1 }, { payload: 1, colour: "red" }]],
    ["messages[0].payload", [{ priority: 1 }]],
    ["messages[0].payload", [{ payload: "%", content_type: "text/plain" }]],
    ["messages[0].payload", [{ payload: 1, content_type: "text/plain" }]],
    ["messages[0].priority", [{ payload: 1, priority: 1.5 }]],
    ["messages[0].priority", [{ payload: 1, priority: "1" }]],
    ["messages[0].delay_seconds", [{ payload: 1, delay_seconds: 1e12 }]],
    ["messages[0].group_id", [{ payload: 1, group_id: 7 }]],
    ["messages[0].headers", [{ payload: 1, headers: ["a"] }]],
  ])("is refused as a whole for %s", async (field, messages) => {
    const error = await refusal("select carillon_publish_batch($1, 'orders', $2)", [project, JSON.stringify(messages)]);
    expect(error).toMatchObject({ code: "QC001", constraint: "FIELD_INVALID", column: field });
    expect(await consume()).toEqual([]);
  });
});

describe("a refusal", () => {
  const deep = (levels: number) => "[".repeat(levels) + "]".repeat(levels);
  const brackets = JSON.stringify({ "[[": '\\"['.repeat(200) });

  test.each<[field: string, options: Record<string, unknown>]>([
    ["queue", { queue: "no such name" }],
    ["queue", { queue: ".." }],
    ["queue", { queue: null }],
    ["payload", { payload: null }],
    ["payload", { payload: "{" }],
    ["payload", { payload: "" }],
    ["payload", { payload: deep(65) }],
    ["payload", { payload: deep(50_000) }],
    ["content_type", { content_type: "json" }],
    ["content_type", { content_type: `a/${"b".repeat(127)}` }],
    ["group_id", { group_id: "g".repeat(129) }],
    ["group_id", { group_id: "a\nb" }],
    ["priority", { priority: 10 }],
    ["priority", { priority: -1 }],
    ["delay_seconds", { delay_seconds: 315_360_001 }],
    ["ttl_seconds", { ttl_seconds: 0 }],
    ["deduplication_key", { deduplication_key: "k".repeat(129) }],
  ])("of %s names the field: %j", async (field, options) => {
    const error = await refusedPublish(options);
    expect(error).toMatchObject({ code: "QC001", constraint: "FIELD_INVALID", column: field });
    expect(error.message).toMatch(new RegExp(`^${field}: `));
    expect(await consume()).toEqual([]);
  });

  const refusedPublish = (options: Record<string, unknown>) => {
    const given = { project, queue: "orders", payload: "1", ...options };
    const types: Record<string, string> = {
      priority: "int",
      delay_seconds: "int",
      ttl_seconds: "int",
      headers: "jsonb",
    };
    const named = Object.keys(given).map((name, i) => `${name} => $${i + 1}::${types[name] ?? "text"}`);
    return refusal(`select carillon_publish(${named.join(", ")})`, Object.values(given));
  };

  test("is not given to what the API takes", async () => {
    for (const payload of [deep(64), brackets, '"\\ud800"', "1e999", " { } "]) {
      await app.query("select carillon_publish($1, 'orders', $2::text)", [project, payload]);
    }
    expect(await payloads()).toEqual([deep(64), brackets, '"\\ud800"', "1e999", " { } "]);
  });

  test("is given to bytes that are not UTF-8, and to a payload over the limit", async () => {
    const bytes = "select carillon_publish($1, 'orders', $2::bytea)";
    expect(await refusal(bytes, [project, Buffer.from([34, 255, 34])])).toMatchObject({
      code: "QC001",
      column: "payload",
    });
    await setPublishLimits(t.db, { maxPayloadBytes: 2_000, autoCreateQueues: true });
    const error = await refusal(bytes, [project, Buffer.from(JSON.stringify("x".repeat(2_000)))]);
    expect(error).toMatchObject({ code: "QC002", constraint: "PAYLOAD_TOO_LARGE", column: "payload" });
    expect(error.message).toBe("payload: is 2002 bytes; the limit is 2000");
    await setPublishLimits(t.db, { maxPayloadBytes: 1_048_576, autoCreateQueues: true });
  });

  test("is given to a project that is not there", async () => {
    const error = await refusal("select carillon_publish('nobody', 'orders', '1'::jsonb)", []);
    expect(error).toMatchObject({ code: "QC004", constraint: "PROJECT_NOT_FOUND" });
  });

  test("is given to a queue that is not there where the operator does not let publishers create queues", async () => {
    await setPublishLimits(t.db, { maxPayloadBytes: 1_048_576, autoCreateQueues: false });
    const error = await refusal("select carillon_publish($1, 'orders', '1'::jsonb)", [project]);
    expect(error).toMatchObject({ code: "QC003", constraint: "QUEUE_NOT_FOUND" });
    await setPublishLimits(t.db, { maxPayloadBytes: 1_048_576, autoCreateQueues: true });
  });

  const HEADERS: readonly Record<string, string>[] = [
    ...[
      "accept-encoding",
      "carillon-x",
      "connection",
      "content-length",
      "cookie2",
      "expect",
      "forwarded",
      "host",
      "http2-settings",
      "keep-alive",
      "proxy-x",
      "te",
      "trailer",
      "transfer-encoding",
      "upgrade",
      "via",
      "webhook-id",
      "x-carillon-a",
      "x-forwarded-for",
      "x-real-ip",
      "Host",
      "hosts",
      "x-a",
      "authorization",
      "a b",
      "",
      "ä",
      "a:",
      "!#$%&'*+.^_`|~",
      "__proto__",
      "traceparent",
      "proxy",
      "carillon",
    ].map((name) => ({ [name]: "v" })),
    ...["", "a\nb", "a\tb", " \t\u00a0b\u00a0 ", "\u00ff", "\u0100", "\u007f", "\u0085b"].map((value) => ({
      "x-a": value,
    })),
    { "X-A": "1", "x-a": "2" },
    Object.fromEntries(Array.from({ length: 32 }, (_, i) => [`x-${i}`, "1"])),
    Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`x-${i}`, "1"])),
    { "x-a": "1".repeat(8_189) },
    { "x-a": "1".repeat(8_190) },
  ];
  test.each(HEADERS.map((headers) => [headers]))("of the headers %j is the API's", async (headers) => {
    let kept: Record<string, string> | undefined;
    try {
      kept = checkHeaders("headers", headers);
    } catch {
      expect((await refusedPublish({ headers })).column).toMatch(/^headers/);
    }
    if (kept === undefined) return;
    await app.query("select carillon_publish($1, 'orders', '1', headers => $2)", [project, headers]);
    expect((await consume())[0]?.headers).toEqual(kept);
  });
});

test("a queue that publishing by SQL creates is like one that the API creates", async () => {
  await publish(app, "orders", {});
  const { project_id } = await ensureProject(t.db, project, signsWith());
  const { queue: made } = await createQueue(t.db, project_id, "other", QUEUE_DEFAULTS);
  const found = await findQueue(t.db, project_id, "orders");
  const own = ["queue_id", "graveyard_id", "lane_id", "push_lane_id", "name", "created_at", "updated_at"];
  const settings = (row: object = {}) => Object.entries(row).filter(([column]) => !own.includes(column));
  expect(settings(found)).toEqual(settings(made));
});

test("carillon_wake wakes who waits for the queue, at the commit", async () => {
  await using wakeups = new Wakeups(t.url);
  const { project_id } = await ensureProject(t.db, project, signsWith());
  await makeQueue(t.db, project);
  const woken = Promise.withResolvers<string>();
  wakeups.on(`queue:${project_id}/orders`, () => woken.resolve("woken"));
  let awake = false;
  void woken.promise.then(() => {
    awake = true;
  });
  // Until it listens, a wake-up is lost.
  while (!awake) {
    await app.query("select carillon_wake($1, 'orders')", [project]);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  expect(await woken.promise).toBe("woken");
});

describe("a role", () => {
  let role: string;
  let login: pg.Client;
  beforeAll(async () => {
    role = `app_${randomBytes(4).toString("hex")}`;
    await app.query(`create role ${role} login password 'secret'`);
    const url = new URL(t.url);
    url.username = role;
    url.password = "secret";
    login = new pg.Client({ connectionString: url.href });
    await login.connect();
  });
  afterAll(async () => {
    await login.end();
    await app.query(`drop owned by ${role}; drop role ${role}`);
  });

  test("may not publish until it is let, and then may do nothing else", async () => {
    const denied = { code: "42501" };
    await expect(publish(login, "orders", {})).rejects.toMatchObject(denied);
    await app.query("select carillon_grant_publish($1)", [role]);
    expect(await publish(login, "orders", {})).toMatch(/^msg_/);
    await login.query("select carillon_publish_batch($1, 'orders', '[{\"payload\": 1}]')", [project]);
    await expect(login.query("select * from messages")).rejects.toMatchObject(denied);
    await expect(login.query("select * from projects")).rejects.toMatchObject(denied);
    expect(await consume()).toHaveLength(2);
  });

  test("cannot put tables of its own before Carillon's", async () => {
    await app.query("select carillon_grant_publish($1)", [role]);
    await login.query("create temporary table projects (project_id uuid, name text)");
    await login.query("set search_path = pg_temp, public");
    expect(await publish(login, "orders", {})).toMatch(/^msg_/);
    await login.query("reset search_path");
  });
});

test.skipIf(!existsSync(PSQL))("psql publishes in the transaction of a script", async () => {
  const script = `begin;
    create temporary table orders (id int);
    insert into orders values (1), (2);
    select carillon_publish('${project}', 'orders', to_jsonb(orders)) from orders;
    commit;`;
  await promisify(execFile)(PSQL, [t.url, "-v", "ON_ERROR_STOP=1", "-q", "-c", script], { timeout: 20_000 });
  expect(await payloads()).toEqual(['{"id": 1}', '{"id": 2}']);
});
