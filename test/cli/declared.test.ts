import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { otherProject } from "../contract/calls.ts";
import { startTestCarillon, type TestCarillon } from "../support/carillon.ts";
import { type Ended, run } from "./harness.ts";

let server: TestCarillon;
let folder: string;
let env: Record<string, string>;
beforeAll(async () => {
  server = await startTestCarillon();
  folder = await mkdtemp(join(tmpdir(), "carillon-declared-"));
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});
beforeEach(async () => {
  env = await newProject();
});

/** The environment of a client of an empty project. */
async function newProject(): Promise<Record<string, string>> {
  const { authorization } = await otherProject(server);
  return { CARILLON_URL: server.url, CARILLON_API_KEY: authorization.replace("Bearer ", "") };
}

function carillon(...args: string[]): Promise<Ended> {
  return run(args, env);
}

/** One call over REST, with the project's key. */
// biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
async function rest(method: string, path: string, body?: unknown): Promise<any> {
  const authorization = `Bearer ${env["CARILLON_API_KEY"]}`;
  const { status, text } = await server.rest(method, path, body, { authorization });
  expect(status, text).toBe(200);
  return JSON.parse(text);
}

async function file(text: string): Promise<string> {
  const path = join(folder, `${crypto.randomUUID()}.yaml`);
  await writeFile(path, text);
  return path;
}

async function applied(text: string, ...options: string[]): Promise<Ended> {
  const ended = await carillon("apply", await file(text), "--yes", ...options);
  expect(ended.code, ended.stderr).toBe(0);
  return ended;
}

const EVERYTHING = `version: 1
queues:
  # The queue comes before the one that takes its dead letters: the order is the program's business.
  - queue: orders
    dead_letter_queue: orders-dead
    max_retries: 3
    flow: {max_in_flight: 10}
    paused: true
  - name: orders-dead
    type: fifo
    visibility_timeout: 60
cron_jobs:
  - name: backup
    task_type: monitor
    schedule: "@daily"
    start_grace_seconds: 60
  - name: nightly
    schedule: 0 2 * * *
    url: http://127.0.0.1:4000
    timezone: Asia/Shanghai
    payload: {job: nightly, big: 12345678901234567890, note: "it's 1.10", list: [1.10, null, true]}
    headers: {X-Team: shop, authorization: "Bearer \${NIGHTLY_TOKEN}", x-literal: "$\${HOME}"}
    retention_days: 7
    enabled: false
    max_runs: 5
    secret: \${NIGHTLY_SECRET}
  - name: hourly
    cron_expr: "@hourly"
    url: http://127.0.0.1:4000/hourly
    start_at: 2040-01-01T00:00:00+08:00
push_subscriptions:
  - queue: orders
    forward_to: http://127.0.0.1:4000/push
    max_retries: 1
event_webhooks:
  - url: http://127.0.0.1:4000/events
    event_types: ["task.failed", "cron.*"]
`;
const SECRETS = { NIGHTLY_TOKEN: "t-secret", NIGHTLY_SECRET: "plain-secret" };

/** A test runs up to a dozen commands, and each is a process; the rest is for a busy machine. */
const COMMANDS = { timeout: 180_000 };

describe("apply, plan and export", COMMANDS, () => {
  test("what a file declares is made, in the order that it needs, and then there is nothing to do", async () => {
    Object.assign(env, SECRETS);
    const first = await applied(EVERYTHING);
    expect(first.stdout).toContain("7 to create, 0 to update, 0 to delete, 0 as declared");
    const created = first.stdout.split("\n").filter((line) => line.startsWith("created "));
    expect(created.slice(0, 2)).toEqual(["created queue orders-dead", "created queue orders"]);
    expect(first.stdout).not.toContain("secret\n");
    expect(first.stdout).not.toContain("t-secret");

    const queue = await rest("GET", "/queue/get/orders");
    expect(queue).toMatchObject({ dead_letter_queue: "orders-dead", paused: true, flow: { max_in_flight: 10 } });
    const [hourly, nightly] = (await rest("GET", "/cron/list")).items;
    expect(hourly.start_at).toBe("2039-12-31T16:00:00.000Z");
    expect(nightly).toMatchObject({ enabled: false, retention_days: 7, max_runs: 5, timezone: "Asia/Shanghai" });
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is what the file means
    expect(nightly.headers).toEqual({ "x-team": "shop", authorization: "***", "x-literal": "${HOME}" });
    const { text } = await server.rest("GET", `/cron/get/${nightly.cron_id}`, undefined, {
      authorization: `Bearer ${env["CARILLON_API_KEY"]}`,
    });
    expect(text).toContain('{"job":"nightly","big":12345678901234567890,"note":"it\'s 1.10","list":[1.10,null,true]}');

    const plan = await carillon("plan", await file(EVERYTHING), "--detailed-exitcode");
    expect(plan.stdout).toBe("0 to create, 0 to update, 0 to delete, 7 as declared\n");
    expect(plan.code).toBe(0);
  });

  test("an export shows no changes, holds no secret, and makes an empty project the same", async () => {
    Object.assign(env, SECRETS);
    await applied(EVERYTHING);
    await rest("POST", "/queue/create", { queue: "extra" });
    const exported = await carillon("export");
    expect(exported).toMatchObject({ code: 0, stderr: "" });
    expect(exported.stdout).not.toMatch(/t-secret|plain-secret|\*\*\*|ping_/);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is what the file says
    expect(exported.stdout).toContain("authorization: ${NIGHTLY_AUTHORIZATION}");

    const plan = await carillon("plan", await file(exported.stdout), "--prune", "--detailed-exitcode");
    expect(plan.stdout).toMatch(/^0 to create, 0 to update, 0 to delete, 8 as declared\n$/);
    expect(plan.code).toBe(0);

    env = { ...(await newProject()), NIGHTLY_AUTHORIZATION: "Bearer other" };
    await applied(exported.stdout);
    expect((await carillon("export")).stdout).toBe(exported.stdout);
  });

  test("an empty project is an empty file", async () => {
    const { stdout } = await carillon("export");
    expect(stdout).toMatch(/^version: 1\nqueues: \[\]\ncron_jobs: \[\]\n/);
    expect((await carillon("plan", await file(stdout), "--prune", "--detailed-exitcode")).code).toBe(0);
  });

  test("a file is read from standard input", async () => {
    const { code, stdout } = await run(["plan", "-"], env, "version: 1\nqueues: [{queue: piped}]\n");
    expect(stdout).toContain("+ queue piped");
    expect(code).toBe(0);
  });

  test("drift is shown field by field, and undone; what the file leaves out is left alone", async () => {
    Object.assign(env, SECRETS);
    await applied(EVERYTHING);
    const [, nightly] = (await rest("GET", "/cron/list")).items;
    await rest("PATCH", "/queue/update/orders", { max_retries: 9, paused: false, message_retention_days: 2 });
    await rest("PATCH", `/cron/update/${nightly.cron_id}`, {
      payload: null,
      max_runs: null,
      headers: { "x-team": "-" },
    });
    await rest("POST", `/cron/resume/${nightly.cron_id}`);
    await rest("PUT", `/cron/retention/set/${nightly.cron_id}`, { retention_days: 1 });

    const path = await file(EVERYTHING);
    const plan = await carillon("plan", path, "--detailed-exitcode");
    expect(plan.code).toBe(2);
    expect(plan.stdout).toContain("~ queue orders\n    max_retries: 9 -> 3\n    paused: false -> true\n");
    expect(plan.stdout).toMatch(/~ cron job nightly\n {4}payload: none -> \{"job".*\n {4}max_runs: none -> 5\n/);
    expect(plan.stdout).toContain("    retention_days: 1 -> 7\n");
    expect(plan.stdout).toContain("    enabled: true -> false\n");
    expect(plan.stdout).toContain("0 to create, 2 to update, 0 to delete, 5 as declared");

    expect((await carillon("apply", path, "--yes")).code).toBe(0);
    expect((await carillon("plan", path, "--detailed-exitcode")).code).toBe(0);
    expect((await rest("GET", "/queue/get/orders")).message_retention_days).toBe(2);
  });

  test("a cron job with a queue is made after it, exported without a url, and put back at its target", async () => {
    const declared = `version: 1
cron_jobs:
  - {name: tick, cron_expr: "@daily", queue: ticks, ordering_key: g, payload: {a: 1}}
queues: [{queue: ticks, type: fifo}]
`;
    await applied(declared);
    const [job] = (await rest("GET", "/cron/list")).items;
    expect(job).toMatchObject({ queue: "ticks", group_id: "g", task_type: "queue" });
    expect((await rest("GET", "/queue/get/ticks")).type).toBe("fifo");
    const exported = await carillon("export");
    expect(exported.stdout).toContain("queue: ticks");
    expect(exported.stdout).not.toContain("url");

    await rest("PATCH", `/cron/update/${job.cron_id}`, { url: "http://127.0.0.1:4000/" });
    const plan = await carillon("plan", await file(exported.stdout));
    expect(plan.stdout).toContain("    task_type: http_url -> queue\n");
    expect(plan.stdout).toContain("    queue: none -> ticks\n    group_id: none -> g\n");
    await applied(exported.stdout);
    expect((await carillon("export")).stdout).toBe(exported.stdout);
    await applied('version: 1\ncron_jobs: [{name: tick, cron_expr: "@daily", url: "http://127.0.0.1:4000/"}]');
    expect((await rest("GET", `/cron/get/${job.cron_id}`)).url).toBe("http://127.0.0.1:4000/");

    const none = await carillon("plan", await file('version: 1\ncron_jobs:\n  - {name: none, cron_expr: "@daily"}\n'));
    expect(none.stderr).toContain(":3: cron_jobs[0]: one of url, queue must be set");
  });

  test("null is none, where there can be none", async () => {
    await applied("version: 1\nqueues: [{queue: dead}, {queue: a, dead_letter_queue: dead, flow: {rate_limit: 5}}]");
    await applied("version: 1\nqueues: [{queue: a, dead_letter_queue: null, flow: null}]");
    const queue = await rest("GET", "/queue/get/a");
    expect(queue).not.toHaveProperty("dead_letter_queue");
    expect(queue).not.toHaveProperty("flow");
  });

  test("nothing is deleted without --prune, and with it only of the kinds that the file has a section for", async () => {
    await applied("version: 1\nqueues: [{queue: dead}, {queue: a, dead_letter_queue: dead}, {queue: b}]");
    await applied("version: 1\ncron_jobs: [{name: j, cron_expr: '@daily', url: 'http://127.0.0.1:1/'}]");
    const path = await file("version: 1\nqueues: [{queue: b}]\n");
    expect((await carillon("plan", path, "--detailed-exitcode")).code).toBe(0);
    const plan = await carillon("plan", path, "--prune");
    expect(plan.stdout).toContain("- queue a with its messages\n- queue dead with its messages\n\n0 to create");
    expect((await carillon("apply", path, "--prune", "--yes")).code).toBe(0);
    expect((await rest("GET", "/queue/list")).items).toMatchObject([{ queue: "b" }]);
    expect((await rest("GET", "/cron/list")).items).toHaveLength(1);
  });

  test("secrets of what is there are rotated only when that is asked for, and sign beside those before for a day", async () => {
    Object.assign(env, SECRETS);
    const text = `version: 1
cron_jobs:
  - {name: s, cron_expr: "@daily", url: "http://127.0.0.1:1/", secret: "\${NIGHTLY_SECRET}"}
queues: [{queue: rotated}]
push_subscriptions:
  - {queue: rotated, url: "http://127.0.0.1:1/push", secret: "\${NIGHTLY_SECRET}"}
event_webhooks:
  - {url: "http://127.0.0.1:1/events", secret: "\${NIGHTLY_SECRET}"}
`;
    await applied(text);
    const path = await file(text);
    expect((await carillon("plan", path, "--detailed-exitcode")).code).toBe(0);
    const plan = await carillon("plan", path, "--secrets", "--detailed-exitcode");
    expect(plan.code).toBe(2);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is what is printed
    expect(plan.stdout).toContain("secret: *** -> ${NIGHTLY_SECRET}");
    env["NIGHTLY_SECRET"] = "another night";
    // Again and again, as a pipeline applies: what signs beside them stays.
    for (let n = 0; n < 2; n++) {
      const set = await carillon("apply", path, "--secrets", "--yes");
      expect(set.code, set.stderr).toBe(0);
      expect(set.stdout).toContain(
        "updated cron job s\nupdated push subscription rotated -> http://127.0.0.1:1/push\nupdated event",
      );
    }
    const { rows } = await sql<{ hours: (number | null)[] }>`
      select array_agg(round(extract(epoch from valid_until - carillon_now()) / 3600)::int order by valid_until) as hours
      from signing_keys
      where project_id = (select project_id from queues where name = 'rotated') and project_id <> owner_id
      group by owner_id`.execute(server.database.db);
    expect(rows.map(({ hours }) => hours)).toEqual(Array(3).fill([24, null]));
    env["NIGHTLY_SECRET"] = "";
    const unset = await carillon("plan", path, "--secrets");
    expect(unset.code).toBe(1);
    expect(unset.stderr).toContain("cron job s (line 3): the variable NIGHTLY_SECRET is not set");
  });

  test("apply without a terminal needs --yes, and changes nothing", async () => {
    const { code, stdout, stderr } = await carillon("apply", await file("version: 1\nqueues: [{queue: asked}]\n"));
    expect(code).toBe(2);
    expect(stdout).toContain("+ queue asked");
    expect(stderr).toContain("pass --yes");
    expect((await rest("GET", "/queue/list")).items).toEqual([]);
  });
});

describe("what cannot be applied", COMMANDS, () => {
  test("all that is wrong with a file is told at once, each with its line", async () => {
    const path = await file(`version: 1
queus: []
queues:
  - queue: "a b"
    max_retries: -1
    retries: 3
  - queue: ok
    type: lifo
    paused: "yes"
    flow: {max_in_flight: many, per: hour}
  - max_retries: 3
  - queue: ranges
    max_retries: -1
    flow:
      max_in_flight: -2
cron_jobs:
  - name: bare
  - name: j
    cron_expr: "@daily"
    url: http://127.0.0.1:1/
    secret: in-the-open
    headers: {authorization: Bearer abc}
    payload: !json "{not json"
    timezone: null
  - {name: twice, cron_expr: "@daily", url: "http://127.0.0.1:1/"}
  - {name: twice, cron_expr: "@hourly", url: "http://127.0.0.1:1/"}
`);
    const { code, stdout, stderr } = await carillon("plan", path);
    expect(code).toBe(1);
    expect(stdout).toBe("");
    const lines = stderr.split("\n").map((line) => line.replace(`  ${path}:`, ""));
    expect(lines[0]).toBe("carillon: this file cannot be used:");
    expect(lines).toContain("2: queus: is no section; there are queues, cron_jobs, push_subscriptions, event_webhooks");
    expect(lines).toContain("6: queues[0].retries: is no field that a queue is declared with");
    expect(lines).toContain("8: queues[1].type: must be one of standard, fifo");
    expect(lines).toContain("9: queues[1].paused: must be true or false");
    expect(lines).toContain("10: queues[1].flow.max_in_flight: must be a whole number");
    expect(lines).toContain("10: queues[1].flow.per: is no field");
    expect(lines).toContain("11: queues[2].queue: must be there, as a queue is told from others by it");
    expect(lines).toEqual(expect.arrayContaining([expect.stringMatching(/^13: queues\[3\]\.max_retries: .*0/)]));
    expect(lines).toEqual(
      expect.arrayContaining([expect.stringMatching(/^15: queues\[3\]\.flow\.max_in_flight: .*0/)]),
    );
    expect(lines).toEqual(
      expect.arrayContaining([expect.stringMatching(/^17: cron_jobs\[0\]\.cron_expr: .*required/)]),
    );
    expect(lines).toEqual(expect.arrayContaining([expect.stringMatching(/^21: cron_jobs\[1\]\.secret: is a secret/)]));
    expect(lines).toEqual(expect.arrayContaining([expect.stringMatching(/^22: .*authorization.*: is a secret/)]));
    expect(lines).toContain("23: cron_jobs[1].payload: is not JSON");
    expect(lines).toContain("24: cron_jobs[1].timezone: cannot be none: give a value, or leave it out");
    expect(lines).toContain("26: cron job twice is declared on line 25 already");
    expect(stderr).not.toContain("in-the-open");
  });

  test.each([
    ["is no YAML", "queues: [", /:1: .*flow/i],
    ["has a key twice", "version: 1\nqueues: []\nqueues: []\n", /:3: .*unique/],
    ["has another version", "version: 2\n", /:1: version: must be 1/],
    ["is no mapping", "- 1\n", /:1: it must begin with version: 1/],
    [
      "grows by aliases",
      `version: 1\ncron_jobs: [{name: b, cron_expr: "@daily", url: "http://127.0.0.1/", payload: ${bomb()}}]`,
      /more than \d+ values/,
    ],
  ])("a file that %s is refused", async (_, text, expected) => {
    const { code, stderr } = await carillon("plan", await file(text));
    expect(code).toBe(1);
    expect(stderr).toMatch(expected);
  });

  test("a name that several cron jobs have is refused, until the file says which is meant", async () => {
    for (const path of ["one", "two"]) {
      await rest("POST", "/cron/create", { name: "same", cron_expr: "@daily", url: `http://127.0.0.1:1/${path}` });
    }
    const text = "version: 1\ncron_jobs: [{name: same, cron_expr: '@hourly', url: 'http://127.0.0.1:1/one'}]\n";
    const { code, stderr } = await carillon("plan", await file(text));
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /cron job same \(line 2\): there are 2 of them \(cron_\w+, cron_\w+\): say which by cron_id/,
    );

    const exported = await carillon("export");
    expect(exported.stdout.match(/cron_id: cron_/g)).toHaveLength(2);
    const plan = await carillon("plan", await file(exported.stdout), "--prune", "--detailed-exitcode");
    expect(plan.code, plan.stdout).toBe(0);
  });

  test("what cannot be changed is told before anything is", async () => {
    await applied("version: 1\nqueues: [{queue: a}, {queue: b}]");
    const text = "version: 1\nqueues: [{queue: a, max_retries: 1}, {queue: b, type: fifo}]\n";
    const { code, stderr } = await carillon("apply", await file(text), "--yes");
    expect(code).toBe(1);
    expect(stderr).toContain("queue b: type cannot be changed (standard -> fifo): delete it first");
    expect((await rest("GET", "/queue/get/a")).max_retries).toBe(5);
  });

  test("the first refusal ends an apply, which says what was done and what was not", async () => {
    const path = await file(`version: 1
queues: [{queue: a}, {queue: b, dead_letter_queue: nowhere}, {queue: c}]
`);
    const { code, stdout, stderr } = await carillon("apply", path, "--yes");
    expect(code).toBe(1);
    expect(stdout).toContain("created queue a\n");
    expect(stderr).toMatch(/^carillon: queue b was not created: FAILED_PRECONDITION \/ DEAD_LETTER_QUEUE_MISSING: /);
    expect(stderr).toMatch(/and so this was not done:\n {2}create queue c\n$/);
    expect((await rest("GET", "/queue/list")).items).toMatchObject([{ queue: "a" }]);
  });

  test("a server that is not there ends with 3", async () => {
    const path = await file("version: 1\nqueues: [{queue: a}]\n");
    const { code, stderr } = await carillon("plan", path, "--url", "http://127.0.0.1:1");
    expect(code).toBe(3);
    expect(stderr).toContain("cannot be reached");
  });
});

/** A payload whose aliases double it 40 times. */
function bomb(): string {
  const anchors = Array.from({ length: 40 }, (_, n) => (n === 0 ? "&a0 [x, x]" : `&a${n} [*a${n - 1}, *a${n - 1}]`));
  return `[${anchors.join(", ")}]`;
}
